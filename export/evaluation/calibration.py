"""How far a model's confidence can be believed, and the temperature that mends it.

A model is calibrated if, of all its answers given with a confidence of 80 %, 80 % are right. Trained networks are mostly surer than
they should be; dividing their logits by one number, the temperature, mends most of that and changes no answer (Guo, Pleiss, Sun and
Weinberger, "On Calibration of Modern Neural Networks", arXiv:1706.04599). Knows nothing of files, PyTorch or pictures.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

BINS = 15
"""As many as Guo et al. take."""

_LOG_TEMPERATURES = (-math.log(20), math.log(20))


@dataclass(frozen=True)
class Reliability:
    """Answers by confidence, in bins of equal width: bin m of M holds confidences in (m/M, (m+1)/M].

    `items` int64[M] counts the answers of a bin; `accuracy` and `confidence`, float64[M], are fractions, means over the bin and 0
    where it is empty.
    """

    items: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]

    @cached_property
    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over all answers' bins (Guo et al., equation 3).

        The estimate is never below 0, so on few pictures a perfectly calibrated model has some of it too.
        """
        return float(np.abs(self.accuracy - self.confidence) @ self.items / self.items.sum())


def reliability(probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Sorts answers, probabilities float32[N,K] to pictures of classes int64[N], into bins by their confidence."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    items = np.bincount(bin_of, minlength=bins)
    filled = np.maximum(items, 1)
    return Reliability(
        items, np.bincount(bin_of, right, minlength=bins) / filled, np.bincount(bin_of, confidence, minlength=bins) / filled
    )


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature T that minimises the mean cross-entropy of softmax(logits / T), float32[N,K], on classes int64[N].

    Gives 1, which changes nothing, where the data do not determine a temperature between 1/20 and 20: where every picture is right
    the best one is 0 (ever surer), where the logits say less than nothing it is infinite, and where they are all alike any will do.
    """
    scores = logits.astype(np.float64)
    if (scores.argmax(axis=1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def cross_entropy(log_temperature: float) -> float:  # convex in 1/T, so it has one minimum on this scale too
        scaled = scores * math.exp(-log_temperature)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[rows, labels]))

    found = minimize_scalar(cross_entropy, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6})
    at_a_bound = min(abs(found.x - bound) for bound in _LOG_TEMPERATURES) < 1e-3
    if at_a_bound or not found.fun < cross_entropy(0.0) - 1e-9:
        return 1.0
    return math.exp(found.x)


def without_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """What probabilities float32[N,K] with a temperature inside would be without it.

    The logarithm of a softmax is its logits but for a constant a row, so nothing else is needed.
    """
    with np.errstate(divide="ignore"):  # a probability of 0 stays 0
        before: NDArray[np.float32] = softmax(temperature * np.log(probabilities), axis=1)
    return before
