"""A model's predictions for a part of the data: accuracy, scores by class, confusions and calibration. No files, no model."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from export.data.sample_size import accuracy_interval
from export.evaluation.calibration import Reliability, reliability, without_temperature

IMBALANCED = 3.0
"""From so many times as many images of one class as of another on, the accuracy is mostly that of the frequent classes."""

NEVER_RIGHT = 0.1
"""Up to this recall a class is (nearly) never right."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class, as fractions. `precision` is None if no answer was this class, `recall` if it has no images.

    `recall_interval` is the 95 % confidence interval of `recall`.
    """

    label: str
    items: int
    precision: float | None
    recall: float | None
    f1: float | None
    recall_interval: tuple[float, float] | None = None

    @property
    def right(self) -> int:
        """How many of its images are right."""
        return round((self.recall or 0.0) * self.items)


@dataclass(frozen=True)
class Scores:
    """A model's answers to N images of K classes.

    Attributes:
        labels: names of the K classes.
        truth: true class of each image, int64[N], as an index of `labels`.
        probabilities: float32[N,K], with the temperature applied.
        temperature: what the logits were divided by.
    """

    labels: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    temperature: float = 1.0

    @property
    def items(self) -> int:
        """Number of images, N."""
        return len(self.truth)

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """int64[N]: the most probable class of each image."""
        predictions: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predictions

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """float32[N]: the probability of each answer."""
        confidence: NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidence

    @cached_property
    def correct(self) -> int:
        """Number of right answers."""
        return int((self.predictions == self.truth).sum())

    @property
    def accuracy(self) -> float:
        """Fraction of right answers."""
        return self.correct / self.items

    @cached_property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes with images: the accuracy if each had as many."""
        recalls = [score.recall for score in self.classes if score.recall is not None]
        return sum(recalls) / len(recalls)

    @cached_property
    def imbalanced(self) -> bool:
        """Whether some classes with images have IMBALANCED times as many as others."""
        counts = [score.items for score in self.classes if score.items]
        return max(counts) >= IMBALANCED * min(counts)

    @cached_property
    def never_right(self) -> tuple[ClassScore, ...]:
        """The classes with images of which at most NEVER_RIGHT are right."""
        return tuple(score for score in self.classes if score.recall is not None and score.recall <= NEVER_RIGHT)

    def top_accuracy(self, most: int) -> float:
        """Fraction of images whose true class is among the `most` most probable ones."""
        of_truth = np.take_along_axis(self.probabilities, self.truth[:, None], axis=1)
        return float(((self.probabilities > of_truth).sum(axis=1) < most).mean())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `accuracy`."""
        return accuracy_interval(self.correct, self.items)

    @cached_property
    def classes(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of every class, in the order of `labels`."""
        every = range(len(self.labels))
        fractions = precision_recall_fscore_support(self.truth, self.predictions, labels=every, zero_division=np.nan)[:3]
        items = np.bincount(self.truth, minlength=len(self.labels))
        right = np.bincount(self.truth[self.predictions == self.truth], minlength=len(self.labels))
        rows = zip(self.labels, items.tolist(), right.tolist(), *fractions, strict=True)
        return tuple(
            ClassScore(
                label, count, _defined(precision), _defined(recall), _defined(f1), accuracy_interval(hits, count) if count else None
            )
            for label, count, hits, precision, recall, f1 in rows
        )

    @cached_property
    def hardest(self) -> ClassScore:
        """The class with the lowest recall, among the classes with images."""
        return min((score for score in self.classes if score.recall is not None), key=lambda score: score.recall or 0.0)

    @cached_property
    def occurring(self) -> NDArray[np.int64]:
        """int64[k]: the classes that occur, as true class or as answer; of a model with many labels it may be few."""
        return np.union1d(self.truth, self.predictions)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """int64[k,k]: images by true class (row) and answer (column), of the classes in `occurring`."""
        counts: NDArray[np.int64] = confusion_matrix(self.truth, self.predictions, labels=self.occurring)
        return counts

    def confused(self, most: int) -> list[tuple[str, str, int]]:
        """At most `most` kinds of mistake, most frequent first: true label, predicted label, count."""
        mistakes = self.confusion * (1 - np.eye(len(self.occurring), dtype=np.int64))
        order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
        return [
            (self.labels[self.occurring[true]], self.labels[self.occurring[answer]], int(mistakes[true, answer]))
            for true, answer in pairs
            if mistakes[true, answer]
        ]

    def mistakes(self, most: int) -> NDArray[np.int64]:
        """Indices of the wrong answers, int64[at most `most`], the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.truth)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most]

    @cached_property
    def reliability(self) -> Reliability:
        """Calibration of the answers as served."""
        return reliability(self.probabilities, self.truth)

    @cached_property
    def reliability_before(self) -> Reliability:
        """Calibration of the answers without the temperature."""
        if self.temperature == 1.0:
            return self.reliability
        return reliability(without_temperature(self.probabilities, self.temperature), self.truth)

    @property
    def cross_entropy(self) -> float:
        """Mean of -log(probability of the true class), in nats."""
        of_truth = self.probabilities[np.arange(len(self.truth)), self.truth].astype(np.float64)
        return float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean())


def _defined(fraction: float) -> float | None:
    """A fraction, None for NaN, as scikit-learn has what is not defined."""
    return None if math.isnan(fraction) else float(fraction)
