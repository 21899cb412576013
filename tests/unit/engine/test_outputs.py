"""A batch's outputs, cut up for its requests."""

import numpy as np

from service.engine.outputs import BatchOutputs
from service.engine.top_k import best_labels

SCORES = np.random.default_rng(0).random((6, 40), np.float32)


def test_whatever_numbers_the_requests_want_each_gets_the_best() -> None:
    batch = BatchOutputs([SCORES])
    scores = batch.scores(None)
    for top_k in (5, 1, 7, 40, 8, 5):
        best = batch.best(scores, top_k)
        assert [item[:top_k] for item in best] == best_labels(SCORES, top_k)


def test_the_scores_are_two_dimensional_and_converted_once() -> None:
    calls = []

    def convert(scores: np.ndarray) -> np.ndarray:
        calls.append(scores.shape)
        return scores + 1

    batch = BatchOutputs([SCORES.reshape(6, 2, 20)])
    assert batch.scores(convert) is batch.scores(convert)
    assert calls == [(6, 40)]


def test_rows_and_their_bytes_are_those_of_the_request() -> None:
    empty = np.empty((6, 0), np.float32)
    for scores in (SCORES, np.tile(SCORES, (1, 1000))):
        batch = BatchOutputs([scores, empty])
        assert batch.content(0, 2, 5) == scores[2:5].tobytes()
        assert batch.content(1, 2, 5) == b""
        part = batch.part(2, 5)
        assert (part[0] == scores[2:5]).all()
        assert part[1].shape == (3, 0)


def test_nan_anywhere_in_the_batch_is_found() -> None:
    assert not BatchOutputs([SCORES]).has_nan(SCORES)
    scores = SCORES.copy()
    scores[5, 3] = np.nan
    assert BatchOutputs([scores]).has_nan(scores)
