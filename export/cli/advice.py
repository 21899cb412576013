"""What a person should know of the data before trusting figures: a line for each thing."""

from typing import TYPE_CHECKING

from export.data.sample_size import ENOUGH_TO_CHOOSE, MARGIN, accuracy_interval, enough_to_choose, items_to_know

if TYPE_CHECKING:
    from export.data.datasets import Dataset


def before_training(dataset: "Dataset") -> list[str]:
    """What is done otherwise for these data than for others, and why."""
    items = len(dataset.validation)
    if enough_to_choose(items):
        return []
    return [
        f"WARNING: {items} validation pictures are too few to choose by: the last epoch is kept, and export fits no temperature; "
        f"with {ENOUGH_TO_CHOOSE} or more ({ENOUGH_TO_CHOOSE - items} more) they choose both"
    ]


def after_test(correct: int, dataset: "Dataset") -> list[str]:
    """How many pictures more would say the accuracy to within MARGIN, if the test part is too small for that."""
    items = len(dataset.test)
    low, high = accuracy_interval(correct, items)
    if high - low <= 2 * MARGIN:
        return []
    more = items_to_know(correct, items) - items
    every = len(dataset.training) + len(dataset.validation) + items
    return [
        f"WARNING: {items} test pictures say the accuracy only to within {100 * (high - low) / 2:.0f} points; about {more:,} more "
        f"would say it to within {100 * MARGIN:.0f}: {round(more * every / items):,} more pictures in all, if they are split as "
        "these are"
    ]
