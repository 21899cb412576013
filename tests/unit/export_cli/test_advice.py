"""What is said of data of which there are few."""

import dataclasses

import numpy as np

from export.cli import advice
from export.cli.summary import headline
from export.data import datasets
from export.data.datasets import Part
from export.evaluation.scores import Scores
from export.training.recipes import Settings

SETTINGS = Settings("article-cnn", 1)


def first(part: Part, items: int) -> Part:
    return dataclasses.replace(part, pixels=part.pixels[:items], labels=part.labels[:items])


def answers(dataset: datasets.Dataset, right: int) -> Scores:
    """The first so many pictures of the test part right."""
    labels = dataset.test.labels
    said = np.where(np.arange(len(labels)) < right, labels, (labels + 1) % 10)
    return Scores(dataset.labels, labels, np.eye(10, dtype=np.float32)[said])


def test_few_pictures_are_named_and_how_many_more_would_tell(digits: datasets.Dataset) -> None:
    assert advice.before_training(digits, SETTINGS) == []
    assert advice.after_test(answers(digits, 350), digits, SETTINGS) == []
    few = dataclasses.replace(
        digits, training=first(digits.training, 24), validation=first(digits.validation, 3), test=first(digits.test, 3)
    )
    line = advice.before_training(few, SETTINGS)[0]
    assert line.startswith("WARNING: 3 validation pictures are too few to choose by: the last epoch is kept")
    assert line.endswith("with 50 or more (47 more) they choose both")
    line = advice.after_test(answers(few, 1), few, SETTINGS)[-1]
    assert line.startswith("WARNING: 3 test pictures say the accuracy only to within 37 points; about 370 more would say it to ")
    assert line.endswith("within 5: 3,700 more pictures in all, if they are split as these are")


def test_rare_classes_and_classes_that_are_never_right_are_named(digits: datasets.Dataset) -> None:
    part = digits.training
    kept = np.flatnonzero((part.labels != 3) | (part.labels.cumsum() % 20 == 0))
    rare = dataclasses.replace(digits, training=dataclasses.replace(part, pixels=part.pixels[kept], labels=part.labels[kept]))
    [line] = advice.before_training(rare, SETTINGS)
    assert line.startswith("WARNING: '3' has ")
    assert "--class-weights auto or --balanced-sampling" in line
    assert advice.before_training(rare, dataclasses.replace(SETTINGS, balanced_sampling=True)) == []
    assert advice.before_training(rare, dataclasses.replace(SETTINGS, class_weights=(1.0,) * 10)) == []
    labels = np.array([0] * 98 + [1] * 2)
    never = Scores(("cat", "dog"), labels, np.tile(np.array([0.9, 0.1], np.float32), (100, 1)))
    assert (never.accuracy, never.balanced_accuracy, never.imbalanced) == (0.98, 0.5, True)
    assert advice.never_right(never) == ["WARNING: (nearly) never right: 'dog' (0 of 2 right)"]
    balanced = dataclasses.replace(SETTINGS, balanced_sampling=True)
    lines = [advice.after_test(never, digits, settings)[0] for settings in (SETTINGS, balanced)]
    assert ["--balanced-sampling" in line for line in lines] == [True, False], "advice that was not followed yet"
    said = headline(never).splitlines()
    assert said[0] == "balanced accuracy, the mean over the classes: 50.00%"
    assert said[-1] == "WARNING: (nearly) never right: 'dog' (0 of 2 right)"
    assert advice.never_right(answers(digits, 350)) == []
