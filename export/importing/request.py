"""What the user asks of an import."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.convert.precision import Precision
from export.importing.file_metadata import FileMetadata
from export.importing.network_input import NetworkInput
from export.importing.recipe import Recipe
from export.importing.reference import Reference, Transform
from export.importing.score_head import Scores

MakeRecipe = Callable[[NetworkInput, FileMetadata], Recipe]
"""Says how pictures are prepared for a network, whose sides are 0 where they are open."""

Say = Callable[[str], None]


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
