"""Bilinear interpolation as TensorFlow and OpenCV do it, to the last bit; neither smooths what it makes smaller.

Every pixel of the result lies between four of the picture. Where it lies follows from the sizes, with the centres of pixels half a
pixel from their edges in both; what differs is the arithmetic.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Sampler = Callable[[NDArray[np.uint8], tuple[int, int], range, range], NDArray[Any]]
"""From uint8[h,w,C], and the (width, height) that it is resized to, the rows and columns of the result."""

_CV2_ONE = np.float32(2048)
"""OpenCV's weights have 11 bits."""


def tf_bilinear(pixels: NDArray[np.uint8], size: tuple[int, int], rows: range, columns: range) -> NDArray[np.float32]:
    """float32[rows,columns,C] as `tf.image.resize(pixels, size)` has them: `resize_bilinear_op.cc`, with half-pixel centres."""
    above, below, down = _tf_places(pixels.shape[0], size[1], rows)
    before, after, right = _tf_places(pixels.shape[1], size[0], columns)
    right, down = right[np.newaxis, :, np.newaxis], down[:, np.newaxis, np.newaxis]
    top, bottom = (
        _between(pixels[row[:, np.newaxis], before].astype(np.float32), pixels[row[:, np.newaxis], after], right)
        for row in (above, below)
    )
    return _between(top, bottom, down)


def cv2_linear(pixels: NDArray[np.uint8], size: tuple[int, int], rows: range, columns: range) -> NDArray[np.uint8]:
    """uint8[rows,columns,C] as `cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)` has them: `resize.cpp`, in integers."""
    height, width = pixels.shape[:2]
    if (width, height) == (2 * size[0], 2 * size[1]):
        return _halved(pixels, rows, columns)
    rows_between, columns_between = _cv2_places(height, size[1], rows), _cv2_places(width, size[0], columns)
    inside = (columns_between.before >= 0) & (columns_between.before < width - 1)
    right = _cv2_weights(np.where(inside, columns_between.share, np.float32(0))[np.newaxis, :, np.newaxis])
    down = _cv2_weights(rows_between.share[:, np.newaxis, np.newaxis])
    before, after = (np.clip(columns_between.before + step, 0, width - 1) for step in (0, 1))
    top, bottom = (
        (pixels[row[:, np.newaxis], before] * right[0] + pixels[row[:, np.newaxis], after] * right[1]) >> 4
        for row in (np.clip(rows_between.before + step, 0, height - 1) for step in (0, 1))
    )
    values = ((top * down[0] >> 16) + (bottom * down[1] >> 16) + 2) >> 2
    return values.astype(np.uint8)


SAMPLERS: Mapping[str, Sampler] = {"tf-bilinear": tf_bilinear, "cv2-linear": cv2_linear}


class _Places(NamedTuple):
    """Of the pixels that are wanted: the one before each, and how far each is from that one to the next."""

    before: NDArray[np.intp]
    share: NDArray[np.float32]


def _between(first: NDArray[np.float32], second: NDArray[Any], share: NDArray[np.float32]) -> NDArray[np.float32]:
    return first + (second - first) * share


def _tf_places(side: int, resized: int, wanted: range) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The pixels before and behind each that is wanted, and how far it is from the first to the second."""
    scale = np.float32(side) / np.float32(resized)
    half = np.float32(0.5)
    at = (np.arange(wanted.start, wanted.stop, dtype=np.float32) + half) * scale - half
    floor = np.floor(at)
    behind = np.minimum(np.ceil(at).astype(np.intp), side - 1)
    before = np.minimum(np.maximum(floor.astype(np.intp), 0), behind)
    return before, behind, at - floor


def _cv2_places(side: int, resized: int, wanted: range) -> _Places:
    """As `_tf_places`, in double precision, and beyond the edges as it comes."""
    at = ((np.arange(wanted.start, wanted.stop) + 0.5) * (1 / (resized / side)) - 0.5).astype(np.float32)
    floor = np.floor(at)
    return _Places(floor.astype(np.intp), at - floor)


def _cv2_weights(share: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    first, second = (np.rint(part * _CV2_ONE).astype(np.int32) for part in (1 - share, share))
    return first, second


def _halved(pixels: NDArray[np.uint8], rows: range, columns: range) -> NDArray[np.uint8]:
    """What OpenCV makes of exactly half the size: the mean of four pixels."""
    part = pixels[2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop].astype(np.uint16)
    sums = part[::2, ::2] + part[::2, 1::2] + part[1::2, ::2] + part[1::2, 1::2]
    return ((sums + 2) >> 2).astype(np.uint8)
