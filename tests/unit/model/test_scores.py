"""What the numbers of a foreign model are, by what is said of them and what they look like, and the probabilities made of them."""

import numpy as np
import pytest

from service.errors import InvalidModel
from service.model.declared import SaidScores
from service.model.scores import ScoreKind, class_count, score_kind, to_probabilities

LOGITS = np.array([[-2.0, 0.5, 3.0], [373.33, -400.0, 0.0]], np.float32)
POWERS = np.exp(LOGITS.astype(np.float64) - LOGITS.max(axis=1, keepdims=True))
PROBABILITIES = POWERS / POWERS.sum(axis=1, keepdims=True)
LOGS = np.log(np.maximum(PROBABILITIES, 1e-300))
WITHIN = np.array([[0.9, 0.8, 0.1], [0.2, 0.2, 0.1]])
UNIT, UNIT_LOGIT = np.array([[0.9], [0.2]]), np.array([[-3.0], [2.0]])


@pytest.mark.parametrize(
    ("said", "labels", "given", "kind"),
    [
        ("auto", None, PROBABILITIES, "probabilities"),
        ("auto", None, PROBABILITIES.astype(np.float16), "probabilities"),
        ("auto", None, LOGS, "log-probabilities"),
        ("auto", 3, LOGITS, "scores"),
        ("auto", 3, WITHIN, "scores"),
        ("auto", None, UNIT, "scores"),
        ("auto", 1, UNIT, "scores"),
        ("auto", None, np.empty((0, 3)), "scores"),
        ("auto", None, np.full((2, 3), np.nan), "scores"),
        ("auto", 2, UNIT, "unit"),
        ("logits", 3, LOGITS, "logits"),
        ("logits", 2, UNIT_LOGIT, "unit logit"),
        ("probabilities", 3, PROBABILITIES, "probabilities"),
        ("probabilities", None, UNIT, "unit"),
        ("log-probabilities", 3, LOGS, "log-probabilities"),
        ("sigmoid", None, UNIT, "unit"),
        ("sigmoid", 2, UNIT_LOGIT, "unit logit"),
        ("multilabel", 3, WITHIN, "multilabel"),
        ("multilabel", 3, LOGITS, "multilabel logits"),
        ("multilabel", 1, UNIT, "multilabel"),
    ],
)
def test_scores_are_what_is_said_or_no_more_than_they_look(
    said: SaidScores, labels: int | None, given: np.ndarray, kind: ScoreKind
) -> None:
    assert score_kind(said, [given[:1], given[1:]], labels, "y") == kind


@pytest.mark.parametrize(
    ("said", "labels", "given", "message"),
    [
        ("logits", 3, PROBABILITIES, r'scores = "logits": the graph gives probabilities already in \'y\''),
        ("sigmoid", 2, np.full((2, 1), np.nan), "no finite number in 'y' on trial"),
        ("auto", 2, UNIT_LOGIT, r"two labels; the graph gives one number, 'y', which is no probability: 2\. .*scores = \"logits\""),
        ("probabilities", 3, LOGITS, r'scores = "probabilities": the graph gives other numbers in \'y\', such as 373\.3, -400, 0'),
        ("probabilities", 3, WITHIN, 'scores = "probabilities": the graph gives other numbers'),
        ("probabilities", None, UNIT_LOGIT, "which is no probability"),
        ("log-probabilities", 3, PROBABILITIES, 'scores = "log-probabilities": the graph gives other numbers'),
        ("log-probabilities", 2, UNIT, "is for one number a label"),
        (
            "sigmoid",
            3,
            WITHIN,
            r'"sigmoid" is for one number an item; the graph gives 3 in \'y\': "multilabel" is for one number a label',
        ),
    ],
)
def test_what_the_numbers_are_not_is_refused(said: SaidScores, labels: int | None, given: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        score_kind(said, [given], labels, "y")


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("logits", LOGITS, PROBABILITIES),
        ("log-probabilities", LOGS, PROBABILITIES),
        ("multilabel logits", LOGITS, 1 / (1 + np.exp(-LOGITS.astype(np.float64)))),
        ("unit", UNIT, np.array([[0.1, 0.9], [0.8, 0.2]])),
        ("unit logit", np.array([[0.0], [-1000.0]]), np.array([[0.5, 0.5], [1.0, 0.0]])),
    ],
)
def test_probabilities_are_made_of_them(kind: ScoreKind, given: np.ndarray, expected: np.ndarray) -> None:
    convert = to_probabilities(kind)
    assert convert is not None
    np.testing.assert_allclose(convert(given), expected, atol=1e-6)
    assert expected.shape[1] == class_count(kind, given.shape[1])


@pytest.mark.parametrize("kind", ["scores", "probabilities", "multilabel"])
def test_what_is_taken_as_it_is_costs_nothing(kind: ScoreKind) -> None:
    assert to_probabilities(kind) is None
