"""What the numbers of a classifier's output mean, and how they become probabilities.

Nothing in a graph says whether an output holds logits or probabilities. It is decided by what the output gives for real pictures,
and by the node that computes it; or the user says it, and is contradicted where the numbers cannot be what was said.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import UserError
from service.model.contract import Head

Scores = Literal["auto", "logits", "probabilities", "log-probabilities", "sigmoid", "multilabel"]
SCORES: tuple[Scores, ...] = ("auto", "logits", "probabilities", "log-probabilities", "sigmoid", "multilabel")

Form = Literal["logits", "probabilities", "log-probabilities"]

DEFAULT_THRESHOLD = 0.5

_SUM_TOLERANCE = 1e-3
_HALF_SUM_TOLERANCE = 1e-2
_ROUNDING_STEPS = 16
"""By so many steps of its type a probability may be above 1: a forest adds up what its trees say."""
LINEAR = ("Gemm", "MatMul", "Add", "Conv", "BatchNormalization")
"""Operators that give logits, whatever their numbers are."""
_TO_PROBABILITIES = ("Sigmoid", "HardSigmoid", "Softmax")
_TO_LOGARITHMS = ("LogSoftmax", "Log")
"""Operators after which numbers are no logits any more."""


@dataclass(frozen=True)
class ScoreHead:
    """One answer of a graph.

    Attributes:
        value: the graph's value that holds the numbers, [n,units] or with dimensions of 1 after that.
        units: how many numbers an item has.
        activation: as in the contract.
        form: what the numbers are.
        labels: one for each unit; of `sigmoid`, two for its only one.
        threshold: of `multilabel`.
        reason: why it is so, for people.
    """

    value: str
    units: int
    activation: Literal["softmax", "sigmoid", "multilabel"]
    form: Form
    labels: tuple[str, ...] = ()
    threshold: float | None = None
    reason: str = ""

    def probabilities(self, raw: NDArray[np.generic]) -> NDArray[np.float64]:
        """float64[n,K] from the graph's own numbers [n,units]."""
        numbers = raw.astype(np.float64)
        if self.form == "log-probabilities":
            numbers = np.exp(numbers)
        elif self.form == "logits" and self.activation == "softmax":
            powers = np.exp(numbers - numbers.max(axis=1, keepdims=True))
            numbers = powers / powers.sum(axis=1, keepdims=True)
        elif self.form == "logits":
            numbers = 0.5 * (1.0 + np.tanh(0.5 * numbers))  # the sigmoid function, without overflow
        return np.concatenate([1.0 - numbers, numbers], axis=1) if self.activation == "sigmoid" else numbers

    def in_contract(self, name: str, output: str) -> Head:
        """The head as the contract has it."""
        return Head(name=name, output=output, labels=self.labels, activation=self.activation, threshold=self.threshold)


