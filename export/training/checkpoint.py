"""The run folder's `checkpoint.pt`: the best weights so far, ready to predict and to be exported, and the state to go on from.

One file holds both, so that they always belong together, and it is replaced whole after every epoch: a crash at any moment, of the
process or of the machine, leaves that of the epoch before. A training that ended as it should takes the state out.
"""

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.networks import architectures
from export.training.recipes import Settings
from service.errors import UserError
from service.model.contract import InputSpec

CHECKPOINT = "checkpoint.pt"
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with all that its export needs. `mean` and `std` are per channel, on the scale 0 to 255.

    `data` is the data set's name, `source` what loads it again and `data_digest` what tells whether it still is what it was;
    `augmentation` says in words what was done to training pictures, and `epoch` is the one that the weights are from.
    """

    network: nn.Module
    input: InputSpec
    labels: tuple[str, ...]
    data: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: Settings
    epoch: int
    source: str = ""
    data_digest: str = ""
    augmentation: str = ""


def save(checkpoint: Checkpoint, run: Path, state: dict[str, Any] | None = None) -> None:
    """Writes a checkpoint and, unless the training is finished, the `state` of tensors and plain values that it goes on from.

    Raises:
        UserError: the folder cannot be written; what stood there still stands.
    """
    fields = {**vars(checkpoint), "input": checkpoint.input.model_dump(), "settings": asdict(checkpoint.settings)}
    fields["network"] = checkpoint.network.state_dict()
    partial = run / f"{CHECKPOINT}.partial"
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, "best": fields, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(run / CHECKPOINT)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into the second
        raise UserError(f"cannot write {run / CHECKPOINT}: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def load_checkpoint(run: Path) -> Checkpoint:
    """Reads the best weights of a run folder, ready to predict. Raises UserError if there are none that can be read."""
    return load_with_state(run)[0]


def load_with_state(run: Path) -> tuple[Checkpoint, dict[str, Any] | None]:
    """Reads a run folder's checkpoint and the state to go on from: None if the training is finished. Raises as `load` does."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise UserError(
            f"{str(run)!r} is no folder of a run: it has no {CHECKPOINT} (`convoy train` makes one, when its first epoch ends)"
        )
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        fields = content["best"]
        settings, spec = Settings(**fields["settings"]), InputSpec(**fields["input"])
        network = architectures.build(settings.network, spec, len(fields["labels"]))
        network.load_state_dict(fields["network"])
        return Checkpoint(**{**fields, "network": network.eval(), "input": spec, "settings": settings}), content["state"]
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken pickle raises whatever it likes
        raise UserError(f"{path}: not a checkpoint that this version can read ({type(error).__name__})") from None
