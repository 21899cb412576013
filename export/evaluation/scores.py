"""How well a model file answers, measured through the code that serves it, and the gates that an export must pass.

Pictures go the way they go in the server: from encoded bytes through `service.model.preprocessing` to `service.model.session`,
a batch at a time, so that a part of any size fits into memory. Needs neither PyTorch nor onnx.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from export.data.datasets import Part
from export.evaluation.calibration import Reliability, reliability, without_temperature
from export.progress import OnCount, ignore_progress
from service.errors import InvalidRequest, UserError
from service.model.contract import InputSpec
from service.model.preprocessing import decode
from service.model.session import Model

PARITY = 1e-4
ACCURACY_LOSS = 0.005
_BATCH_ITEMS = 256
_BATCH_BYTES = 1 << 24
_MAX_PIXELS = 1 << 26

Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Probabilities float32[N,K] for decoded pictures uint8[N,H,W,C]."""


@dataclass(frozen=True)
class ClassScore:
    """How one class fares, as fractions. `precision` is None if the class was never answered, `recall` if it has no pictures."""

    label: str
    items: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Scores:
    """What a model answered to a part of the data, and all that follows from it.

    `truth` int64[N] are the classes of the pictures, as indices of `labels`, and `probabilities` float32[N,K] the answers, which
    have `temperature` inside.
    """

    labels: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    temperature: float = 1.0

    @property
    def items(self) -> int:
        """How many pictures there were."""
        return len(self.truth)

    @cached_property
    def answers(self) -> NDArray[np.int64]:
        """int64[N]: the most probable class of each picture."""
        answers: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return answers

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """float32[N]: the probability of each answer."""
        confidence: NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidence

    @cached_property
    def correct(self) -> int:
        """How many pictures were answered right."""
        return int((self.answers == self.truth).sum())

    @property
    def accuracy(self) -> float:
        """The fraction that was answered right."""
        return self.correct / self.items

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `accuracy`."""
        return wilson_interval(self.correct, self.items)

    @cached_property
    def classes(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of every class, in the order of `labels`."""
        every = range(len(self.labels))
        fractions = precision_recall_fscore_support(self.truth, self.answers, labels=every, zero_division=np.nan)[:3]
        items = np.bincount(self.truth, minlength=len(self.labels))
        return tuple(
            ClassScore(label, int(count), *(None if math.isnan(value) else float(value) for value in row))
            for label, count, *row in zip(self.labels, items, *fractions, strict=True)
        )

    @cached_property
    def hardest(self) -> ClassScore:
        """The class of the lowest recall, of those that have pictures."""
        return min((score for score in self.classes if score.recall is not None), key=lambda score: score.recall or 0.0)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """int64[K,K]: how many pictures of the row's class were answered with the column's."""
        counts: NDArray[np.int64] = confusion_matrix(self.truth, self.answers, labels=range(len(self.labels)))
        return counts

    def confused(self, most: int) -> list[tuple[str, str, int]]:
        """The most frequent mistakes, most frequent first: true label, answered label, how often."""
        mistakes = self.confusion * (1 - np.eye(len(self.labels), dtype=np.int64))
        order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
        return [
            (self.labels[true], self.labels[answer], int(mistakes[true, answer]))
            for true, answer in pairs
            if mistakes[true, answer]
        ]

    def mistakes(self, most: int) -> NDArray[np.int64]:
        """Indices of the wrong answers, int64[at most `most`], the most confident first."""
        wrong = np.flatnonzero(self.answers != self.truth)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most]

    @cached_property
    def reliability(self) -> Reliability:
        """Calibration of the answers as they are served."""
        return reliability(self.probabilities, self.truth)

    @cached_property
    def reliability_before(self) -> Reliability:
        """Calibration of the answers as they would be without the temperature."""
        return reliability(without_temperature(self.probabilities, self.temperature), self.truth)

    @property
    def cross_entropy(self) -> float:
        """Mean of -log(probability of the true class), in nats."""
        of_truth = self.probabilities[np.arange(len(self.truth)), self.truth].astype(np.float64)
        return float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean())


@dataclass(frozen=True)
class Report:
    """What an export was judged by, on the test part.

    `scores` are the file's, through encoded pictures as they are served; `reference_accuracy` is that of what it was made from, on
    decoded ones: PyTorch, or, for a lower precision, the fp32 file. `max_difference` is the largest between two probabilities,
    `same_top1` the fraction of pictures with the same best label, and `changed_labels` counts those with another one for which
    near-equal probabilities are no excuse.
    """

    scores: Scores
    reference_accuracy: float
    max_difference: float
    same_top1: float
    changed_labels: int


def measure(served: Model, part: Part, labels: tuple[str, ...], on_count: OnCount = ignore_progress) -> Scores:
    """Asks a loaded model about every encoded picture of a part whose classes are `labels`, in any order.

    Raises:
        UserError: the classes are not those of the model, or a picture cannot be decoded.
    """
    truth = truth_of(part, labels, served.contract.labels)
    answers = []
    for chosen in batches(len(part), served.contract.input):
        answers.append(served.probabilities(_decoded(part, chosen, served.contract.input)))
        on_count(chosen.stop, len(part))
    return Scores(served.contract.labels, truth, np.concatenate(answers), served.contract.training.temperature)


