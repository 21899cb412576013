"""What the user asks of an import."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from export.convert.hidden_outputs import HiddenOutputs
from export.convert.precision import Precision
from export.importing.file_metadata import FileMetadata
from export.importing.network_input import LONGEST_SIDE, NetworkInput
from export.importing.recipe import Recipe
from export.importing.reference import Reference, Transform
from export.importing.score_head import SCORES, Scores
from service.errors import UserError

MakeRecipe = Callable[[NetworkInput, FileMetadata], Recipe]
"""Says how pictures are prepared for a network, whose sides are 0 where they are open."""

Say = Callable[[str], None]

_LAYOUTS = ("auto", "nchw", "nhwc")


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        name: of the model.
        repository: the folder of models; created if it is missing.
        labels: of the first head; None takes those of the file, of the data, or numbers.
        outputs: the heads, by the graph's values, each with its labels or None; empty to find the one.
        scores: what the first head's numbers are. The others' are found.
        threshold: of heads whose labels are each true or not.
        layout: `auto`, `nchw` or `nhwc`.
        input_shape: (height, width) where the graph leaves them open.
        hidden: further outputs.
        crop: the side of the square that is cut out of a picture: the size where neither the graph nor `input_shape` says it.
        data: a folder of labelled pictures.
        minimum_accuracy: the fraction of them that must be right.
        reference: a `.npz` of pictures and what the training made of them, or what is in one.
        transform: what the training made of a picture's bytes, as pixels [H,W,C].
        precision: what the layers compute in.
        max_accuracy_loss: fraction of the pictures that a lower precision may lose.
        dry_run: stop before the repository is written to.
        command: for the contract.
    """

    name: str
    repository: Path
    labels: tuple[str, ...] | None = None
    outputs: tuple[tuple[str, tuple[str, ...] | None], ...] = ()
    scores: Scores = "auto"
    threshold: float | None = None
    layout: str = "auto"
    input_shape: tuple[int, int] | None = None
    data: Path | None = None
    minimum_accuracy: float = 0.0
    reference: Path | Reference | None = None
    transform: Transform | None = None
    precision: Precision = "fp32"
    max_accuracy_loss: float = 0.005
    dry_run: bool = False
    command: str = ""
    crop: int | None = None
    hidden: HiddenOutputs = HiddenOutputs()  # noqa: RUF009 - it cannot change

    def __post_init__(self) -> None:
        """Raises UserError for what cannot be asked for, from the command line or from Python."""
        for name, value, accepted in (
            ("precision", self.precision, get_args(Precision)), ("scores", self.scores, SCORES), ("layout", self.layout, _LAYOUTS),
        ):  # fmt: skip
            if value not in accepted:
                raise UserError(f"{name} {value!r}: {', '.join(accepted)} are accepted")
        if self.input_shape is not None and not _is_size(self.input_shape):
            raise UserError(f"input_shape {self.input_shape!r}: (height, width) from 1 to {LONGEST_SIDE} is accepted")
        for name, fraction in (("minimum_accuracy", self.minimum_accuracy), ("max_accuracy_loss", self.max_accuracy_loss)):
            if not isinstance(fraction, float | int | np.floating) or not 0 <= fraction <= 1:
                raise UserError(f"{name} {fraction!r}: a fraction from 0 to 1 is accepted")
        if self.minimum_accuracy > 0 and self.data is None:
            raise UserError("--minimum-accuracy needs --data (in Python data=), a folder of labelled pictures")


def _is_size(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(side, int | np.integer) and 1 <= side <= LONGEST_SIDE for side in value)
    )
