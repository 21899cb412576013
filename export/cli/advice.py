"""What a person should know of the data before trusting figures: a line for each thing."""

from typing import TYPE_CHECKING

import numpy as np

from export.data.sample_size import ENOUGH_TO_CHOOSE, MARGIN, enough_to_choose, items_to_know
from export.text import first_of

if TYPE_CHECKING:
    from export.data.datasets import Dataset
    from export.evaluation.scores import Scores
    from export.training.recipes import Settings

_RARE = 10
"""A class with so many times fewer training pictures than another is said to be rare."""

_LISTED = 5
_REMEDY = "--class-weights auto or --balanced-sampling makes rare classes count as much as frequent ones"


def before_training(dataset: "Dataset", settings: "Settings") -> list[str]:
    """What is done otherwise for these data than for others, and why; and what may go wrong with them."""
    lines = []
    items = len(dataset.validation)
    if not enough_to_choose(items):
        lines.append(
            f"WARNING: {items} validation pictures are too few to choose by: the last epoch is kept, and export fits no "
            f"temperature; with {ENOUGH_TO_CHOOSE} or more ({ENOUGH_TO_CHOOSE - items} more) they choose both"
        )
    counts = np.bincount(dataset.training.labels, minlength=len(dataset.labels))
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] >= _RARE * counts[least] and not (settings.class_weights or settings.balanced_sampling):
        lines.append(
            f"WARNING: {dataset.labels[least]!r} has {counts[least]:,} training pictures and {dataset.labels[most]!r} "
            f"{counts[most]:,}: a network may do well by never answering the first; {_REMEDY}"
        )
    return lines


def after_test(scores: "Scores", dataset: "Dataset", settings: "Settings") -> list[str]:
    """Classes that are never right, and how many pictures more would say the accuracy to within MARGIN, if there are too few."""
    remedy = "" if settings.class_weights or settings.balanced_sampling or not scores.imbalanced else f"; {_REMEDY}"
    lines = [f"{line}{remedy}" for line in never_right(scores)]
    low, high = scores.accuracy_interval
    if high - low > 2 * MARGIN:
        items = scores.items
        more = items_to_know(scores.correct, items) - items
        every = len(dataset.training) + len(dataset.validation) + items
        lines.append(
            f"WARNING: {items} test pictures say the accuracy only to within {100 * (high - low) / 2:.0f} points; about {more:,} "
            f"more would say it to within {100 * MARGIN:.0f}: {round(more * every / items):,} more pictures in all, if they are "
            "split as these are"
        )
    return lines


def never_right(scores: "Scores") -> list[str]:
    """A line if there are classes whose pictures are never right, or nearly."""
    found = [f"{score.label!r} ({score.right} of {score.items} right)" for score in scores.never_right]
    return [f"WARNING: (nearly) never right: {first_of(found, _LISTED)}"] if found else []
