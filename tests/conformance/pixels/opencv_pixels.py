"""OpenCV's INTER_LINEAR. Pictures are loaded by Pillow: OpenCV's own decoders are other programs."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.input_spec import InputSpec, Pad
from service.model.interpolation import cv2_linear
from service.model.preprocessing import decode
from tests.conformance.pixels.conftest import CHANNELS, PICTURES, TARGETS, Picture

LIMIT = 10**6
Agree = Callable[[Any, Any], None]


def resized(picture: Picture, channels: int, width: int, height: int) -> Any:
    return cv2.resize(np.asarray(picture.loaded(channels)), (width, height), interpolation=cv2.INTER_LINEAR)


@given(PICTURES, CHANNELS, TARGETS, TARGETS)
def test_opencv_resize(agree: Agree, picture: Picture, channels: int, height: int, width: int) -> None:
    spec = InputSpec.model_validate(
        {"height": height, "width": width, "channels": channels, "filter": "cv2-linear", "alpha": "drop", "exif": "ignore"}
    )
    expected = resized(picture, channels, width, height)
    agree(decode(picture.encoded, spec, LIMIT), expected.reshape(height, width, channels))


@given(PICTURES, CHANNELS, st.booleans())
def test_opencv_resize_to_half(agree: Agree, picture: Picture, channels: int, both: bool) -> None:
    height, width = max(1, picture.size[1] // 2), max(1, picture.size[0] // 2) if both else picture.size[0]
    spec = InputSpec.model_validate(
        {"height": height, "width": width, "channels": channels, "filter": "cv2-linear", "alpha": "drop", "exif": "ignore"}
    )
    expected = resized(picture, channels, width, height)
    agree(decode(picture.encoded, spec, LIMIT), expected.reshape(height, width, channels))


@given(PICTURES, TARGETS, TARGETS, TARGETS)
def test_opencv_resize_of_the_shorter_side_and_center_crop(
    agree: Agree, picture: Picture, height: int, width: int, short: int
) -> None:
    scale = picture.loaded(3).size
    size = (short, int(short * scale[1] / scale[0])) if scale[0] <= scale[1] else (int(short * scale[0] / scale[1]), short)
    whole = resized(picture, 3, *size)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    expected = np.zeros((height, width, 3), np.uint8)
    part = whole[max(0, top) : top + height, max(0, left) : left + width]
    expected[max(0, -top) :][: part.shape[0], max(0, -left) : max(0, -left) + part.shape[1]] = part
    spec = InputSpec(
        height=height, width=width, channels=3, resize=f"short:{short}", filter="cv2-linear", crop="center-floor", alpha="drop",
        exif="ignore",
    )  # fmt: skip
    agree(decode(picture.encoded, spec, LIMIT), expected)


@given(PICTURES, TARGETS, TARGETS)
def test_opencv_letterbox(agree: Agree, picture: Picture, height: int, width: int) -> None:
    columns, rows = picture.loaded(3).size
    ratio = min(height / rows, width / columns)
    inside = max(1, round(columns * ratio)), max(1, round(rows * ratio))
    across, down = (width - inside[0]) / 2, (height - inside[1]) / 2
    border = round(down - 0.1), round(down + 0.1), round(across - 0.1), round(across + 0.1)
    expected = cv2.copyMakeBorder(resized(picture, 3, *inside), *border, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    spec = InputSpec(
        height=height, width=width, channels=3, resize="pad", filter="cv2-linear", pad=Pad(color=(114, 114, 114)), alpha="drop",
        exif="ignore",
    )  # fmt: skip
    agree(decode(picture.encoded, spec, LIMIT), expected)


@pytest.mark.parametrize("size", [(4000, 3000), (65_535, 40), (30, 50_000), (3000, 4000)])
def test_opencv_resize_of_large_pictures(agree: Agree, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for width, height in ((224, 224), (300, 1000), (size[0] // 2, size[1] // 2), (1, 7000)):
        expected = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        agree(cv2_linear(pixels, (width, height), range(height), range(width)), expected)
