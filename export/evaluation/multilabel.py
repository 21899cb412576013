"""Scores of a head whose labels are true or not each by itself: precision, recall and average precision of every label."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label, as fractions. `precision` is None if it was never said, the others if no image has it.

    `average_precision` is the area under precision by recall over all thresholds.
    """

    label: str
    items: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None


@dataclass(frozen=True)
class MultilabelScores:
    """A model's answers to N images, of K labels.

    Attributes:
        labels: names of the K labels. What is not known of the images is not among them.
        truth: bool[N,K], which labels an image has.
        probabilities: float32[N,K].
        threshold: from this probability on, a label is said.
    """

    labels: tuple[str, ...]
    truth: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    threshold: float

    @property
    def items(self) -> int:
        """Number of images, N."""
        return len(self.truth)

    @cached_property
    def said(self) -> NDArray[np.bool_]:
        """bool[N,K]: the labels that are said of an image."""
        said: NDArray[np.bool_] = self.probabilities >= np.float32(self.threshold)
        return said

    @cached_property
    def classes(self) -> tuple[LabelScore, ...]:
        """The scores of every label, in the order of `labels`."""
        return tuple(self._of_label(index) for index in range(len(self.labels)))

    def _of_label(self, index: int) -> LabelScore:
        truth, said = self.truth[:, index], self.said[:, index]
        items, right = int(truth.sum()), int((truth & said).sum())
        area = float(average_precision_score(truth, self.probabilities[:, index])) if items else None
        return LabelScore(self.labels[index], items, *_precision_recall_f1(right, int(said.sum()), items), area)

    @property
    def mean_average_precision(self) -> float:
        """The mean of the labels' average precision, of those that an image has."""
        return float(np.mean([score.average_precision for score in self.classes if score.average_precision is not None]))

    @property
    def overall(self) -> tuple[float | None, float | None, float | None]:
        """Precision, recall and F1 of all that is said of all images together."""
        return _precision_recall_f1(int((self.truth & self.said).sum()), int(self.said.sum()), int(self.truth.sum()))

    @property
    def exact(self) -> float:
        """Fraction of images of which exactly their labels are said."""
        return float((self.truth == self.said).all(axis=1).mean())


def _precision_recall_f1(right: int, said: int, true: int) -> tuple[float | None, float | None, float | None]:
    return (right / said if said else None), (right / true if true else None), (2 * right / (said + true) if true else None)
