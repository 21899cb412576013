"""What is said of data of which there are few."""

import dataclasses

from export.cli import advice
from export.data import datasets
from export.data.datasets import Part


def first(part: Part, items: int) -> Part:
    return dataclasses.replace(part, pixels=part.pixels[:items], labels=part.labels[:items])


def test_few_pictures_are_named_and_how_many_more_would_tell(digits: datasets.Dataset) -> None:
    assert advice.before_training(digits) == []
    assert advice.after_test(350, digits) == []
    few = dataclasses.replace(
        digits, training=first(digits.training, 24), validation=first(digits.validation, 3), test=first(digits.test, 3)
    )
    [line] = advice.before_training(few)
    assert line.startswith("WARNING: 3 validation pictures are too few to choose by: the last epoch is kept")
    assert line.endswith("with 50 or more (47 more) they choose both")
    [line] = advice.after_test(1, few)
    assert line.startswith("WARNING: 3 test pictures say the accuracy only to within 37 points; about 370 more would say it to ")
    assert line.endswith("within 5: 3,700 more pictures in all, if they are split as these are")
