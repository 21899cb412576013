"""Measuring a real model file on encoded pictures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from export.data import datasets
from export.evaluation.measurement import batches, measure
from service.errors import UserError
from service.model.contract import InputSpec
from service.model.loading import load_model


def test_measuring_uses_the_encoded_pictures_in_batches(model_file: Path, digits: datasets.Dataset) -> None:
    served = load_model(model_file, "cpu", 1)
    test = dataclasses.replace(digits.test, pixels=np.empty((0, 28, 28, 1), np.uint8))
    steps: list[tuple[int, int]] = []
    found = measure(served, test, digits.labels, lambda *counts: steps.append(counts))
    assert found.accuracy == served.contract.measured.accuracy
    assert found.reliability.error == pytest.approx(served.contract.measured.calibration_error)
    assert steps == [(256, 360), (360, 360)]
    photos = list(batches(10_000, InputSpec(height=224, width=224, channels=3)))
    assert [photos[0].start, photos[-1].stop] == [0, 10_000]
    assert max((batch.stop - batch.start) * 224 * 224 * 3 for batch in photos) <= 1 << 24
    assert len(list(batches(3, InputSpec(height=4096, width=4096, channels=3)))) == 3


def test_labels_may_have_another_order_but_no_other_names(model_file: Path, digits: datasets.Dataset) -> None:
    served = load_model(model_file, "cpu", 1)
    reversed_labels = tuple(reversed(digits.labels))
    mirrored = dataclasses.replace(digits.test, labels=9 - digits.test.labels)
    assert measure(served, mirrored, reversed_labels).accuracy == served.contract.measured.accuracy
    with pytest.raises(UserError, match=r"only the data has 'ten'; only the model has '0'$"):
        measure(served, digits.test, ("ten", *digits.labels[1:]))
    with pytest.raises(UserError, match=r"the data's 8 labels are not the model's 10: only the model has '8', '9'$"):
        measure(served, digits.test, digits.labels[:8])


def test_a_picture_that_cannot_be_decoded_and_a_part_without_any(model_file: Path, digits: datasets.Dataset) -> None:
    served = load_model(model_file, "cpu", 1)
    broken = dataclasses.replace(digits.test, encoded=lambda index: b"text" if index == 7 else digits.test.encoded(index))
    with pytest.raises(UserError, match="image 7 of the data: not an image"):
        measure(served, broken, digits.labels)
    empty = datasets.Part(np.empty((0, 28, 28, 1), np.uint8), np.empty(0, np.int64), lambda index: b"")
    with pytest.raises(UserError, match="this part of the data has no images"):
        measure(served, empty, digits.labels)
