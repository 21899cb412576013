from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.importing.recipe import Recipe
from export.importing.transform_pixels import pixels_of_transform
from service.errors import UserError
from service.model.input_spec import InputSpec
from service.model.preprocessing import encode_png

RANDOM = np.random.default_rng(0)
COLOUR: NDArray[np.uint8] = RANDOM.integers(0, 256, (4, 5, 3), np.uint8)
GRAY: NDArray[np.uint8] = RANDOM.integers(0, 256, (4, 5, 1), np.uint8)


def recipe(channels: int = 3, order: Any = "rgb", numbers: int = 3) -> Recipe:
    spec = InputSpec(height=4, width=5, channels=1 if channels == 1 else 3)
    return Recipe(spec, 255.0, (0.485, 0.456, 0.406)[:numbers], (0.229, 0.224, 0.225)[:numbers], order, "a transform")


def numbers_of(image: Image.Image, taken: Recipe, order: int = 1) -> NDArray[np.float32]:
    """As transforms make them, float32[C,H,W]."""
    values = np.asarray(image, np.float32).reshape(image.height, image.width, -1)[:, :, ::order] / np.float32(taken.scale)
    mean, std = np.array(taken.mean, np.float32), np.array(taken.std, np.float32)
    normalized: NDArray[np.float32] = (values - mean) / std
    return normalized.transpose(2, 0, 1)


@pytest.mark.parametrize(("order", "step"), [("rgb", 1), ("bgr", -1)])
def test_pixels_come_back_from_the_numbers_of_a_transform(order: str, step: int) -> None:
    taken = recipe(order=order)
    found = pixels_of_transform(lambda image: numbers_of(image, taken, step), taken)(encode_png(COLOUR))
    assert found.dtype == np.uint8
    assert np.array_equal(found, COLOUR)


@pytest.mark.parametrize("numbers", [1, 3])
def test_gray_pictures_come_back_from_a_network_of_one_channel_or_three(numbers: int) -> None:
    taken = recipe(1, numbers=numbers)
    found = pixels_of_transform([lambda image: image, lambda image: numbers_of(image.convert("L"), taken)], taken)(encode_png(GRAY))
    assert np.array_equal(found, GRAY)


def test_numbers_between_two_pixels_are_not_rounded() -> None:
    taken = recipe()
    found = pixels_of_transform(lambda image: numbers_of(image, taken) + np.float32(0.5 / 255 / 0.229), taken)(encode_png(COLOUR))
    assert found.dtype == np.float32
    assert np.allclose(found[:, :, 0], COLOUR[:, :, 0] + 0.5, atol=1e-3)


def test_a_transform_that_fails_or_gives_something_else_is_the_users_error() -> None:
    def broken(image: Image.Image) -> Any:
        raise ValueError("no such thing")

    with pytest.raises(UserError, match=r"function: it fails on a picture of \(5, 4\): no such thing"):
        pixels_of_transform(broken, recipe())(encode_png(COLOUR))
    with pytest.raises(UserError, match=r"a transform: it gives \(4, 5, 3\), and \[3,H,W\] is expected"):
        pixels_of_transform(np.asarray, recipe())(encode_png(COLOUR))