def decide(value: str, raw: NDArray[np.generic], last_operator: str, asked: Scores, threshold: float | None) -> ScoreHead:
    """What an output's numbers are.

    Args:
        value: its name.
        raw: what it gave for n pictures, [n,units].
        last_operator: that computes it; empty if unknown.
        asked: what the user says; `auto` to find it.
        threshold: of `multilabel`.

    Raises:
        UserError: the numbers cannot be what was asked for, or it is not clear what they are.
    """
    numbers, units = raw.astype(np.float64), raw.shape[1]
    if not np.isfinite(numbers).all() and not (asked in ("auto", "log-probabilities") and (numbers <= 0).all()):
        raise UserError(
            f"{value!r} gives numbers that are not finite for some pictures: the pixels are not scaled as it takes them"
        )
    slack = _ROUNDING_STEPS * float(np.finfo(raw.dtype.name).eps) if raw.dtype.kind == "f" else 0.0
    within = bool(((numbers >= -slack) & (numbers <= 1 + slack)).all())
    tolerance = _HALF_SUM_TOLERANCE if raw.dtype == np.float16 else _SUM_TOLERANCE
    sums_to_one = within and units > 1 and bool(np.allclose(numbers.sum(axis=1), 1, atol=tolerance))
    logs = units > 1 and bool((numbers <= tolerance).all()) and bool(np.allclose(np.exp(numbers).sum(axis=1), 1, atol=tolerance))
    facts = _facts(numbers, last_operator)
    if not logs and (last_operator == "LogSoftmax" or (last_operator == "Log" and (asked != "logits" or units == 1))):
        raise UserError(
            f"{value!r} {facts}: logarithms, whose exponentials do not sum to 1 over the classes: export the network without the "
            f"{last_operator}"
        )
    if asked == "auto":
        asked = _found(value, units, within, sums_to_one, logs, last_operator, facts)
    _refuse_as_logits(value, asked, units, sums_to_one, logs, last_operator, facts)
    form: Form = "probabilities" if within and last_operator not in LINEAR else "logits"
    if units == 1 and asked in ("logits", "probabilities"):
        form, asked = ("logits" if asked == "logits" else "probabilities"), "sigmoid"
        if form == "probabilities" and not within:
            raise UserError(f"--scores probabilities: {value!r} {facts}: those are none; logits or sigmoid may be right")
    if asked == "sigmoid":
        if units > 1:
            raise UserError(
                f"--scores sigmoid is for one unit, and {value!r} has {units}: multilabel, where each label is true or not"
            )
        return ScoreHead(value, 1, "sigmoid", form, reason=f"{facts}: one unit, {_kind(form)} of the second label")
    if asked == "multilabel":
        chosen = DEFAULT_THRESHOLD if threshold is None else threshold
        return ScoreHead(value, units, "multilabel", form, threshold=chosen, reason=f"{facts}: each label by itself, {_kind(form)}")
    if asked == "probabilities" and not sums_to_one:
        raise UserError(f"--scores probabilities: {value!r} {facts}: they do not sum to 1; logits or multilabel may be right")
    if asked == "log-probabilities" and not logs:
        raise UserError(f"--scores log-probabilities: {value!r} {facts}: those are none; logits or probabilities may be right")
    form = "logits" if asked == "logits" else "probabilities" if asked == "probabilities" else "log-probabilities"
    return ScoreHead(value, units, "softmax", form, reason=facts)


def _refuse_as_logits(
    value: str, asked: Scores, units: int, sums_to_one: bool, logs: bool, last_operator: str, facts: str
) -> None:  # fmt: skip
    """Raises UserError if a second softmax or sigmoid would go over what is a probability, or its logarithm, already."""
    if asked == "multilabel" and logs:
        raise UserError(f"--scores multilabel: {value!r} {facts}: logarithms of probabilities of which one is true; auto is right")
    if asked != "logits":
        return
    if logs and last_operator in _TO_LOGARITHMS:
        raise UserError(f"--scores logits: {value!r} {facts}: those are log-probabilities; auto or log-probabilities is right")
    if sums_to_one or last_operator in _TO_PROBABILITIES:
        right = "probabilities" if sums_to_one or units == 1 or last_operator == "Softmax" else "multilabel"
        raise UserError(f"--scores logits: {value!r} {facts}: those are probabilities already; auto or {right} is right")


def _found(value: str, units: int, within: bool, sums_to_one: bool, logs: bool, last_operator: str, facts: str) -> Scores:
    if units == 1:
        if within and last_operator in LINEAR:
            raise UserError(f"{value!r} {facts}: it is not clear what one unit is; --scores logits or probabilities says it")
        return "sigmoid"
    if sums_to_one:
        return "probabilities"
    if logs:
        return "log-probabilities"
    if last_operator in ("Sigmoid", "HardSigmoid"):
        return "multilabel"
    if last_operator == "Softmax":
        raise UserError(f"{value!r} {facts}: a Softmax over something else than the classes; export the network without it")
    if within:
        raise UserError(f"{value!r} {facts}: it is not clear what they are; --scores logits or multilabel says it")
    return "logits"


def _facts(numbers: NDArray[np.float64], last_operator: str) -> str:
    """What is seen of an output's numbers, for people."""
    text = f"gives {_shown(numbers.min())} to {_shown(numbers.max())}"
    if numbers.shape[1] > 1:
        sums = numbers.sum(axis=1)
        low, high = _shown(sums.min()), _shown(sums.max())
        text += f", {f'{low} to {high}' if low != high else low} in sum"
    return f"{text}{f', after a {last_operator}' if last_operator else ''}"


def _shown(number: float) -> str:
    return f"{number:.4g}"


def _kind(form: Form) -> str:
    return "a logit" if form == "logits" else "a probability"
