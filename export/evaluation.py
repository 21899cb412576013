"""How well a model file answers, measured through the code that serves it, and the gates that an export must pass."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.data import Part
from service.errors import UserError
from service.model import Model
from service.preprocessing import decode

PARITY = 1e-4
ACCURACY_LOSS = 0.005
_BATCH_ITEMS = 256
_MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class Report:
    """What was measured on a test part of `items` pictures.

    `accuracy` is a fraction, through encoded pictures as they are served; `reference_accuracy` is PyTorch's on decoded ones.
    `max_difference` is the largest between two probabilities, `same_top1` the fraction of pictures with the same best label.
    """

    items: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    reference_accuracy: float
    max_difference: float
    same_top1: float


def compare(served: Model, reference: NDArray[np.float32], test: Part) -> Report:
    """Measures a loaded file against PyTorch's probabilities, float32[N,K], for the same pictures."""
    spec = served.contract.input
    decoded = predict(served, test.pixels)
    encoded = predict(served, np.stack([decode(test.encoded(index), spec, _MAX_PIXELS) for index in range(len(test))]))
    correct = int((encoded.argmax(axis=1) == test.labels).sum())
    return Report(
        items=len(test),
        accuracy=correct / len(test),
        accuracy_interval=wilson_interval(correct, len(test)),
        reference_accuracy=float((reference.argmax(axis=1) == test.labels).mean()),
        max_difference=float(np.abs(decoded - reference).max()),
        same_top1=float((decoded.argmax(axis=1) == reference.argmax(axis=1)).mean()),
    )


def check(report: Report, minimum_accuracy: float) -> None:
    """Raises UserError with the figures if a gate fails."""
    if not report.max_difference <= PARITY or report.same_top1 != 1.0:
        raise UserError(
            f"parity gate: ONNX and PyTorch differ by {report.max_difference:.2g} at most (allowed: {PARITY:.0e}) and agree on "
            f"{report.same_top1:.2%} of {report.items} pictures (needed: 100 %); nothing was written"
        )
    if report.accuracy < report.reference_accuracy - ACCURACY_LOSS:
        raise UserError(
            f"accuracy gate: {report.accuracy:.2%} as served against {report.reference_accuracy:.2%} in PyTorch, on {report.items} "
            f"pictures (allowed loss: {ACCURACY_LOSS:.1%}); nothing was written"
        )
    if report.accuracy < minimum_accuracy:
        raise UserError(
            f"accuracy gate: {report.accuracy:.2%} on {report.items} pictures is below the minimum of {minimum_accuracy:.2%}; "
            "nothing was written"
        )


def predict(served: Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities float32[N,K] for images uint8[N,H,W,C], in batches."""
    return np.concatenate([served.predict(images[at : at + _BATCH_ITEMS]) for at in range(0, len(images), _BATCH_ITEMS)])


def wilson_interval(correct: int, items: int) -> tuple[float, float]:
    """The 95 % confidence interval of a fraction (Wilson's score interval, J. Am. Stat. Assoc. 22, 1927)."""
    z = 1.959964
    fraction = correct / items
    centre = (fraction + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * math.sqrt(fraction * (1 - fraction) / items + z * z / (4 * items * items))
    return max(0.0, centre - half), min(1.0, centre + half)
