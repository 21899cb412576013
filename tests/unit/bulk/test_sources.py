"""What the pictures come from: files, folders, globs, lists, archives and URLs."""

import functools
import gzip
import io
import os
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from service.bulk import archives, walk
from service.bulk.lists import read_list
from service.bulk.pictures import LeftOut, Picture, name_of, path_of
from service.bulk.sources import check, is_one_file, pictures
from service.client.images import item
from service.errors import FileUnreadable, UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b/2.JPG", "b/1.png", "a.png", "b/deep/3.webp", "c/4.png", "notes.txt", ".hidden.png", ".git/5.png", "b/6.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*sources: str, left_out: LeftOut | None = None) -> list[str]:
    found = list(pictures(sources, left_out or LeftOut()))
    assert all(picture.error == "" for picture in found), found
    return [picture.name for picture in found]


def errors(*sources: str) -> dict[str, str]:
    return {picture.name: picture.error for picture in pictures(sources, LeftOut())}


def test_a_folder_gives_its_pictures_in_order_and_says_what_it_leaves_out(folder: Path) -> None:
    left_out = LeftOut()
    assert names(".", left_out=left_out) == ["./a.png", "./b/1.png", "./b/2.JPG", "./b/deep/3.webp", "./c/4.png"]
    assert str(left_out) == "2 hidden, 2 no picture by their suffix"
    assert names("b", "c") == ["b/1.png", "b/2.JPG", "b/deep/3.webp", "c/4.png"]
    assert names("notes.txt") == ["notes.txt"], "a file that is named itself is taken, whatever its name"


def test_a_large_folder_is_sorted_in_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = folder / "many"
    many.mkdir()
    expected = [f"{index:04}\udce9.png" for index in range(997)]
    for name in expected:
        (many / name).touch()
    (many / "0005").mkdir()
    (many / "0005" / "x.png").touch()
    monkeypatch.setattr(walk, "_NAMES_IN_MEMORY", 100)
    listed = list(walk.sorted_names("many"))
    assert listed == sorted([*((name, False) for name in expected), ("0005", True)])


def test_links_are_followed_and_their_loops_end(folder: Path) -> None:
    (folder / "c" / "up").symlink_to("..")
    (folder / "c" / "self").symlink_to(".")
    (folder / "b" / "deep" / "c").symlink_to(folder / "c")
    left_out = LeftOut()
    assert names("b", left_out=left_out)[:4] == ["b/1.png", "b/2.JPG", "b/deep/3.webp", "b/deep/c/4.png"]
    assert "links to a folder that they are in" in str(left_out)
    assert len(list(walk.glob("**/*.png"))) < 20


def test_a_pipe_is_no_picture(folder: Path) -> None:
    os.mkfifo(folder / "b" / "q.png")
    (folder / "b" / "r.png").symlink_to("q.png")
    (folder / "b" / "s.png").symlink_to("nowhere")
    left_out = LeftOut()
    assert names("b", left_out=left_out) == ["b/1.png", "b/2.JPG", "b/deep/3.webp", "b/s.png"]
    assert left_out.counts["pipes, sockets and devices"] == 2
    assert names("b/[q-s].png") == ["b/s.png"]


def test_what_is_not_there_is_an_error_of_its_own(folder: Path) -> None:
    assert errors("none", "x*.png", "a.png") == {"none": "", "x*.png": "nothing matches", "a.png": ""}, "its reader says so"
    assert errors("none.tar") == {"none.tar": "No such file or directory"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png"]),
        ("b/*", ["b/1.png", "b/2.JPG", "b/6.csv", "b/deep/3.webp"]),
        ("*/[14].png", ["b/1.png", "c/4.png"]),
        ("**/*.png", ["a.png", "b/1.png", "c/4.png"]),
        ("b/**", ["b/1.png", "b/2.JPG", "b/deep/3.webp"]),
        ("**/deep/?.webp", ["b/deep/3.webp"]),
        ("./**/deep", ["./b/deep/3.webp"]),
        (".*/*.png", [".git/5.png"]),
    ],
)
def test_a_glob_matches_as_in_a_shell(pattern: str, expected: list[str], folder: Path) -> None:
    assert names(pattern) == expected
    assert names(f"{folder}/{pattern}") == [str(folder / name) for name in expected] or pattern.startswith("./")


def test_a_name_with_the_signs_of_a_glob_is_taken_as_it_is(folder: Path) -> None:
    (folder / "me[1].png").touch()
    assert names("me[1].png") == ["me[1].png"]
    assert is_one_file("me[1].png")
    assert not is_one_file("me[2].png")


