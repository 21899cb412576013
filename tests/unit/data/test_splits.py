"""Splits: stratified, the same for the same seed, and identified by a digest."""

from pathlib import Path

import numpy as np

from export.data import datasets
from export.data.augmentation import Augmentation
from export.data.datasets import DatasetOptions
from export.data.input_choice import InputChoice
from export.data.splits import stratified_split
from service.model.preprocessing import decode
from tests.unit.data.pictures import draw, pets


def test_a_split_has_every_item_once_and_depends_on_the_seed() -> None:
    labels = np.repeat(np.arange(5), 40)
    parts = stratified_split(labels, (0.7, 0.1, 0.2), seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[28] * 5, [4] * 5, [8] * 5]
    again, other = stratified_split(labels, (0.7, 0.1, 0.2), 3), stratified_split(labels, (0.7, 0.1, 0.2), 4)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[2], other[2])


def test_a_class_of_three_is_in_every_part() -> None:
    labels = np.array([0] * 1000 + [1] * 3 + [2] * 7)
    for seed in range(20):
        for part in stratified_split(labels, (0.8, 0.1, 0.1), seed):
            assert set(labels[part]) == {0, 1, 2}
    training, validation, test = stratified_split(labels, (0.9, 0.0, 0.1), 0)
    assert len(validation) == 0
    assert len(training) + len(test) == 1010


def test_two_class_folders_are_split_in_three(tmp_path: Path) -> None:
    root = pets(tmp_path / "cats & dogs", {"cat": 30, "dog": 20})
    found = datasets.load_dataset(str(root), 0)
    assert [np.bincount(part.labels).tolist() for part in (found.training, found.validation, found.test)] == [
        [24, 16], [3, 2], [3, 2],
    ]  # fmt: skip
    assert (found.labels, found.name, found.source) == (("cat", "dog"), "cats-dogs", str(root))
    assert (found.input.shape, found.input.resize) == ((12, 16, 3), "stretch")
    assert (found.original_format, found.skipped) == ("12x16, colour", ())
    assert found.augmentation == Augmentation(2, flip=True, padding="reflect")
    everything = [part.encoded(index) for part in (found.training, found.validation, found.test) for index in range(len(part))]
    assert sorted(everything) == sorted(path.read_bytes() for path in root.rglob("*.png"))  # the files' own bytes, each once
    assert np.array_equal(decode(found.test.encoded(4), found.input, 1 << 20), found.test.pixels[4])
    again, other = datasets.load_dataset(str(root), 0), datasets.load_dataset(str(root), 1)
    assert np.array_equal(again.test.pixels, found.test.pixels)
    assert not np.array_equal(other.test.pixels, found.test.pixels)


def test_another_picture_changes_the_digest(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 10, "dog": 10})
    digest = datasets.load_dataset(str(root), 3).digest
    assert datasets.load_dataset(str(root), 3, options=DatasetOptions(InputChoice((9, 9)))).digest == digest
    assert datasets.load_dataset(str(root), 4).digest != digest, "the same pictures in other parts"
    root = root.rename(tmp_path / "moved")
    assert datasets.load_dataset(str(root), 3).digest == digest
    added = draw(root / "cat" / "more.png")
    assert datasets.load_dataset(str(root), 3).digest != digest
    added.unlink()
    assert datasets.load_dataset(str(root), 3).digest == digest
