"""Scores of made-up answers."""

import numpy as np

from export.evaluation.scores import Scores


def scores_of(
    truth: list[int], answers: list[int], confidence: float = 0.9, labels: tuple[str, ...] = ("cat", "dog", "owl")
) -> Scores:
    """Answers given with one confidence, what is left of it shared by the other labels."""
    probabilities = np.full((len(truth), len(labels)), (1 - confidence) / (len(labels) - 1), np.float32)
    probabilities[np.arange(len(truth)), answers] = confidence
    return Scores(labels, np.array(truth), probabilities)
