"""Pictures in the folders of their labels: names that strangers chose, names that clash, other file systems, interruptions."""

import os
import shutil
from pathlib import Path

import pytest

from service.bulk.pictures import LeftOut, Picture
from service.bulk.run import Rows, run
from service.bulk.safe_names import folder_names, safe_name
from service.bulk.sorting import How, Sorter
from service.bulk.sources import pictures
from service.bulk.whole_file import beside_of, renamed
from service.errors import UserError
from tests.unit.bulk.answers import LABELS, ask, columns, content


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, picture in {
        "a/1.png": content("ann"), "a/2.png": content("../eve"), "b/1.png": content("ann"), "c/1.png": content("ann", 0.9, "other"),
        "c/3.png": content("bob", 0.4), "c/4.png": b"not a picture",
    }.items():  # fmt: skip
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    return tmp_path / "photos"


def sort(*sources: str | Path, how: How = How.COPY, into: Path = Path("into")) -> list[str]:
    sorter = Sorter(into, how, 0.5)
    rows = Rows(None, sorter, columns())
    run(pictures(map(str, sources), LeftOut(), sorter.results.is_it), ask, rows, rows.open())
    rows.close()
    return sorted(str(path.relative_to(into)) for path in into.rglob("*") if not path.is_dir())


def no_link(source: str | Path, target: str | Path) -> None:
    raise OSError(18, "Invalid cross-device link")


def without_digests(names: list[str]) -> list[str]:
    return sorted(name[:-17] + name[-4:] if "-" in name else name for name in names)


@pytest.mark.parametrize("how", list(How))
def test_each_picture_is_in_the_folder_of_its_label_and_none_is_lost(how: How, photos: Path) -> None:
    contents = sorted(path.read_bytes() for path in photos.rglob("*.png"))
    names = sort("photos", how=how)
    assert without_digests(names) == [".._eve/2.png".replace("..", "_..", 1), "ann/1.png", "ann/1.png", "ann/1.png", "unsure/3.png"]
    assert sorted([*((Path("into") / name).read_bytes() for name in names), b"not a picture"]) == contents
    left = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert left == (["c/4.png"] if how == How.MOVE else ["a/1.png", "a/2.png", "b/1.png", "c/1.png", "c/3.png", "c/4.png"])
    assert all((Path("into") / name).is_symlink() == (how == How.LINK) for name in names)


@pytest.mark.parametrize("how", [How.COPY, How.LINK])
def test_what_is_sorted_already_stays_as_it_is(how: How, photos: Path) -> None:
    assert sort("photos", how=how) == sort("photos", how=how)


