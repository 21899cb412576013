"""Classes of which there are few: weights of the loss, and a sampling that shows every class equally often."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.files import read_file
from export.text import first_of
from service.errors import UserError

_HEADER = ["class", "weight"]
_ACCEPTED = "a CSV file with rows of class,weight, weights above 0, is accepted"
_LISTED = 5


def automatic_weights(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """A weight for each class, by which all classes weigh the same in the loss: N / (K n) for a class with n of the N images.

    Their mean over the images of int64[N] is 1, so that the learning rate need not change.
    """
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return tuple(float(f"{weight:.6g}") for weight in len(labels) / (classes * counts))


def read_class_weights(path: Path) -> dict[str, float]:
    """The weights in a file, by class.

    Raises:
        UserError: the file cannot be read, is no such CSV, or has a class twice.
    """
    found: dict[str, float] = {}
    try:
        rows = csv.reader(io.StringIO(read_file(path).decode("utf-8-sig")), strict=True)
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not cells or (rows.line_num == 1 and [cell.lower() for cell in cells] == _HEADER):
                continue
            if len(cells) != 2 or not 0 < float(cells[1]) < math.inf:
                raise ValueError(f"line {rows.line_num}: {','.join(cells)}")
            if cells[0] in found:
                raise ValueError(f"line {rows.line_num}: {cells[0]!r} is there twice")
            found[cells[0]] = float(cells[1])
    except (ValueError, csv.Error) as error:
        raise UserError(f"--class-weights {path}: {error}; {_ACCEPTED}") from None
    if not found:
        raise UserError(f"--class-weights {path}: has no weights; {_ACCEPTED}")
    return found


def given_weights(given: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """A weight for each of the classes; 1 for those that are not given. Raises UserError if one that is given is no class."""
    if strange := [repr(name) for name in given if name not in names]:
        raise UserError(
            f"--class-weights has {first_of(strange, _LISTED)}, which the data do not have; their classes are "
            f"{first_of([repr(name) for name in names], _LISTED)}"
        )
    return tuple(given.get(name, 1.0) for name in names)


def summed_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float) -> torch.Tensor:
    """The sum of the cross-entropies of logits float32 (n, K), each weighed by the image's class.

    PyTorch's own weights would weigh the share of a smoothed label that every image has of a rare class, too: with a weight of 20
    that is more than the image's own label, and every answer becomes the rare class.
    """
    if weights is None:
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none") @ weights[labels]


def balanced_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Indices of the images of an epoch, int64[N] for the labels int64[N]: as many of every class, to one, in random order.

    Of a class none is taken again before all have been. So of a class with many images an epoch has a part.
    """
    present = torch.unique(labels)
    ends = [len(labels) * number // len(present) for number in range(len(present) + 1)]
    chosen = []
    for label, start, end in zip(present, ends, ends[1:], strict=False):
        own = torch.nonzero(labels == label).flatten()
        rounds = -(-(end - start) // len(own))
        chosen.append(torch.cat([own[torch.randperm(len(own), generator=generator)] for _ in range(rounds)])[: end - start])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=generator)]