def test_a_name_survives_every_format() -> None:
    for path in (b"caf\xe9/1.png", b"=cmd().png", b"-x.png", 'ü\n\r,".png'.encode(), b"\xff", b"a b.png"):
        name = name_of(os.fsdecode(path))
        assert not name.startswith(("=", "-"))
        assert name.encode("utf-8")
        assert Path(path_of(name)).absolute() == Path(os.fsdecode(path)).absolute()


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_a_list_has_a_path_a_line_or_zero_bytes_between_them(separator: str, folder: Path) -> None:
    listed = ["a.png", "none\udcff.png", "b"]
    (folder / "list").write_bytes(os.fsencode(separator.join(listed) + separator))
    assert list(read_list("list")) == listed
    assert names(*read_list("list")) == ["a.png", name_of(str(folder / listed[1])), "b/1.png", "b/2.JPG", "b/deep/3.webp"]


def test_a_list_comes_from_stdin_too_and_what_is_none_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\n\nb/1.png")))
    assert list(read_list("-")) == ["a.png", "b/1.png"]
    (folder / "of Windows").write_bytes(b"\xef\xbb\xbfa.png\r\nb/1.png\r\n")
    assert list(read_list("of Windows")) == ["a.png", "b/1.png"]
    with pytest.raises(FileUnreadable, match="--from-file none: No such file"):
        list(read_list("none"))
    (folder / "long").write_bytes(b"x" * 200_000)
    with pytest.raises(UserError, match="give a list of paths, one a line"):
        list(read_list("long"))


