"""Which labels are named, however many there are."""

import io
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from service.engine.classifier import SMALL_SCORES, _quickly_decoded, best
from service.model.preprocessing import open_image
from service.observability.metrics import ModelMetrics
from service.phases import Phases

FEW = st.sampled_from([0.0, 0.25, 0.5, -math.inf, math.inf, 1.0])  # so that there are equal ones
SCORES = st.tuples(st.integers(1, 5), st.integers(1, 2 * SMALL_SCORES)).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=FEW)
)


@given(SCORES, st.data())
def test_the_best_come_first_and_equal_ones_by_index(
    scores: np.ndarray[tuple[int, int], np.dtype[np.float32]], data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, scores.shape[1]))
    assert best(scores, top_k) == [sorted(enumerate(row), key=lambda pair: -pair[1])[:top_k] for row in scores.tolist()]


def test_an_item_of_which_the_model_says_nan_is_an_item_and_no_prediction() -> None:
    metrics = ModelMetrics("m", "1", ["cat", "dog"], probabilities=True)
    metrics.answered(Phases(None, 0.1, 0.1), 0.1, [[(1, 0.5)], [(0, math.nan)]])
    assert metrics.statistics().items == 2
    assert metrics._predictions == {"cat": 0, "dog": 1}


def test_a_score_that_is_nan_comes_after_all_others() -> None:
    scores = np.arange(2 * SMALL_SCORES, dtype=np.float32)[np.newaxis]
    scores[0, 7] = np.nan
    highest = 2 * SMALL_SCORES - 1
    assert best(scores, 3) == [[(index, float(index)) for index in (highest, highest - 1, highest - 2)]]
    assert best(scores, 2 * SMALL_SCORES)[0][-1][0] == 7


def test_a_tiff_is_never_decoded_on_the_transports_thread() -> None:
    for name, quickly in (("TIFF", False), ("BMP", True)):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, name)
        assert _quickly_decoded([open_image(buffer.getvalue(), 64)]) == quickly
