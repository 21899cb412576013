import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.engine.top_k import FEW_LABELS, SMALL_SCORES, best_labels

FEW = st.sampled_from([0.0, 0.25, 0.5, -math.inf, math.inf, 1.0])  # so that there are equal ones
SCORES = st.tuples(st.integers(1, 5), st.integers(1, 2 * SMALL_SCORES)).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=FEW)
)


@given(SCORES, st.data())
def test_the_best_come_first_and_equal_ones_by_index(
    scores: np.ndarray[tuple[int, int], np.dtype[np.float32]], data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, scores.shape[1]))
    assert best_labels(scores, top_k) == [sorted(enumerate(row), key=lambda pair: -pair[1])[:top_k] for row in scores.tolist()]


def test_a_score_that_is_nan_comes_after_all_others() -> None:
    scores = np.arange(2 * SMALL_SCORES, dtype=np.float32)[np.newaxis]
    scores[0, 7] = np.nan
    highest = 2 * SMALL_SCORES - 1
    assert best_labels(scores, 3) == [[(index, float(index)) for index in (highest, highest - 1, highest - 2)]]
    assert best_labels(scores, 2 * SMALL_SCORES)[0][-1][0] == 7


def test_a_score_that_is_nan_comes_after_all_others_where_labels_are_few() -> None:
    scores = np.tile(np.arange(FEW_LABELS, dtype=np.float32), (SMALL_SCORES // FEW_LABELS + 2, 1))
    scores[1, FEW_LABELS - 1] = np.nan
    best = best_labels(scores, FEW_LABELS)
    assert [index for index, _ in best[0]] == [*reversed(range(FEW_LABELS))]
    assert [index for index, _ in best[1]] == [*reversed(range(FEW_LABELS - 1)), FEW_LABELS - 1]
