"""Loading data sets: by name, with options, and again after the data have moved."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.data import datasets
from export.data.augmentation import Augmentation
from export.data.datasets import DatasetOptions
from export.data.input_choice import InputChoice
from service.errors import UserError
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode
from tests.unit.data.pictures import draw, pets


def test_digits_come_in_three_disjoint_stratified_parts(digits: datasets.Dataset) -> None:
    parts = (digits.training, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1257, 180, 360]
    for part in parts:
        shares = np.bincount(part.labels) / len(part)
        assert shares.min() > 0.08
        assert shares.max() < 0.12
    assert digits.test.pixels.shape == (360, 28, 28, 1)
    assert digits.test.pixels.dtype == np.uint8
    assert digits.test.pixels.max() == 255
    assert not digits.augmentation.flip


def test_choices_replace_the_default_input_and_augmentation(tmp_path: Path) -> None:
    gray = pets(tmp_path / "gray", {"a": 3, "b": 3}, size=(20, 20), mode="L")
    assert datasets.load_dataset(str(gray), 0).input.shape == (20, 20, 1)
    wide = pets(tmp_path / "wide", {"a": 3, "b": 3}, size=(40, 20))
    for choice, resize, crop in (
        (InputChoice((16, 16)), "stretch", None),
        (InputChoice((16, 16), resize="cover"), "cover", None),
        (InputChoice((16, 16), resize="pad"), "pad", None),
        (InputChoice(resize="short:18", crop=(16, 16)), "short:18", "center"),
        (InputChoice(resize="none", crop=(16, 16)), "none", "center"),
    ):
        found = datasets.load_dataset(str(wide), 0, options=DatasetOptions(choice, flip=False, shift_pixels=3))
        assert found.input == InputSpec(height=16, width=16, channels=3, resize=resize, crop=crop)
        assert np.array_equal(decode(found.test.encoded(0), found.input, 1 << 20), found.test.pixels[0])
        assert found.augmentation == Augmentation(3, flip=False, padding="reflect")


def test_a_published_data_set_is_reloaded_from_its_source(mnist: Path, tmp_path: Path) -> None:
    found = datasets.load_dataset("mnist", 5, mnist, DatasetOptions(InputChoice((20, 24), 3, "pad")))
    assert found.source == f"mnist:{mnist}"
    assert found.test.pixels.shape == (50, 20, 24, 3)
    again = datasets.reload_dataset(found.source, 5, found.input, found.labels)
    assert again.input == found.input
    assert np.array_equal(again.validation.pixels, found.validation.pixels)
    moved = mnist.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot load the data of this run again: .*if they have moved, give --data or --data-dir"):
        datasets.reload_dataset(found.source, 5, found.input, found.labels)
    assert np.array_equal(
        datasets.reload_dataset(found.source, 5, found.input, found.labels, None, moved).test.pixels, found.test.pixels
    )


def test_a_moved_folder_is_reloaded_and_other_classes_are_refused(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 10, "dog": 10}, mode="L")
    found = datasets.load_dataset(str(root), 3, options=DatasetOptions(InputChoice((9, 9), 3)))
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot load the data of this run again: .*pets"):
        datasets.reload_dataset(found.source, 3, found.input, found.labels)
    again = datasets.reload_dataset(found.source, 3, found.input, found.labels, data=str(moved))
    assert np.array_equal(again.test.pixels, found.test.pixels)
    other = pets(tmp_path / "other", {"cat": 3, "cow": 3})
    with pytest.raises(UserError, match="whose classes are cat, dog; these have cat, cow"):
        datasets.reload_dataset(found.source, 3, found.input, found.labels, data=str(other))


def test_options_that_do_not_fit_the_data_are_refused(tmp_path: Path) -> None:
    def refused(path: Path | str, **options: object) -> str:
        with pytest.raises(UserError) as raised:
            datasets.load_dataset(str(path), 0, **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "--data 'cifra10' is not 'digits', 'mnist', 'cifar10', nor a folder of images" in refused("cifra10")
    good = pets(tmp_path / "good", {"cat": 3, "dog": 3})
    assert "--data-dir is for mnist and cifar10" in refused(good, data_dir=tmp_path)
    assert "--data-dir is for mnist and cifar10; the digits come with scikit-learn" in refused("digits", data_dir=tmp_path)
    assert "--flip: a mirrored digit is another sign or none" in refused("digits", options=DatasetOptions(flip=True))
    assert "--shift 14: images of 28x28 can be shifted by at most 13 pixels" in refused(
        "digits", options=DatasetOptions(shift_pixels=14)
    )
    assert "is not a folder" in refused("mnist", data_dir=draw(tmp_path / "file.png"))


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    root = pets(tmp_path, {"cat": 90, "dog": 90})
    last: dict[str, tuple[int, int]] = {}
    datasets.load_dataset(str(root), 0, on_progress=lambda what, done, total: last.__setitem__(what, (done, total)))
    assert last == {
        "looking at training": (180, 180), "reading training": (144, 144), "reading validation": (18, 18), "reading test": (18, 18),
    }  # fmt: skip


def test_a_crop_is_cut_of_a_larger_picture_even_if_the_data_have_the_size_of_the_input(mnist: Path) -> None:
    whole = datasets.load_dataset("mnist", 5, mnist)
    found = datasets.load_dataset("mnist", 5, mnist, DatasetOptions(InputChoice(resize="short:32", crop=(28, 28))))
    assert found.input.shape == whole.input.shape
    larger = np.asarray(Image.fromarray(whole.test.pixels[0][:, :, 0]).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(found.test.pixels[0][:, :, 0], larger[2:30, 2:30])
