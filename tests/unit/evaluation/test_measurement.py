"""Parts of the data in batches, and their classes as the model numbers them."""

import dataclasses

import numpy as np
import pytest

from export.data import datasets
from export.evaluation.measurement import batches, decode_images, true_classes
from service.errors import UserError
from service.model.input_spec import InputSpec


def test_batches_are_small_enough_for_memory() -> None:
    digits = [(batch.start, batch.stop) for batch in batches(360, InputSpec(height=28, width=28, channels=1))]
    assert digits == [(0, 256), (256, 360)]
    photos = list(batches(10_000, InputSpec(height=224, width=224, channels=3)))
    assert [photos[0].start, photos[-1].stop] == [0, 10_000]
    assert max((batch.stop - batch.start) * 224 * 224 * 3 for batch in photos) <= 1 << 24
    assert len(list(batches(3, InputSpec(height=4096, width=4096, channels=3)))) == 3


def test_labels_may_have_another_order_but_no_other_names(digits: datasets.Dataset) -> None:
    mirrored = true_classes(digits.test, tuple(reversed(digits.labels)), digits.labels)
    assert np.array_equal(mirrored, 9 - digits.test.labels)
    with pytest.raises(UserError, match=r"only the data has 'ten'; only the model has '0'$"):
        true_classes(digits.test, ("ten", *digits.labels[1:]), digits.labels)
    with pytest.raises(UserError, match=r"the data's 8 labels are not the model's 10: only the model has '8', '9'$"):
        true_classes(digits.test, digits.labels[:8], digits.labels)


def test_a_picture_that_cannot_be_decoded_and_a_part_without_any(digits: datasets.Dataset) -> None:
    broken = dataclasses.replace(digits.test, encoded=lambda index: b"text" if index == 7 else digits.test.encoded(index))
    with pytest.raises(UserError, match="image 7 of the data: not an image"):
        decode_images(broken, slice(0, 20), digits.input)
    empty = datasets.Part(np.empty((0, 28, 28, 1), np.uint8), np.empty(0, np.int64), lambda index: b"")
    with pytest.raises(UserError, match="this part of the data has no images"):
        true_classes(empty, digits.labels, digits.labels)