def compare(served: Model, network: Network, test: Part, labels: tuple[str, ...], on_count: OnCount = ignore_progress) -> Report:
    """Measures a loaded file as `measure` does, beside the network that it was made from."""
    truth = truth_of(test, labels, served.contract.labels)
    spec = served.contract.input
    answers, right, difference, same, changed = [], 0, 0.0, 0, 0
    for chosen in batches(len(test), spec):
        pixels, encoded = test.pixels[chosen], _decoded(test, chosen, spec)
        expected, got = network(pixels), served.probabilities(pixels)
        # Where the files decode to the very pixels, as they should, the answer to both is one.
        answers.append(got if np.array_equal(pixels, encoded) else served.probabilities(encoded))
        right += int((expected.argmax(axis=1) == truth[chosen]).sum())
        difference = float(np.maximum(difference, np.abs(got - expected).max()))  # a NaN stays one
        same += int((got.argmax(axis=1) == expected.argmax(axis=1)).sum())
        changed += int((_lost_by(expected, got) > PARITY).sum())
        on_count(chosen.stop, len(test))
    scores = Scores(served.contract.labels, truth, np.concatenate(answers), served.contract.training.temperature)
    return Report(scores, right / len(test), difference, same / len(test), changed)


def check_parity(report: Report) -> None:
    """Raises UserError with the figures unless the file answers as PyTorch does."""
    if not report.max_difference <= PARITY or report.changed_labels:
        raise UserError(
            f"parity gate: ONNX and PyTorch differ by {report.max_difference:.2g} at most (allowed: {PARITY:.0e}) and agree on "
            f"{report.same_top1:.2%} of {report.scores.items} pictures; {report.changed_labels} labels changed that are further "
            f"apart than {PARITY:.0e} in PyTorch (allowed: 0); nothing was written"
        )


def check_accuracy(report: Report, minimum: float, max_loss: float = ACCURACY_LOSS, made_from: str = "PyTorch") -> None:
    """Raises UserError with the figures if the file is below a minimum, or more than `max_loss` below what it was made from."""
    scores = report.scores
    lost = report.reference_accuracy - scores.accuracy
    if lost > max_loss + 1e-9:
        raise UserError(
            f"accuracy gate: {scores.accuracy:.2%} as served against {report.reference_accuracy:.2%} in {made_from}, on "
            f"{scores.items} pictures: {100 * lost:.2f} points lost (allowed: {100 * max_loss:g}); nothing was written"
        )
    if scores.accuracy < minimum:
        raise UserError(
            f"accuracy gate: {scores.accuracy:.2%} on {scores.items} pictures is below the minimum of {minimum:.2%}; "
            "nothing was written"
        )


def check_labels(labels: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raises UserError, which names the differences, unless the data's labels are those of the model, in whatever order."""
    if set(labels) == set(known):
        return
    only_data, only_known = (
        [label for label in ours if label not in theirs] for ours, theirs in ((labels, known), (known, labels))
    )
    differences = [f"only the data has {_listed(only_data)}"] * bool(only_data)
    differences += [f"only the model has {_listed(only_known)}"] * bool(only_known)
    raise UserError(f"the data's {len(labels)} labels are not the model's {len(known)}: {'; '.join(differences)}")


def truth_of(part: Part, labels: tuple[str, ...], known: tuple[str, ...]) -> NDArray[np.int64]:
    """The classes of a part's pictures by their index in `known`, the model's labels, instead of in `labels`, the data's."""
    check_labels(labels, known)
    if not len(part):
        raise UserError("there is no picture in this part of the data: nothing can be measured")
    return np.array([known.index(label) for label in labels], np.int64)[part.labels]


def predict(served: Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities float32[N,K] for decoded images uint8[N,H,W,C], in batches."""
    return np.concatenate([served.probabilities(images[chosen]) for chosen in batches(len(images), served.contract.input)])


def batches(items: int, spec: InputSpec) -> Iterator[slice]:
    """Slices of a part that fit anywhere: fewer pictures at a time the larger they are."""
    size = max(1, min(_BATCH_ITEMS, _BATCH_BYTES // spec.size_bytes))
    return (slice(at, min(at + size, items)) for at in range(0, items, size))


def wilson_interval(correct: int, items: int) -> tuple[float, float]:
    """The 95 % confidence interval of a fraction (Wilson's score interval, J. Am. Stat. Assoc. 22, 1927)."""
    z = 1.959964
    fraction = correct / items
    centre = (fraction + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * math.sqrt(fraction * (1 - fraction) / items + z * z / (4 * items * items))
    return max(0.0, centre - half), min(1.0, centre + half)


def _decoded(part: Part, chosen: slice, spec: InputSpec) -> NDArray[np.uint8]:
    """Pictures of a part as the server decodes them: uint8[n,H,W,C]."""
    pictures = np.empty((chosen.stop - chosen.start, *spec.shape), np.uint8)
    for index in range(chosen.start, chosen.stop):
        try:
            pictures[index - chosen.start] = decode(part.encoded(index), spec, _MAX_PIXELS)
        except InvalidRequest as error:
            raise UserError(f"picture {index} of the data: {error}") from None
    return pictures


def _lost_by(expected: NDArray[np.float32], got: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much PyTorch's probability of the label that the file answers is below that of its own; 0 where they agree.

    Two labels closer than the parity tolerance are a tie as far as parity can tell, and either may win it.
    """
    theirs = np.take_along_axis(expected, got.argmax(axis=1)[:, None], axis=1)[:, 0]
    lost: NDArray[np.float32] = expected.max(axis=1) - theirs
    return lost


def _listed(labels: list[str]) -> str:
    shown = ", ".join(repr(label) for label in labels[:10])
    return f"{shown} and {len(labels) - 10} more" if len(labels) > 10 else shown
