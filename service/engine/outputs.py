"""What a model gave for one batch. What replies need of it is found for all rows at once, when the first request asks.

Threads that answer requests of the same batch may find the same thing side by side: each assignment here is complete in itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.top_k import Results, best_labels

SMALL_OUTPUT_BYTES = 64 * 1024
"""The bytes of a smaller output are copied once for the whole batch and then cut."""

Convert = Callable[[NDArray[Any]], NDArray[Any]]
"""Makes probabilities of scores, row by row."""


class BatchOutputs:
    """The outputs of a batch: arrays of [rows, *shape], of which the first has the scores."""

    __slots__ = ("_best", "_bytes", "_nan", "_scores", "arrays")

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.arrays = arrays
        self._scores: NDArray[Any] | None = None
        self._best: tuple[int, Results] = (0, [])
        self._bytes: dict[int, bytes] = {}
        self._nan: bool | None = None

    def part(self, start: int, stop: int) -> Sequence[NDArray[Any]]:
        """The outputs of some rows."""
        arrays = self.arrays
        return arrays if stop - start == len(arrays[0]) else [array[start:stop] for array in arrays]

    def scores(self, convert: Convert | None) -> NDArray[Any]:
        """floating[rows,K]: the first output, converted. `convert` is the same in all calls."""
        scores = self._scores
        if scores is None:
            scores = self.arrays[0]
            if scores.ndim != 2:
                scores = scores.reshape(len(scores), -1)
            if convert is not None:
                scores = convert(scores)
            self._scores = scores
        return scores

    def best(self, scores: NDArray[Any], top_k: int) -> Results:
        """The `top_k` best labels of each row of `scores`, or more."""
        found, best = self._best
        if found < top_k:
            # From the second time on rounded up: however many numbers the requests of a batch want, the sorts are few.
            found = top_k if not found else min(1 << (top_k - 1).bit_length(), scores.shape[1])
            best = best_labels(scores, found)
            self._best = found, best
        return best

    def has_nan(self, scores: NDArray[Any]) -> bool:
        """Whether any of `scores` is NaN."""
        if self._nan is None:
            self._nan = bool(np.isnan(scores).any())
        return self._nan

    def content(self, output: int, start: int, stop: int) -> bytes:
        """The bytes of some rows of an output."""
        array = self.arrays[output]
        size = array.nbytes
        if size > SMALL_OUTPUT_BYTES or not size:
            return array[start:stop].tobytes()
        content = self._bytes.get(output)
        if content is None:
            content = self._bytes[output] = array.tobytes()
        row = size // len(array)
        return content[row * start : row * stop]
