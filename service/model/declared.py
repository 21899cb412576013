"""What its `serving.toml` says of a model without a contract: which output holds the scores, and what their numbers are."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

SaidScores = Literal["auto", "logits", "probabilities", "log-probabilities", "sigmoid", "multilabel"]
"""What the numbers of the scores are.

`auto`: probabilities if they are some on trial, else numbers of which the highest is best. `sigmoid`: one number, of the second of
two labels. `multilabel`: a number for each label, by itself. Of the last two either probabilities or, where they are not within
0 to 1 on trial, what the sigmoid makes probabilities of. One number as `logits` or `probabilities` is of the second label, too.
"""


class Declared(NamedTuple):
    """What is said; empty where nothing is.

    Attributes:
        output: the name of the scores' output.
        scores: what its numbers are.
        input_shape: sizes of the input's dimensions that the graph leaves open, in their order, or of all but the batch's.
        labels: names of the classes by output.
        labels_from: the file that they are of.
        labelled: outputs that have labels of their own, of which the first holds the scores, if none is named.
        offered: outputs that clients get, of which one holds the scores if one may; empty if all are.
        open_sizes: as `input_shape`, but only for what is open; what does not fit is left to whoever compares it with the graph.
    """

    output: str = ""
    scores: SaidScores = "auto"
    input_shape: tuple[int, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = {}
    labels_from: str = "serving.toml"
    labelled: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    open_sizes: tuple[int, ...] = ()


NOTHING_DECLARED = Declared()


def bound_shape(dimensions: tuple[int, ...], input_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The input's dimensions, but for the batch's, with `input_shape` where they are 0, which is open; None if it does not fit."""
    if not input_shape:
        return dimensions
    if len(input_shape) == len(dimensions):
        return input_shape if all(size in (0, given) for size, given in zip(dimensions, input_shape, strict=True)) else None
    if len(input_shape) != dimensions.count(0):
        return None
    given = iter(input_shape)
    return tuple(size or next(given) for size in dimensions)
