"""Occlusion maps (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901).

A patch in the picture's mean colour is moved over the picture, and the network is run each time: where the answer grows weaker, the
hidden pixels had spoken for it. Works for every network, at the price of a run a place.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACES_ALONG = 18
"""Places of the patch along a side, at most."""

_PATCH_SHARE = 5

Place = tuple[int, int]
"""The top and left of the patch in pixels; at the edges half of it is outside of the picture, so that these may be negative."""


def patch_side(height: int, width: int) -> int:
    """The side of the patch in pixels: a fifth of the picture's shorter side."""
    return max(1, round(min(height, width) / _PATCH_SHARE))


def places_of(height: int, width: int, along: int = PLACES_ALONG) -> list[Place]:
    """Where the patch is put: at most `along` places a side, evenly spaced, so that every pixel is hidden.

    `along` is 7 or more: with fewer, patches of a fifth leave gaps.
    """
    patch = patch_side(height, width)
    return [(top, left) for top in starts(height, patch, along) for left in starts(width, patch, along)]


def starts(length: int, patch: int, along: int = PLACES_ALONG) -> list[int]:
    """Starts of the patch along a side, evenly spaced so that every pixel is hidden; at the ends half of the patch is outside."""
    first, last = -(patch // 2), length - (patch + 1) // 2
    stride = max(1, -(-(last - first) // (along - 1)))
    return sorted({*range(first, last, stride), last})


def hide(pixels: NDArray[Any], places: Sequence[Place]) -> NDArray[Any]:
    """The picture [H,W,C] with the patch on each of the places, [n,H,W,C], in its mean colour."""
    patch = patch_side(*pixels.shape[:2])
    hidden = np.repeat(pixels[np.newaxis], len(places), axis=0)
    colour = pixels.mean((0, 1))
    if pixels.dtype.kind != "f":
        colour = colour.round()
    for picture, place in zip(hidden, places, strict=True):
        picture[_window(place, patch)] = colour.astype(pixels.dtype)
    return hidden


def mean_falls(falls: NDArray[np.floating], places: Sequence[Place], height: int, width: int) -> NDArray[np.float32]:
    """The heat map float32[height,width]: the mean of the falls, one a place, over all patches that hid a pixel."""
    patch = patch_side(height, width)
    total, covered = np.zeros((2, height, width))
    for fall, place in zip(falls, places, strict=True):
        total[_window(place, patch)] += fall
        covered[_window(place, patch)] += 1
    return (total / np.maximum(covered, 1)).astype(np.float32)


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
