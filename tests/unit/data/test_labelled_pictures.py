"""Folders to measure a model on: which of their pictures are taken, and what is left out."""

import os
from pathlib import Path

import numpy as np
import pytest

from export.data import datasets
from export.data.labelled_pictures import LabelledPictures, load_pictures
from service.errors import UserError
from service.model.contract import Contract, Origin, Training, own_head
from service.model.input_spec import InputSpec
from tests.unit.data.pictures import draw, pets


def contract(training: Training | None = None, labels: tuple[str, ...] = ("cat", "dog")) -> Contract:
    return Contract(
        name="pets", input=InputSpec(height=8, width=8, channels=3), heads=(own_head(labels),), precision="fp32", golden=(),
        training=training, origin=None if training else Origin(source="pets.pt", digest="0"),
    )  # fmt: skip


def trained_on(folder: Path, seed: int = 3) -> Contract:
    """The contract of a model that was trained on a folder."""
    dataset = datasets.load_dataset(str(folder), seed)
    return contract(Training(data=dataset.name, data_digest=dataset.digest, network="none", epochs=1, seed=seed))


def counts(found: LabelledPictures) -> dict[str, int]:
    return dict(zip(found.labels, np.bincount(found.classes, minlength=len(found.labels)).tolist(), strict=True))


def load(folder: Path, part: str | None = None, of: Contract | None = None) -> LabelledPictures:
    return load_pictures(str(folder), of or contract(), part)


def test_a_plain_folder_is_taken_whole(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets & more", {"cat": 2, "dog": 1, "owl": 4})
    found = load(root)
    assert (found.name, found.part, found.of_training, found.skipped) == ("pets-more", "all", False, ())
    assert counts(found) == {"cat": 2, "dog": 1, "owl": 4}
    assert [found.path(index) for index in range(3)] == [f"{root}/cat/000.png", f"{root}/cat/001.png", f"{root}/dog/000.png"]
    assert found.encoded(2) == (root / "dog" / "000.png").read_bytes()
    assert counts(load(pets(tmp_path / "one", {"owl": 1}))) == {"owl": 1}


def test_of_the_parts_of_a_folder_the_one_furthest_from_training_is_taken(tmp_path: Path) -> None:
    for part, number in (("train", 5), ("val", 3), ("test", 2)):
        pets(tmp_path / "three" / part, {"cat": number, "dog": number})
    pets(tmp_path / "two" / "train", {"cat": 5, "dog": 5})
    pets(tmp_path / "two" / "val", {"cat": 3})
    pets(tmp_path / "alone" / "test", {"dog": 4})
    pets(tmp_path / "training" / "train", {"cat": 5})
    for name, part, expected in (
        ("three", "test", {"cat": 2, "dog": 2}), ("two", "validation", {"cat": 3}), ("alone", "test", {"dog": 4}),
        ("training", "all", {"cat": 5}),
    ):  # fmt: skip
        found = load(tmp_path / name)
        assert (found.part, counts(found)) == (part, expected)
    assert counts(load(tmp_path / "three", "all")) == {"cat": 10, "dog": 10}
    assert counts(load(tmp_path / "two", "training")) == {"cat": 5, "dog": 5}
    assert counts(load(tmp_path / "alone" / "test")) == {"dog": 4}


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    assert counts(load(pets(tmp_path / "flat", {"test": 2, "train": 1}))) == {"test": 2, "train": 1}
    draw(tmp_path / "deep" / "test" / "one" / "a.png")
    draw(tmp_path / "deep" / "cat" / "b.png")
    assert counts(load(tmp_path / "deep")) == {"cat": 1, "test": 1}


def test_of_the_data_of_the_training_the_test_part_is_taken(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 20, "dog": 10})
    model = trained_on(root)
    moved = root.rename(tmp_path / "moved")
    found = load(moved, of=model)
    expected = datasets.load_dataset(str(moved), 3)
    assert (found.part, found.of_training) == ("test", True)
    assert [found.encoded(index) for index in range(len(found))] == [expected.test.encoded(index) for index in range(3)]
    assert counts(load(moved, "training", model)) == {"cat": 16, "dog": 8}
    everything = load(moved, "all", model)
    assert (everything.of_training, counts(everything)) == (True, {"cat": 20, "dog": 10})
    draw(moved / "cat" / "new.png")
    changed = load(moved, of=model)
    assert (changed.part, changed.of_training, counts(changed)) == ("all", False, {"cat": 21, "dog": 10})
    assert load(moved, "test", model).of_training is False
    assert load(pets(tmp_path / "other", {"cat": 20, "dog": 10, "owl": 3}), of=model).part == "all"


