"""Scores and their confidence intervals, against values worked out by hand."""

import numpy as np
import pytest

from export.data.sample_size import accuracy_interval
from export.evaluation.scores import Scores
from tests.unit.evaluation.answers import scores_of


def test_precision_and_recall_by_hand() -> None:
    found = scores_of(truth=[0, 0, 0, 0, 1, 1], answers=[0, 0, 0, 1, 1, 0])
    cat, dog, owl = found.classes
    assert (cat.label, cat.items, cat.precision, cat.recall, cat.f1) == ("cat", 4, 3 / 4, 3 / 4, 3 / 4)
    assert (dog.label, dog.items, dog.precision, dog.recall, dog.f1) == ("dog", 2, 1 / 2, 1 / 2, 1 / 2)
    assert (owl.items, owl.precision, owl.recall, owl.f1) == (0, None, None, None), "never shown, never answered"
    assert (found.occurring.tolist(), found.confusion.tolist()) == ([0, 1], [[3, 1], [1, 1]])
    assert (found.correct, found.items, found.accuracy) == (4, 6, 4 / 6)
    assert found.hardest is dog
    assert found.confused(5) == [("cat", "dog", 1), ("dog", "cat", 1)]
    assert scores_of([0, 1], [0, 1]).confused(5) == []
    assert found.cross_entropy == pytest.approx(-(4 * np.log(0.9) + 2 * np.log(0.05)) / 6, rel=1e-6)


def test_cross_entropy_by_hand() -> None:
    found = Scores(("cat", "dog"), np.array([0, 1]), np.array([[1e-20, 1.0], [0.1, 0.9]], np.float32))
    assert found.cross_entropy == pytest.approx((20 * np.log(10) - np.log(0.9)) / 2, rel=1e-6)


def test_the_most_confident_mistakes_come_first() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], np.float32)
    found = Scores(("a", "b"), np.array([1, 1, 1, 0]), probabilities)
    assert found.mistakes(10).tolist() == [1, 3, 0]
    assert found.mistakes(2).tolist() == [1, 3]


def test_accuracy_interval_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert accuracy_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert accuracy_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert accuracy_interval(20, 20)[1] == 1.0
    found = scores_of(truth=[0] * 20 + [1] * 4, answers=[1] * 20 + [1] * 4)
    assert [score.recall_interval for score in found.classes] == [accuracy_interval(0, 20), accuracy_interval(4, 4), None]
