"""Calibration: the expected calibration error of a model, and the temperature that reduces it. Pure NumPy and SciPy.

A model is calibrated if, of all its answers given with a confidence of 80 %, 80 % are right. Trained networks are mostly
overconfident; dividing their logits by one number, the temperature, corrects most of that and changes no answer (Guo, Pleiss, Sun
and Weinberger, "On Calibration of Modern Neural Networks", arXiv:1706.04599).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from export.data.sample_size import enough_to_choose

BINS = 15
"""The number of bins that Guo et al. use."""

FOLDS = 5
"""Of the cross-validation of a temperature."""

_LOG_TEMPERATURES = (-math.log(20), math.log(20))


@dataclass(frozen=True)
class Reliability:
    """Answers in M bins of equal width by confidence: bin m holds confidences in (m/M, (m+1)/M].

    Attributes:
        items: answers in each bin, int64[M].
        accuracy: fraction of right answers in each bin, float64[M]; 0 for an empty bin.
        confidence: mean confidence in each bin, float64[M]; 0 for an empty bin.
    """

    items: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]

    @cached_property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over the answers' bins (Guo et al., equation 3).

        The estimate is biased upwards: on few images even a perfectly calibrated model has a positive error.
        """
        return float(np.abs(self.accuracy - self.confidence) @ self.items / self.items.sum())


def reliability(probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Bins answers, given as probabilities float32[N,K] and true classes int64[N], by confidence."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    items = np.bincount(bin_of, minlength=bins)
    filled = np.maximum(items, 1)
    return Reliability(
        items, np.bincount(bin_of, right, minlength=bins) / filled, np.bincount(bin_of, confidence, minlength=bins) / filled
    )


def choose_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature of `fit_temperature`, if it can be expected to help; else 1.

    It can where there are pictures enough, and where temperatures that were fitted on four fifths of them lower the cross-entropy
    of the remaining fifth, over all fifths (cross-validation).
    """
    if not enough_to_choose(len(labels)):
        return 1.0
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    before = after = 0.0
    for held_out in (fold == number for number in range(FOLDS)):
        temperature = fit_temperature(logits[~held_out], labels[~held_out])
        items = int(held_out.sum())
        before += items * _cross_entropy(logits[held_out], labels[held_out])
        after += items * _cross_entropy(logits[held_out] / temperature, labels[held_out])
    return fit_temperature(logits, labels) if after < before else 1.0


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature T that minimises the mean cross-entropy of softmax(logits / T), float32[N,K], on classes int64[N].

    Returns 1, which changes nothing, if the data do not determine a temperature between 1/20 and 20: with every image right the
    best temperature is 0, with logits worse than chance it is infinite, and with all logits equal every temperature is the best.
    """
    scores = logits.astype(np.float64)
    if (scores.argmax(axis=1) == labels).all():
        return 1.0

    def cross_entropy(log_temperature: float) -> float:  # convex in 1/T, so it has one minimum in log T too
        return _cross_entropy(scores * math.exp(-log_temperature), labels)

    found = minimize_scalar(cross_entropy, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6})
    at_a_bound = min(abs(found.x - bound) for bound in _LOG_TEMPERATURES) < 1e-3
    if at_a_bound or not found.fun < cross_entropy(0.0) - 1e-9:
        return 1.0
    return math.exp(found.x)


def _cross_entropy(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """The mean over the pictures, in nats."""
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]))


def without_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Undoes a temperature in probabilities float32[N,K].

    The logarithm of a softmax is its logits up to a constant for each row, so the probabilities suffice.
    """
    with np.errstate(divide="ignore"):  # a probability of 0 stays 0
        before: NDArray[np.float32] = softmax(temperature * np.log(probabilities), axis=1)
    return before