def test_data_sets_with_a_name_are_taken_at_their_own_size(digits: datasets.Dataset) -> None:
    found = load_pictures("digits", contract(Training(data="digits", data_digest="digits", network="none", epochs=1, seed=0)))
    assert (found.part, len(found), found.of_training, found.path(7)) == ("test", 360, True, "test/7")
    assert found.encoded(7) == digits.test.encoded(7)
    assert np.array_equal(found.classes, digits.test.labels)
    every = load_pictures("digits", contract(), "all")
    assert (len(every), every.path(1256), every.path(1257)) == (1797, "training/1256", "validation/0")
    assert every.encoded(1258) == digits.validation.encoded(1)


def test_what_is_no_picture_is_left_out_and_listed(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 2})
    pets(tmp_path, {"far": 3})
    (root / "dog").mkdir()
    (root / "cat" / "far").symlink_to(tmp_path / "far")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "cat" / "linked.png").symlink_to(tmp_path / "far" / "000.png")
    (root / "cat" / "zero.png").symlink_to("/dev/zero")
    (root / "cat" / "notes.txt").touch()
    (root / "cat" / ".hidden.png").touch()
    os.mkfifo(root / "cat" / "pipe.png")
    draw(root / "loose.png")
    found = load(root)
    assert counts(found) == {"cat": 7, "dog": 0}, "two, three of a linked folder, a linked file, and a link to nothing"
    assert {line.removeprefix(f"{root}/") for line in found.skipped} == {
        "loose.png: not in the folder of a class", "dog: a class folder without a picture",
        "cat/up: a symlink into another class", "cat/notes.txt: not named like an image",
        "cat/zero.png: not a regular file", "cat/pipe.png: not a regular file",
    }  # fmt: skip
    names = [Path(found.path(index)).name for index in range(len(found))]
    with pytest.raises(FileNotFoundError):
        found.encoded(names.index("gone.png"))


def test_pipes_are_not_read_by_a_training_either(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 3, "dog": 3})
    os.mkfifo(root / "cat" / "pipe.png")
    assert datasets.load_dataset(str(root), 0).skipped == (f"{root}/cat/pipe.png: not a regular file",)


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    def refused(path: Path | str, part: str | None = None, data_dir: Path | None = None) -> str:
        with pytest.raises(UserError) as raised:
            load_pictures(str(path), contract(), part, data_dir)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "is not 'digits', 'mnist', 'cifar10', nor a folder of images" in refused(tmp_path / "nowhere")
    (tmp_path / "pets.zip").touch()
    assert "nor a folder of images" in refused(tmp_path / "pets.zip")
    (tmp_path / "empty").mkdir()
    assert "no class folder; pictures are looked for in folders named as labels are" in refused(tmp_path / "empty")
    draw(tmp_path / "flat" / "a.png")
    assert "no class folder" in refused(tmp_path / "flat")
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    assert "no picture in its class folders; pictures are files named .png, " in refused(tmp_path / "bare")
    for name in ("test", "Testing"):
        pets(tmp_path / "twice" / name, {"cat": 1})
    assert "are both the test part: leave one of them" in refused(tmp_path / "twice")
    assert "--data-dir is for mnist and cifar10" in refused(tmp_path / "twice", data_dir=tmp_path)
    few = pets(tmp_path / "few", {"cat": 2, "dog": 9})
    assert "class 'cat' has 2 images, too few to be split" in refused(few, "test")
