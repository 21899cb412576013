"""TensorFlow and Keras: unrounded pixels as float32, and Keras' loading by Pillow."""

import io
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

from service.model.input_spec import InputSpec
from service.model.interpolation import tf_bilinear
from service.model.preprocessing import decode
from tests.conformance.pixels.conftest import CHANNELS, FILTERS, PICTURES, TARGETS, Picture

LIMIT = 10**6
Agree = Callable[[Any, Any], None]


def array_of(picture: Picture, channels: int) -> Any:
    image = picture.loaded(channels)
    return np.asarray(image).reshape(image.height, image.width, channels)


def spec_of(height: int, width: int, channels: int = 3, **further: Any) -> InputSpec:
    return InputSpec.model_validate(
        {"height": height, "width": width, "channels": channels, "filter": "tf-bilinear", "dtype": "float32", "alpha": "drop",
         "exif": "ignore", **further}
    )  # fmt: skip


@given(PICTURES, CHANNELS, TARGETS, TARGETS)
def test_tensorflow_image_resize(agree: Agree, picture: Picture, channels: int, height: int, width: int) -> None:
    expected = tf.image.resize(array_of(picture, channels).astype(np.float32), (height, width))
    agree(decode(picture.encoded, spec_of(height, width, channels), LIMIT), expected)


@given(PICTURES, CHANNELS, TARGETS, TARGETS)
def test_keras_resizing_layer_of_integers(agree: Agree, picture: Picture, channels: int, height: int, width: int) -> None:
    layer = keras.layers.Resizing(height, width, dtype="uint8")
    expected = np.asarray(layer(array_of(picture, channels)))
    agree(decode(picture.encoded, spec_of(height, width, channels, dtype="uint8"), LIMIT), expected)


@given(PICTURES, CHANNELS, TARGETS, TARGETS)
def test_keras_smart_resize(agree: Agree, picture: Picture, channels: int, height: int, width: int) -> None:
    expected = keras.preprocessing.image.smart_resize(array_of(picture, channels).astype(np.float32), (height, width))
    agree(decode(picture.encoded, spec_of(height, width, channels, resize="cover"), LIMIT), np.asarray(expected))


@given(PICTURES, CHANNELS, TARGETS, TARGETS)
def test_keras_resizing_layer_that_crops_to_the_aspect_ratio(
    agree: Agree, picture: Picture, channels: int, height: int, width: int
) -> None:
    layer = keras.layers.Resizing(height, width, crop_to_aspect_ratio=True)
    expected = np.asarray(layer(array_of(picture, channels).astype(np.float32)))
    agree(decode(picture.encoded, spec_of(height, width, channels, resize="cover"), LIMIT), expected)


@given(PICTURES, CHANNELS, TARGETS, TARGETS)
def test_tensorflow_resize_with_pad(agree: Agree, picture: Picture, channels: int, height: int, width: int) -> None:
    size = picture.loaded(channels).size
    assume(min(size) >= max(size[0] / width, size[1] / height))  # or nothing is left, at which TensorFlow fails
    expected = tf.image.resize_with_pad(array_of(picture, channels).astype(np.float32), height, width)
    agree(decode(picture.encoded, spec_of(height, width, channels, resize="pad"), LIMIT), expected)


@given(PICTURES, TARGETS, TARGETS, st.integers(0, 30), st.integers(0, 30))
def test_keras_resizing_and_center_crop(
    agree: Agree, picture: Picture, height: int, width: int, further_rows: int, further_columns: int
) -> None:
    rows, columns = height + further_rows, width + further_columns
    layers = keras.Sequential([keras.layers.Resizing(rows, columns), keras.layers.CenterCrop(height, width)])
    expected = np.asarray(layers(array_of(picture, 3).astype(np.float32)[np.newaxis]))[0]
    spec = spec_of(height, width, resize=f"stretch:{rows}x{columns}", crop="center-floor")
    agree(decode(picture.encoded, spec, LIMIT), expected)


@given(PICTURES, st.sampled_from(FILTERS), CHANNELS, TARGETS, TARGETS)
def test_keras_load_img(agree: Agree, picture: Picture, filter_: str, channels: int, height: int, width: int) -> None:
    assume(channels == 3 or "I;16" not in picture.kind)  # which Keras leaves at 16 bits
    loaded = keras.utils.load_img(
        io.BytesIO(picture.encoded),
        color_mode="rgb" if channels == 3 else "grayscale", target_size=(height, width), interpolation=filter_,
    )  # fmt: skip
    expected = keras.utils.img_to_array(loaded)
    agree(decode(picture.encoded, spec_of(height, width, channels, filter=filter_), LIMIT), expected)


@pytest.mark.parametrize("size", [(4000, 3000), (65_535, 40), (30, 50_000)])
def test_tensorflow_image_resize_of_large_pictures(agree: Agree, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for width, height in ((224, 224), (300, 1000), (1, 7000)):
        found = tf_bilinear(pixels, (width, height), range(height), range(width))
        agree(found, tf.image.resize(pixels, (height, width)))
