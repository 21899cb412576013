"""Scores of labels of which a picture may have several, against values worked out by hand."""

import numpy as np
import pytest

from export.evaluation.multilabel import MultilabelScores


def test_precision_recall_and_average_precision_by_hand() -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    probabilities = np.array([[0.9, 0.6, 0.1], [0.2, 0.8, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.1]], np.float32)
    found = MultilabelScores(("indoor", "cat", "owl"), truth, probabilities, 0.5)
    indoor, cat, owl = found.classes
    # Said: indoor of the first and third picture (0.5 is at the threshold), cat of the first and second.
    assert (indoor.items, indoor.precision, indoor.recall, indoor.f1) == (2, 1 / 2, 1 / 2, 1 / 2)
    assert (cat.items, cat.precision, cat.recall, cat.f1) == (2, 1 / 2, 1 / 2, 1 / 2)
    assert (owl.items, owl.precision, owl.recall, owl.f1, owl.average_precision) == (0, None, None, None, None)
    assert indoor.average_precision == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3), "right at ranks 1 and 3"
    assert cat.average_precision == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert found.mean_average_precision == pytest.approx(5 / 6)
    assert found.overall == (1 / 2, 1 / 2, 1 / 2)
    assert found.exact == 1 / 4, "the last"
