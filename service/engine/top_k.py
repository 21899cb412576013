"""The best labels of score rows. Pure."""

from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_SCORES = 32
"""Up to so many scores Python sorts faster than numpy is called."""

FEW_LABELS = 48
"""Up to so many labels numpy sorts them all faster than it finds those to sort."""

Results = list[list[tuple[int, float]]]
"""For each item its (label index, score), the highest score first."""


def best_labels(scores: NDArray[Any], top_k: int) -> Results:
    """The `top_k` best labels, 1 to K, of each row of floating[n,K]: (index, score), best first, equal scores by index."""
    if scores.size <= SMALL_SCORES:
        if top_k == 1:
            return [[max(enumerate(row), key=itemgetter(1))] for row in scores.tolist()]
        return [sorted(enumerate(row), key=itemgetter(1), reverse=True)[:top_k] for row in scores.tolist()]
    if top_k == 1:
        return [[pair] for pair in zip(scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist())]  # noqa: B905 - equally long
    order = (-scores).argsort(axis=1, kind="stable")[:, :top_k] if scores.shape[1] <= FEW_LABELS else _order(scores, top_k)
    found = scores[np.arange(len(scores))[:, np.newaxis], order]
    return [*map(list, map(zip, order.tolist(), found.tolist()))]


def _order(scores: NDArray[Any], top_k: int) -> NDArray[np.intp]:
    """The indices, intp[n,top_k], of the best of each row of floating[n,K], equal scores by index, NaN last."""
    # Sorting all K would take longer than the inference. Only scores that reach the row's top_k-th are sorted, all rows at once.
    least = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1 : top_k]
    rows, indices = np.nonzero(~(scores < least))
    indices = indices[np.lexsort((indices, -scores[rows, indices], rows))]
    starts = np.searchsorted(rows, np.arange(len(scores)))
    order: NDArray[np.intp] = indices[starts[:, np.newaxis] + np.arange(top_k)]
    return order
