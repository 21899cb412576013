"""Occlusion maps (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901).

A patch in the picture's mean colour is moved over the picture, and the network is run each time: where the answer grows weaker, the
hidden pixels had spoken for it. Works for every network, at the price of a run a place.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_PLACES = 324
"""Places of the patch, at most."""

_PATCH_SHARE = 5

Place = tuple[int, int]
"""The top and left of the patch in pixels; at the edges half of it is outside of the picture, so that these may be negative."""


class Grid(NamedTuple):
    """Where a square patch of so many pixels a side is put, so that every pixel is hidden by one place at least."""

    patch: int
    places: list[Place]


def grid_of(height: int, width: int, most: int = MOST_PLACES) -> Grid:
    """At most so many places, evenly spaced, as near to each other as these allow, the same way down and across.

    The side of the patch is a fifth of the picture's shorter side; more in a picture so long that such patches would leave gaps.
    """
    patch = max(1, round(min(height, width) / _PATCH_SHARE))
    while _count(height, patch, patch) * _count(width, patch, patch) > most:
        patch += 1
    stride = next(each for each in range(1, patch + 1) if _count(height, patch, each) * _count(width, patch, each) <= most)
    return Grid(patch, [(top, left) for top in _starts(height, patch, stride) for left in _starts(width, patch, stride)])


def _count(length: int, patch: int, stride: int) -> int:
    first, last = _ends(length, patch)
    return -(-(last - first) // stride) + 1


def _starts(length: int, patch: int, stride: int) -> list[int]:
    first, last = _ends(length, patch)
    return [*range(first, last, stride), last]


def _ends(length: int, patch: int) -> Place:
    """The first and the last start of the patch along a side; in both half of it is outside."""
    return -(patch // 2), length - (patch + 1) // 2


def hide(pixels: NDArray[Any], places: Sequence[Place], patch: int) -> NDArray[Any]:
    """The picture [H,W,C] with the patch on each of the places, [n,H,W,C], in its mean colour."""
    hidden = np.repeat(pixels[np.newaxis], len(places), axis=0)
    colour = pixels.mean((0, 1))
    if pixels.dtype.kind != "f":
        colour = colour.round()
    for picture, place in zip(hidden, places, strict=True):
        picture[_window(place, patch)] = colour.astype(pixels.dtype)
    return hidden


def mean_falls(falls: NDArray[np.floating], grid: Grid, height: int, width: int) -> NDArray[np.float32]:
    """The heat map float32[height,width]: the mean of the falls, one a place, over all patches that hid a pixel."""
    total, covered = np.zeros((2, height, width))
    for fall, place in zip(falls, grid.places, strict=True):
        window = _window(place, grid.patch)
        total[window] += fall
        covered[window] += 1
    return (total / covered).astype(np.float32)


def log_odds(logits: NDArray[np.floating], index: int) -> NDArray[np.float64]:
    """log(p / (1 - p)) of class `index` for logits [n,K], precise even where p rounds to 1."""
    values = logits.astype(np.float64)
    others = np.delete(values, index, axis=1)
    largest = others.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = values[:, index] - (largest[:, 0] + np.log(np.exp(others - largest).sum(axis=1)))
    return found


def _window(place: Place, patch: int) -> tuple[slice, slice]:
    top, left = place
    return slice(max(0, top), top + patch), slice(max(0, left), left + patch)
