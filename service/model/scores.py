"""What the numbers of a model without a contract are, and how they become probabilities.

Nothing in an ONNX file says whether its scores are probabilities. What its `serving.toml` says of them is compared with what the
graph gives on trial; without that they are taken as probabilities only if every row of the trial is one distribution.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidModel
from service.model.declared import SaidScores

ScoreKind = Literal[
    "scores", "probabilities", "logits", "log-probabilities", "multilabel", "multilabel logits", "unit", "unit logit"
]  # fmt: skip
"""`scores` are only known to be numbers of which the highest is best. A unit is one number, of the second of two labels."""

_SUM_TOLERANCE = 0.01
"""Probabilities of float16, of many classes, add up to 1 within it."""

_ROUNDING = 1e-3


def score_kind(said: SaidScores, trials: Sequence[NDArray[Any]], labels: int | None, output: str) -> ScoreKind:
    """What the scores are.

    Args:
        said: by the user.
        trials: what the graph gave, floating[n,K] each.
        labels: how many there are; None if that is not known.
        output: the name of the output, for messages.

    Raises:
        InvalidModel: the numbers are not what is said of them, or are none for so many labels.
    """
    rows = np.concatenate([trial.astype(np.float64) for trial in trials])
    rows = rows[np.isfinite(rows).all(axis=1)]
    if rows.shape[1] == 1 and (said not in ("auto", "multilabel") or labels == 2):
        return _unit_kind(said, rows, output)
    if said == "auto":
        if is_distribution(rows):
            return "probabilities"
        return "log-probabilities" if _is_log_distribution(rows) else "scores"
    if said == "sigmoid":
        raise InvalidModel(
            f'scores = "sigmoid" is for one number an item; the graph gives {rows.shape[1]} in {output!r}: '
            '"multilabel" is for one number a label'
        )
    if said == "multilabel":
        return "multilabel" if _within_0_and_1(rows) else "multilabel logits"
    if said == "logits" and is_distribution(rows):
        raise InvalidModel(f'scores = "logits": the graph gives probabilities already in {output!r}, such as {_shown(rows)}')
    is_said = {"probabilities": is_distribution, "log-probabilities": _is_log_distribution}.get(said)
    if is_said is not None and len(rows) and not is_said(rows):
        raise InvalidModel(
            f'scores = "{said}": the graph gives other numbers in {output!r}, such as {_shown(rows)}; '
            '"logits" or "multilabel" may be meant'
        )
    return said


def _unit_kind(said: SaidScores, rows: NDArray[np.float64], output: str) -> ScoreKind:
    if said == "logits":
        return "unit logit"
    if said == "log-probabilities":
        raise InvalidModel(f'scores = "log-probabilities" is for one number a label; the graph gives one in all, {output!r}')
    if not len(rows):
        raise InvalidModel(f"the graph gives no finite number in {output!r} on trial")
    if _within_0_and_1(rows):
        return "unit"
    if said == "sigmoid":
        return "unit logit"
    raise InvalidModel(
        f"there are two labels; the graph gives one number, {output!r}, which is no probability: {_shown(rows)}. "
        'If its sigmoid is the probability of the second label, write scores = "logits" into serving.toml'
    )


def is_distribution(rows: NDArray[Any]) -> bool:
    """Whether each row of floating[n,K] holds probabilities of which one is true; False for none, and for one class."""
    if not len(rows) or rows.shape[1] < 2 or not _within_0_and_1(rows):
        return False
    return bool((np.abs(rows.sum(axis=1, dtype=np.float64) - 1) < _SUM_TOLERANCE).all())


def _is_log_distribution(rows: NDArray[np.float64]) -> bool:
    return bool(len(rows)) and bool((rows <= _ROUNDING).all()) and is_distribution(np.exp(rows))


def _within_0_and_1(rows: NDArray[Any]) -> bool:
    return bool(((rows >= -_ROUNDING) & (rows <= 1 + _ROUNDING)).all())


def _shown(rows: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.4g}" for value in rows[-1][:3]) + (" ..." if rows.shape[1] > 3 else "") if len(rows) else "NaN"


def described(kind: ScoreKind) -> tuple[str, str]:
    """For clients: the activation, as of a contract's head, and what the output holds, `unknown` if nothing says it."""
    activation = "multilabel" if kind.startswith("multilabel") else "sigmoid" if kind.startswith("unit") else "softmax"
    if kind == "scores":
        return "", "unknown"
    if kind == "log-probabilities":
        return activation, kind
    return activation, "logits" if kind.endswith(("logits", "logit")) else "probabilities"


def class_count(kind: ScoreKind, numbers: int) -> int:
    """How many labels there are to so many numbers an item."""
    return 2 if kind in ("unit", "unit logit") else numbers


def to_probabilities(kind: ScoreKind) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """What makes floating[n, labels], probabilities, of an output floating[n,K]; None if it is to be taken as it is."""
    return _CONVERSIONS.get(kind)


def _sigmoid(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # of a large negative number the result is 0 all the same
        return 1 / (1 + np.exp(-values.astype(np.float32)))


def _softmax(values: NDArray[Any]) -> NDArray[Any]:
    shifted = values.astype(np.float32)
    powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _both(second: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([1 - second, second], axis=1)


_CONVERSIONS: dict[ScoreKind, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "logits": _softmax,
    "log-probabilities": lambda values: np.exp(values.astype(np.float32)),
    "multilabel logits": _sigmoid,
    "unit": _both,
    "unit logit": lambda values: _both(_sigmoid(values)),
}
