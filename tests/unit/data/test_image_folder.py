"""Folders of pictures as people have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.data import datasets, image_folder
from service.errors import UserError
from service.model import heif
from service.model.preprocessing import decode
from tests.unit.data.pictures import draw, pets
from tests.unit.model.metadata_files import (
    BROKEN_CHUNKS,
    BROKEN_SEGMENTS,
    BROKEN_TAGS,
    UPRIGHT_EXIF,
    chunk,
    file_of,
    jpeg_with,
    png_with,
    raw_profile,
    segment,
    tiff_with,
    webp_with,
)


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train", "test"), [18, 2, 6]),
        (("train", "val", "test"), [20, 6, 6]),
        (("Training", "validation", "testing"), [20, 6, 6]),
        (("train", "valid"), [18, 6, 2]),
        (("train",), [16, 2, 2]),
    ],
)
def test_parts_of_a_folder_are_kept(tmp_path: Path, names: tuple[str, ...], sizes: list[int]) -> None:
    for name in names:
        pets(tmp_path / name, {"cat": 10, "dog": 10} if name.lower().startswith("train") else {"cat": 3, "dog": 3})
    found = datasets.load_dataset(str(tmp_path), 0)
    parts = {"training": found.training, "validation": found.validation, "test": found.test}
    assert [len(part) for part in parts.values()] == sizes
    for name in names:
        part = parts[image_folder.PARTS[name.lower()]]
        assert (tmp_path / name / "cat").is_dir()
        assert {part.encoded(index) for index in range(len(part))} <= {p.read_bytes() for p in (tmp_path / name).rglob("*.png")}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert datasets.load_dataset(str(pets(tmp_path, {"train": 5, "plane": 5})), 0).labels == ("plane", "train")


def test_other_files_and_broken_pictures_are_skipped_and_listed(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 10, "dog": 10}, size=(300, 200))
    draw(root / "cat" / "holiday" / "deep" / "a.JPG", (40, 80))
    draw(root / "dog" / "gray.png", mode="L")
    draw(root / "dog" / "clear.webp", mode="RGBA")
    (root / "dog" / "sound.wav").write_bytes(b"RIFF")
    (root / "dog" / "text.png").write_text("no picture")
    (root / "dog" / "empty.jpg").touch()
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    cut = draw(root / "cat" / "cut.png", (300, 200))
    cut.write_bytes(cut.read_bytes()[:-5000])
    for hidden in (".DS_Store", "cat/._000.png", "cat/.cache/x.png", "__MACOSX/cat/x.png"):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_bytes(b"\0")
    (root / "notes.txt").write_text("beside the classes")
    found = datasets.load_dataset(str(root), 0)
    assert sum(len(part) for part in (found.training, found.validation, found.test)) == 23
    assert found.labels == ("cat", "dog")
    assert found.input.shape == (224, 224, 3)
    assert found.original_format == "12x16 to 200x300, 1 of 24 gray"
    assert len(found.skipped) == 5
    reasons = dict(line.removeprefix(f"{root}/").split(": ", 1) for line in found.skipped)
    assert reasons["dog/sound.wav"] == "not named like an image"
    assert reasons["dog/text.png"].startswith("not an image in a format accepted here")
    assert reasons["dog/empty.jpg"] == "the image is empty (0 bytes)"
    assert reasons["dog/gone.png"] == "No such file or directory"
    assert reasons["cat/cut.png"].startswith("the image's data are broken or cut short")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_pictures_with_broken_metadata_are_read_as_the_server_reads_them(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 3, "dog": 3})
    whole = Image.open(root / "cat" / "000.png")
    png, jpeg = file_of(whole), file_of(whole, "JPEG", quality=95)
    webp, tiff = file_of(whole, "WEBP", lossless=True), file_of(whole, "TIFF")
    exif = UPRIGHT_EXIF["no TIFF"]
    broken = {
        "exif.png": png_with(png, chunk(b"eXIf", exif)), "raw.png": png_with(png, raw_profile(exif)),
        "exif.webp": webp_with(webp, whole.size, b"EXIF", exif), "exif.jpg": jpeg_with(jpeg, segment(0xE1, b"Exif\0\0" + exif)),
        **{f"{number}.png": png_with(png, one) for number, one in enumerate(BROKEN_CHUNKS.values())},
        **{f"{number}.jpg": jpeg_with(jpeg, one) for number, one in enumerate(BROKEN_SEGMENTS.values())},
        **{f"{number}.tif": tiff_with(tiff, *one) for number, one in enumerate(BROKEN_TAGS.values())},
    }  # fmt: skip
    for name, content in broken.items():
        (root / "dog" / name).write_bytes(content)
    found = datasets.load_dataset(str(root), 0)
    assert found.skipped == ()
    parts = (found.training, found.validation, found.test)
    assert sum(len(part) for part in parts) == 6 + len(broken)
    for part in parts:
        for index in range(len(part)):
            assert np.array_equal(part.pixels[index], decode(part.encoded(index), found.input, 10**6))


def test_avif_is_read_and_heic_if_its_extra_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pets(tmp_path / "pets", {"cat": 3, "dog": 3})
    draw(root / "dog" / "a.AVIF")
    (root / "dog" / "b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(heif, "_heic_opener", lambda: None)
    found = datasets.load_dataset(str(root), 0)
    assert sum(len(part) for part in (found.training, found.validation, found.test)) == 7
    [skipped] = found.skipped
    assert skipped.startswith(f"{root}/dog/b.heic: a HEIC image, which is not decoded here")
    assert "pip install 'convoy-serving[heic]'" in skipped


def test_linked_folders_are_followed_once_and_loose_pictures_listed(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 4, "dog": 4})
    pets(tmp_path, {"linked": 5})
    (root / "cat" / "more").symlink_to(tmp_path / "linked")
    (root / "dog" / "round").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "dogs").symlink_to(root / "dog")
    draw(root / "loose.png")
    found = datasets.load_dataset(str(root), 0)
    labels = np.concatenate([part.labels for part in (found.training, found.validation, found.test)])
    assert np.bincount(labels).tolist() == [9, 4]
    links = {f"{root}/{link}: a symlink into another class" for link in ("cat/deep/dogs", "dog/up")}
    assert set(found.skipped) == {f"{root}/loose.png: not in the folder of a class"} | links


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("train_images", "test"), ("my-train", "my-val")])
def test_parts_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        pets(tmp_path / name, {"cat": 4, "dog": 4})
    with pytest.raises(UserError, match="look like parts and not classes: name them train, val and test"):
        datasets.load_dataset(str(tmp_path), 0)


def test_classes_may_be_called_like_parts_or_have_the_same_folders(tmp_path: Path) -> None:
    for label in ("steam train", "plane"):
        pets(tmp_path / "one" / label, {"old": 4, "new": 4} if label == "plane" else {"all": 4})
    assert datasets.load_dataset(str(tmp_path / "one"), 0).labels == ("plane", "steam train")
    for label in ("large intestine", "stomach", "trainers"):
        pets(tmp_path / "two" / label, {"left": 4, "right": 4})
    assert datasets.load_dataset(str(tmp_path / "two"), 0).labels == ("large intestine", "stomach", "trainers")


def test_an_empty_class_folder_is_named_and_left_out(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 4, "fox": 4, "owl": 4})
    (root / "dog").mkdir()
    (root / "dog" / "readme.txt").touch()
    found = datasets.load_dataset(str(root), 0)
    assert found.labels == ("cat", "fox", "owl")
    assert found.skipped[0] == f"{root}/dog: a class folder without an image that can be read: no class"
    labels = np.concatenate([part.labels for part in (found.training, found.validation, found.test)])
    assert np.bincount(labels).tolist() == [4, 4, 4]
    assert datasets.known_classes(str(root)) == 3
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        pets(parts / part, {"cat": 4, "owl": 4})
        (parts / part / "dog").mkdir()
    assert datasets.load_dataset(str(parts), 0).labels == ("cat", "owl")
    pets(parts / "train", {"dog": 3})
    with pytest.raises(UserError, match=f"^{parts}/test/dog: a class folder without an image that can be read"):
        datasets.load_dataset(str(parts), 0)
    assert (datasets.known_classes(str(parts)), datasets.known_classes("digits")) == (3, 10)
    assert datasets.known_classes(str(tmp_path / "none")) is None


def test_invalid_folders_are_refused(tmp_path: Path) -> None:
    def refused(path: Path | str, **options: object) -> str:
        with pytest.raises(UserError) as raised:
            datasets.load_dataset(str(path), 0, **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
        return str(raised.value)

    (tmp_path / "none").mkdir()
    assert "no class folder; two or more are needed" in refused(tmp_path / "none")
    assert "only one class folder, 'cat'" in refused(pets(tmp_path / "one", {"cat": 3}))
    empty = pets(tmp_path / "empty", {"cat": 3})
    (empty / "dog").mkdir()
    assert f"{empty}/dog: a class folder without an image that can be read; left out: nothing" in refused(empty)
    (empty / "dog" / "readme.txt").touch()
    assert "left out: " in refused(empty)
    few = pets(tmp_path / "few", {"cat": 9, "dog": 2})
    too_few = "class 'dog' has 2 images, too few to be split into training and validation and test: it needs at least 3"
    assert too_few in refused(few)
    pets(tmp_path / "odd" / "train", {"cat": 3, "dog": 3})
    pets(tmp_path / "odd" / "test", {"cat": 3, "cow": 3})
    assert f"{tmp_path}/odd/test has a class 'cow' that {tmp_path}/odd/train does not have" in refused(tmp_path / "odd")
    pets(tmp_path / "twice" / "train", {"cat": 3, "dog": 3})
    pets(tmp_path / "twice" / "val", {"cat": 3, "dog": 3})
    pets(tmp_path / "twice" / "valid", {"cat": 3, "dog": 3})
    assert "are both the validation part: leave one of them" in refused(tmp_path / "twice")
    cut = pets(tmp_path / "cut", {"cat": 3, "dog": 3}, size=(100, 100))
    for path in (cut / "dog").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    assert "no image of class 'dog' is left for training; left out: " in refused(cut)