def tar_of(path: Path, mode: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


MEMBERS = {
    "1.png": b"x" * 512, "in/2.jpg": b"y" * 100, "../../3.png": b"", "notes.txt": b"z" * 3000, "__MACOSX/4.png": b"",
    "5.png": b"w" * 1024,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip"])
def test_an_archive_gives_its_pictures(kind: str, folder: Path) -> None:
    path = folder / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in MEMBERS.items():
                archive.writestr(name, content)
    else:
        tar_of(path, {"tgz": "w:gz"}.get(kind, "w:" + kind.rpartition(".")[2].replace("tar", "")), MEMBERS)
    left_out = LeftOut()
    expected = [Picture(f"{path}/{name}", MEMBERS[name]) for name in ("1.png", "in/2.jpg", "../../3.png", "5.png")]
    assert list(pictures([str(path)], left_out)) == expected
    assert dict(left_out.counts) == {"no picture by their suffix": 1, "hidden": 1}
    assert names(str(folder / "photos.*")) == [picture.name for picture in expected]


def test_an_archive_that_breaks_off_gives_what_is_before_and_an_error(folder: Path) -> None:
    tar_of(folder / "whole.tar.gz", "w:gz", {f"{index}.png": os.urandom(4000) for index in range(50)})
    whole = (folder / "whole.tar.gz").read_bytes()
    (folder / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    *good, last = pictures(["cut.tar.gz"], LeftOut())
    assert 10 < len(good) < 50
    assert last.name == "cut.tar.gz"
    assert "cannot be read to its end" in last.error
    for name, content in (("no.zip", b"nonsense"), ("no.tar", b"nonsense" * 100), ("empty.tar.gz", b""), ("no.tar.zst", b"x")):
        (folder / name).write_bytes(content)
        [error] = errors(name).values()
        assert error, name


@pytest.mark.parametrize("damage", ["header", "zeros", "end", "another"])
def test_a_tar_whose_rest_cannot_be_found_is_an_error(damage: str, folder: Path) -> None:
    tar_of(folder / "whole.tar", "w:", {f"{index}.png": b"x" * 512 for index in range(10)})
    content = bytearray((folder / "whole.tar").read_bytes())
    if damage == "end":
        del content[10 * 1024 :]
    elif damage == "another":
        content += (folder / "whole.tar").read_bytes()
    else:
        content[5 * 1024 : 5 * 1024 + 512] = bytes(512) if damage == "zeros" else b"x" * 512
    (folder / "bad.tar").write_bytes(content)
    *good, last = pictures(["bad.tar"], LeftOut())
    assert len(good) == (10 if damage in ("end", "another") else 5)
    expected = "the archive cannot be read to its end: a header is damaged, its end is missing, or more stands after its end"
    assert last.error == expected


def zip_of(path: Path, count: int) -> bytearray:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            archive.writestr(f"{index}.png", b"picture")
    return bytearray(path.read_bytes())


def test_a_zip_whose_directory_has_not_all_members_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zip_of(folder / "whole.zip", 10)
    damaged = whole.copy()
    entry = damaged.index(b"PK\1\2", damaged.index(b"PK\1\2") + 4)
    length = damaged.index(b"PK\1\2", entry + 4) - entry
    damaged[entry + 32 : entry + 34] = struct.pack("<H", 3 * length)  # a comment that takes in three others
    (folder / "damaged.zip").write_bytes(damaged)
    *good, last = pictures(["damaged.zip"], LeftOut())
    assert len(good) == 7
    assert last.error == "the archive cannot be read to its end: its directory is damaged: 7 of 10 members are in it"
    (folder / "two.zip").write_bytes(zip_of(folder / "first.zip", 3) + whole)
    *good, last = pictures(["two.zip"], LeftOut())
    assert len(good) == 10
    assert last.error == "the archive cannot be read to its end: another archive stands in front of it"
    (folder / "program.zip").write_bytes(b"#!/bin/sh\n" + whole)
    assert len(names("program.zip")) == 10, "one that unpacks itself"
    many = whole[:-22] + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, *struct.unpack("<2I", whole[-10:-2]), 0)
    (folder / "many.zip").write_bytes(many)
    assert list(errors("many.zip").values())[-1].endswith("10 of 1 members are in it")
    monkeypatch.setattr(archives, "_COUNT_ENDS", 9)  # as 65,536 is for 65,546 members
    assert len(names("many.zip")) == 10


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo("pipe.png")
    os.mkfifo("pipe.tar")
    assert errors("pipe.tar") == {"pipe.tar": "not a regular file"}
    [picture] = pictures(["pipe.png"], LeftOut())
    with pytest.raises(UserError, match=r"pipe\.png: not a regular file"):
        item(picture.image)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_of_members_of_one_name_the_first_is_taken_and_the_others_are_counted(kind: str, folder: Path) -> None:
    path = folder / f"twice.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("1.png", b"first")
            archive.writestr("./1.png", b"second")
            archive.writestr("2.png", b"third")
    else:
        with tarfile.open(path, "w") as tar:
            for name, content in (("1.png", b"first"), ("./1.png", b"second"), ("2.png", b"third")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    left_out = LeftOut()
    assert [picture.image for picture in pictures([str(path)], left_out)] == [b"first", b"third"]
    assert str(left_out) == "1 later ones of the same name in an archive"


def test_members_that_are_encrypted_broken_or_too_large_are_errors_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_PICTURE_BYTES", 1 << 20)
    with zipfile.ZipFile("bad.zip", "w") as archive:
        archive.writestr("1.png", b"locked")
        archive.writestr("2.png", b"broken")
        archive.writestr("3.png", bytes(2 << 20), zipfile.ZIP_DEFLATED)
        archive.writestr("4.png", b"good")
    content = bytearray(Path("bad.zip").read_bytes())
    directory = content.rindex(b"PK\x01\x02", 0, content.index(b"PK\x01\x02") + 4)
    content[directory + 8] |= 1  # encrypted
    content[content.index(b"broken")] ^= 1
    Path("bad.zip").write_bytes(content)
    found = {name.rpartition("/")[2]: error for name, error in errors("bad.zip").items()}
    assert "encrypted" in found["1.png"]
    assert "cannot be read from the archive: Bad CRC-32" in found["2.png"]
    assert "too large: 2097152 bytes" in found["3.png"]
    assert found["4.png"] == ""
    tar_of(folder / "bomb.tar.gz", "w:gz", {"1.png": bytes(2 << 20), "2.png": b"good"})
    assert list(map(bool, errors("bomb.tar.gz").values())) == [True, False]
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with gzip.open("header.tar.gz", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert "a header says that it has 1099511" in errors("header.tar.gz")["header.tar.gz"]


def test_a_chain_of_headers_ends_in_an_error(folder: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    with gzip.open("chain.tar.gz", "wb") as file:
        for _ in range(5000):
            file.write(header.tobuf() + struct.pack("512s", b"x"))
    assert "cannot be read to its end" in errors("chain.tar.gz")["chain.tar.gz"]


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pictures_and_archives_come_from_the_web(web: str, folder: Path) -> None:
    tar_of(folder / "photos.tar", "w:", {"1.png": b"one"})
    sources = [f"{web}/a.png", f"{web}/none.png", f"{web}/photos.tar", f"{web}/b/1.png"]
    one, none, member, other = pictures(sources, LeftOut())
    assert one == Picture(f"{web}/a.png", b"a.png")
    assert none.error == "No such file or directory"
    assert member == Picture(f"{web}/photos.tar/1.png", b"one")
    assert other.image == b"b/1.png"


def test_folders_and_globs_of_a_store_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    for name in ("/photos/b/2.png", "/photos/a.png", "/photos/b/notes.txt", "/photos/.hidden.png", "/photos/c/3.png"):
        store.pipe(name, name.encode())
    assert names("memory://photos") == ["memory:///photos/a.png", "memory:///photos/b/2.png", "memory:///photos/c/3.png"]
    assert names("memory://photos/*/*.png") == ["memory:///photos/b/2.png", "memory:///photos/c/3.png"]
    assert errors("memory://none*") == {"memory://none*": "nothing matches"}
    assert errors("memory://none.png") == {"memory:///none.png": "No such file or directory"}
    store.rm("/photos", recursive=True)


def test_what_a_url_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="s3fs"):
        check("s3://bucket/photos")
    with pytest.raises(UserError, match="Protocol not known: nonsense"):
        check("nonsense://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match="https:// needs fsspec: install Convoy's extra 'remote'"):
        check("https://example.org/cat.png")
    check("file:///cat.png")
    with pytest.raises(UserError, match="a PATH is empty"):
        check("")
