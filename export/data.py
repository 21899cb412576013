"""Labelled pictures in three parts: training, validation and test.

A part holds its pictures twice over: as the pixels that a network takes, brought there by the same code that serves them, and as
the encoded files that a client would send. The test part is for one look at the end. What to stop on or choose by is measured on
the validation part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import InputSpec
from service.errors import UserError
from service.preprocessing import encode_png, resize

DATA = ("digits",)


@dataclass(frozen=True)
class Part:
    """Labelled pictures.

    `pixels` are uint8[N,H,W,C] as the server would see them, `labels` int64[N] indices of classes, and `encoded` gives one picture
    by its index as a client would send it: the bytes of an image file.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    encoded: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A named set of labelled pictures. `labels` are the names of the classes; `input` suits its pictures."""

    name: str
    labels: tuple[str, ...]
    input: InputSpec
    training: Part
    validation: Part
    test: Part


def load(data: str, seed: int, data_dir: Path | None = None) -> Dataset:  # noqa: ARG001
    """Loads a data set by its name, one of DATA. The same seed gives the same parts."""
    if data == "digits":
        return _digits(seed)
    raise UserError(f"no data named {data!r}; accepted: {', '.join(DATA)}")


def _digits(seed: int) -> Dataset:
    """1,797 handwritten digits, 8x8, gray, white on black: the UCI test set that ships inside scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pictures = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 17 levels of gray to 256
    labels = bunch.target.astype(np.int64)
    spec = InputSpec(height=28, width=28, channels=1)
    training, validation, test = (
        _part(pictures[chosen], labels[chosen], spec) for chosen in stratified_parts(labels, (0.7, 0.1, 0.2), seed)
    )
    return Dataset("digits", tuple(str(digit) for digit in range(10)), spec, training, validation, test)


def _part(pictures: NDArray[np.uint8], labels: NDArray[np.int64], spec: InputSpec) -> Part:
    """A part of pictures uint8[N,h,w] or uint8[N,h,w,3] that are in memory already."""
    return Part(np.stack([resize(picture, spec) for picture in pictures]), labels, lambda index: encode_png(pictures[index]))


def stratified_parts(
    labels: NDArray[np.int64], fractions: tuple[float, float, float], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Indices of three disjoint parts that share every class out in the same fractions; together they are everything."""
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    rest, test = train_test_split(everything, test_size=fractions[2], stratify=labels, random_state=seed)
    training, validation = train_test_split(
        rest, test_size=fractions[1] / (fractions[0] + fractions[1]), stratify=labels[rest], random_state=seed
    )
    return training, validation, test