def test_a_move_to_another_file_system_copies_first(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = sorted(path.read_bytes() for path in photos.rglob("*.png"))
    monkeypatch.setattr(os, "link", no_link)
    names = sort("photos", how=How.MOVE)
    assert sorted([*((Path("into") / name).read_bytes() for name in names), b"not a picture"]) == contents
    assert [path.name for path in photos.rglob("*.png")] == ["4.png"]


def test_a_picture_is_removed_only_when_its_row_is_written(photos: Path) -> None:
    sorter = Sorter(Path("into"), How.MOVE, 0.0)
    sorter.open(LABELS)
    placed = sorter.place(Picture("photos/a/1.png", "photos/a/1.png"), "ann", 0.9)
    assert Path("photos/a/1.png").exists()
    assert Path(placed).exists()
    again = Sorter(Path("into"), How.MOVE, 0.0)  # as after a kill, here or there
    again.open(LABELS)
    assert again.place(Picture("photos/a/1.png", "photos/a/1.png"), "ann", 0.9) == placed
    again.written()
    assert Path("photos/a/1.png").exists(), "no output has its row yet"
    again.recorded(Picture("photos/a/1.png", "photos/a/1.png"), placed)
    again.written()
    assert not Path("photos/a/1.png").exists()
    Path("photos/a/1.png").write_bytes(Path(placed).read_bytes())
    last = Sorter(Path("into"), How.MOVE, 0.0)
    last.claim("photos/a/1.png", placed)
    assert not Path("photos/a/1.png").exists()
    assert Path(placed).exists()
    Path("photos/a/1.png").write_bytes(b"something new")
    last.claim("photos/a/1.png", placed)
    assert Path("photos/a/1.png").exists()


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_link_is_never_what_is_left_of_a_picture_that_is_moved(
    hard_links: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", no_link)
    (photos / "d").mkdir()
    (photos / "d" / "5.png").symlink_to("../../original")
    Path("original").write_bytes(content("bob", 0.9, "linked"))
    contents = {path: path.read_bytes() for path in photos.rglob("*.png")}
    linking = Sorter(Path("into"), How.LINK, 0.0)
    linking.open(LABELS)
    placed = {path: linking.place(Picture(str(path), str(path)), "ann", 0.9) for path in contents}
    moving = Sorter(Path("into"), How.MOVE, 0.0)
    moving.open(LABELS)
    for number, (path, to) in enumerate(placed.items()):
        picture = Picture(str(path), str(path))
        if number % 2:  # as if the run that linked was killed before it wrote the row
            assert moving.place(picture, "ann", 0.9) == to
            moving.recorded(picture, to)
        else:
            moving.claim(str(path), to)
    moving.written()
    assert {path: Path(to).read_bytes() for path, to in placed.items()} == contents
    assert not any(Path(to).is_symlink() for to in placed.values())
    assert list(photos.rglob("*.png")) == []
    assert Path("original").exists()


def test_what_cannot_be_removed_from_its_old_place_is_counted(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    sorter = Sorter(Path("into"), How.MOVE, 0.0)
    rows = Rows(None, sorter, columns())
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)  # as in a folder that is read-only
        run(pictures(["photos/a", "photos/b"], LeftOut()), ask, rows, rows.open())
        rows.close()
    assert (rows.classified, sorter.not_removed) == (3, 3)
    assert sum(path.is_file() for path in Path("into").rglob("*")) == 3
    again = Sorter(Path("into"), How.MOVE, 0.0)
    again.claim("photos/a/1.png", "into/ann/1.png")
    assert not Path("photos/a/1.png").exists()
    again.claim("photos/a/1.png", "into/ann/1.png")  # is where it should be
    Path("into/ann/1.png").rename("photos/a/1.png")
    assert sort("photos/a", how=How.MOVE, into=Path("photos/a"))
    assert again.not_removed == 0


def test_a_picture_whose_new_place_is_gone_is_done_and_counted(photos: Path) -> None:
    sorter = Sorter(Path("into"), How.MOVE, 0.0)
    assert sorter.claim("photos/a/1.png", "into/ann/1.png")
    assert Path("photos/a/1.png").exists()
    assert sorter.not_removed == 1
    Path("into/ann").mkdir(parents=True)
    Path("into/ann/1.png").write_bytes(b"something else")
    assert not sorter.claim("photos/a/1.png", "into/ann/1.png")
    assert sorter.not_removed == 1


def test_of_a_link_that_is_moved_the_picture_comes_and_the_link_goes(photos: Path) -> None:
    (photos / "d").mkdir()
    (photos / "d" / "5.png").symlink_to("../../original")
    Path("original").write_bytes(content("bob"))
    assert sort("photos/d", how=How.MOVE) == ["bob/5.png"]
    assert not Path("into/bob/5.png").is_symlink()
    assert Path("into/bob/5.png").read_bytes() == Path("original").read_bytes() == content("bob")
    assert list((photos / "d").iterdir()) == []


def test_a_link_to_something_else_stays_and_so_does_the_picture(photos: Path) -> None:
    Path("into/ann").mkdir(parents=True)
    Path("into/ann/1.png").symlink_to(photos / "b" / "1.png")
    moving = Sorter(Path("into"), How.MOVE, 0.0)
    moving.claim("photos/a/1.png", "into/ann/1.png")
    assert Path("photos/a/1.png").read_bytes() == Path("photos/b/1.png").read_bytes()
    assert Path("into/ann/1.png").is_symlink()


def test_the_folder_of_results_is_no_source(photos: Path) -> None:
    into = photos / "sorted"
    first = sort("photos", into=into)
    assert sort("photos", "photos/*", into=into) == first
    assert without_digests(first).count("ann/1.png") == 3


@pytest.mark.parametrize(
    "pattern", ["photos/*", "photos/**", "photos/**/*.png", "photos/*/*.png", "photos/*/ann/*", "**/ann/*.png", "*/sorted/*/1.png"]
)
def test_no_sign_of_a_glob_matches_the_folder_of_results(pattern: str, photos: Path) -> None:
    into = photos / "sorted"
    first = sort("photos", into=into)
    assert sort(pattern, into=into) == first
    sorter = Sorter(into, How.COPY, 0.5)
    found = [picture.name for picture in pictures([pattern], LeftOut(), sorter.results.is_it)]
    assert not any("sorted" in name for name in found if "*" not in name)
    named = [picture.name for picture in pictures(["photos/sorted/ann/*.png"], LeftOut(), sorter.results.is_it)]
    assert len(named) == 3, "one that is named is meant"


def test_what_a_list_has_of_the_folder_of_results_is_known(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    sorter = Sorter(photos / "sorted", How.COPY, 0.5)
    sorter.open(LABELS)
    inside = ["photos/sorted", "./photos/sorted/", "photos/sorted/ann/1.png", str(photos / "sorted/x.png"), "link/sorted/ann/1.png"]
    assert [path for path in inside if not sorter.results.holds(path)] == []
    outside = ["photos", "photos/a/1.png", "photos/sorted-not/1.png", "sorted/1.png", ".", "/", "none/1.png"]
    assert [path for path in outside if sorter.results.holds(path)] == []
    (tmp_path / "to it").symlink_to(photos / "sorted")
    assert sorter.results.holds("to it")
    here = Sorter(Path(), How.COPY, 0.5).results
    assert [path for path in ("/", "..", "photos/../..", "../other") if here.holds(path)] == []
    assert [path for path in (".", "photos", "photos/..", "photos/a/../..") if not here.holds(path)] == []


@pytest.mark.parametrize("spelled", ["{here}/into", "./into", "link/into", "elsewhere/../into"])
def test_a_place_that_a_row_has_is_not_given_again_however_it_is_spelled(spelled: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    first = Sorter(Path("into"), How.COPY, 0.0)
    first.open(LABELS)
    placed = first.place(Picture("photos/a/1.png", "photos/a/1.png"), "ann", 0.9)
    again = Sorter(Path(spelled.format(here=tmp_path)), How.COPY, 0.0)
    again.open(LABELS)
    again.claim("photos/a/1.png", placed)
    twin = again.place(Picture("photos/b/1.png", "photos/b/1.png"), "ann", 0.9)
    assert not Path(twin).samefile(placed)
    assert len(list(Path("into/ann").iterdir())) == 2


def test_pictures_of_one_relative_path_are_made_in_places_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = beside_of(Path("into/1.png"), "photos/1.png")
    assert beside_of(Path("into/1.png"), "./photos//1.png") == beside_of(Path("into/1.png"), f"{tmp_path}/photos/1.png") == first
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    assert beside_of(Path("into/1.png"), "photos/1.png") != first


def test_without_hard_links_a_name_that_comes_meanwhile_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_link)
    beside, target = tmp_path / "beside", tmp_path / "target"
    beside.write_bytes(b"this")
    target.write_bytes(b"that")
    assert not renamed(beside, target)
    assert target.read_bytes() == b"that"


def test_nothing_is_written_outside_of_the_folder(photos: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path("into").mkdir()
    Path("into/ann").symlink_to(elsewhere)
    names = sort("photos")
    assert not any(name.startswith("ann/") for name in names)
    assert list(elsewhere.iterdir()) == []
    sorter = Sorter(Path("into"), How.COPY, 0.0)
    sorter.open(LABELS)
    with pytest.raises(UserError, match=r"into/ann is a link: pictures are sorted into folders of into alone"):
        sorter.place(Picture("x", b"x"), "ann", 0.9)
    member = Picture("photos.zip/../../evil.png", b"x")
    assert sorter.place(member, "bob", 0.9) == "into/bob/evil.png"
    assert sorter.place(Picture("https://host/a%2F..%2Fb.png?size=1/../2", b"y"), "bob", 0.9) == "into/bob/a%2F..%2Fb.png"
    assert sorter.place(Picture("https://host/..", b"z"), "bob", 0.9) == "into/bob/_"
    assert sorter.place(Picture("photos.zip/what?.png", b"w"), "bob", 0.9) == "into/bob/what_.png"


def test_a_file_that_cannot_be_written_is_an_error_of_its_picture(photos: Path) -> None:
    Path("into").mkdir()
    Path("into/ann").write_text("a file where the folder should be")
    sorter = Sorter(Path("into"), How.COPY, 0.0)
    sorter.open(LABELS)
    with pytest.raises(UserError, match="cannot be put into into/ann: File exists"):
        sorter.place(Picture("x", b"x"), "ann", 0.9)
    with pytest.raises(UserError, match="--sort-into into/ann: is a file: give a folder"):
        Sorter(Path("into/ann"), How.COPY, 0.0).open(LABELS)


def test_a_part_that_a_full_disk_cut_off_does_not_stay(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", full)
        assert sort("photos") == []
        patch.setattr(Path, "unlink", lambda _: None)  # as after a kill
        sort("photos")
    assert any(path.suffix == ".part" for path in Path("into").rglob("*"))
    assert not any(name.endswith(".part") for name in sort("photos"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        assert any(name.endswith(".part") for name in sort("photos", into=Path("again")))
    assert not any(name.endswith(".part") for name in sort("photos", into=Path("again")))


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("cat", "cat"), ("", "_"), (".", "_"), ("..", "_"), ("../../etc", "_.._.._etc"), ("a/b\\c", "a_b_c"), ("x. ", "x"),
        ("con", "_con"), ("NUL.txt", "_NUL.txt"), (".git", "_.git"), ("a\0b\n", "a_b_"), ("é" * 300, "é" * 100), ("\udcff", "?"),
    ],
)  # fmt: skip
def test_any_label_is_a_name_of_a_folder(label: str, folder: str) -> None:
    assert safe_name(label) == folder.replace("?", "_")


def test_no_two_labels_share_a_folder() -> None:
    labels = ["a", "A", "a/", "a_", "unsure", "é", "e\u0301", "a_2", "", ".", *("x" * 300 + str(n) for n in range(3))]
    folders = folder_names(labels, "unsure")
    assert folders.keys() == set(labels)
    assert len({folder.casefold() for folder in folders.values()} | {"unsure"}) == len(labels) + 1
    assert folders["a"] == "a"
    assert safe_name("x" * 300 + ".jpeg").endswith("x.jpeg")
