"""The gates that an exported file must pass: parity with PyTorch, and accuracy. Both look at the whole test part.

A file is compared with its reference: the network that it was made from, or, for a lower precision, the fp32 file.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.data.datasets import Part
from export.evaluation.measurement import batches, decode_images, true_classes
from export.evaluation.scores import Scores
from export.progress import OnCount, ignore_progress
from service.errors import UserError
from service.model.inference import Model

PARITY_TOLERANCE = 1e-4
"""Largest difference allowed between two probabilities."""

MAX_ACCURACY_LOSS = 0.005

Reference = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Probabilities float32[N,K] for decoded images uint8[N,H,W,C]."""


@dataclass(frozen=True)
class Comparison:
    """A file and its reference on the test part.

    Attributes:
        scores: of the file, from encoded images as they are served.
        reference_accuracy: of the reference, on decoded images.
        max_difference: largest difference between two probabilities for the same decoded image.
        same_top1: fraction of images with the same best label.
        changed_labels: number of images with another best label whose probabilities differ, in the reference, by more than
            PARITY_TOLERANCE. Closer labels are a tie, and a tie may go either way.
    """

    scores: Scores
    reference_accuracy: float
    max_difference: float
    same_top1: float
    changed_labels: int


def compare(
    served: Model, reference: Reference, test: Part, labels: tuple[str, ...], on_count: OnCount = ignore_progress
) -> Comparison:
    """Measures a loaded file as `measurement.measure` does, and compares it with its reference. Raises as `measure` does."""
    truth = true_classes(test, labels, served.contract.labels)
    spec = served.contract.input
    answers, right, difference, same, changed = [], 0, 0.0, 0, 0
    for batch in batches(len(test), spec):
        pixels, encoded = test.pixels[batch], decode_images(test, batch, spec)
        expected, found = reference(pixels), served.probabilities(pixels)
        # The files normally decode to the very same pixels; then one run answers for both.
        answers.append(found if np.array_equal(pixels, encoded) else served.probabilities(encoded))
        right += int((expected.argmax(axis=1) == truth[batch]).sum())
        difference = float(np.maximum(difference, np.abs(found - expected).max()))  # np.maximum keeps NaN
        same += int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
        changed += int((_label_gap(expected, found) > PARITY_TOLERANCE).sum())
        on_count(batch.stop, len(test))
    scores = Scores(served.contract.labels, truth, np.concatenate(answers), served.contract.temperature)
    return Comparison(scores, right / len(test), difference, same / len(test), changed)


def check_parity(comparison: Comparison) -> None:
    """Raises UserError, with the figures, unless the file answers as PyTorch does."""
    if not comparison.max_difference <= PARITY_TOLERANCE or comparison.changed_labels:
        raise UserError(
            f"parity gate: ONNX and PyTorch differ by up to {comparison.max_difference:.2g} (allowed: {PARITY_TOLERANCE:.0e}) and "
            f"agree on {comparison.same_top1:.2%} of {comparison.scores.items} images; {comparison.changed_labels} labels "
            f"changed whose probabilities in PyTorch differ by more than {PARITY_TOLERANCE:.0e} (allowed: 0); nothing was written"
        )


def check_accuracy(comparison: Comparison, minimum: float, max_loss: float = MAX_ACCURACY_LOSS, reference: str = "PyTorch") -> None:
    """Raises UserError, with the figures, if the file is too inaccurate.

    Args:
        comparison: of the file with its reference.
        minimum: fraction of the test part that must be right.
        max_loss: fraction of the test part by which the file may be below its reference.
        reference: its name in the message.
    """
    scores = comparison.scores
    lost = comparison.reference_accuracy - scores.accuracy
    if lost > max_loss + 1e-9:
        raise UserError(
            f"accuracy gate: {scores.accuracy:.2%} as served against {comparison.reference_accuracy:.2%} in {reference}, on "
            f"{scores.items} images: {100 * lost:.2f} points lost (allowed: {100 * max_loss:g}); nothing was written"
        )
    if scores.accuracy < minimum:
        raise UserError(
            f"accuracy gate: {scores.accuracy:.2%} on {scores.items} images is below the minimum of {minimum:.2%}; "
            "nothing was written"
        )


def _label_gap(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n]: the reference's probability of its best label less that of the file's best label; 0 where they agree."""
    of_found_label = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    gap: NDArray[np.float32] = expected.max(axis=1) - of_found_label
    return gap
