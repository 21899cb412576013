"""The run folder's `checkpoint.pt`: the weights of the best epoch so far and, until training ends, the state to resume from.

One file holds both, so that they always belong together. It is replaced as a whole after every epoch: a crash of the process or the
machine leaves the checkpoint of the epoch before.
"""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.files import write_file, writing
from export.networks import architectures, custom
from export.networks.custom import Code
from export.training.recipes import Settings
from service.errors import UserError
from service.model.input_spec import InputSpec

CHECKPOINT = "checkpoint.pt"
FORMAT = 2
"""Increased when checkpoints of an older version can no longer be loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with everything that its export needs.

    Attributes:
        network: the network, on the CPU.
        input: the images that it takes.
        labels: the names of its classes.
        data: the name of the data set that it was trained on.
        mean: of the training pixels, for each channel, on the scale 0 to 255.
        std: their standard deviation, likewise.
        settings: how it was trained.
        epoch: the epoch that the weights are from.
        source: what `load_dataset` takes to load the data set again.
        data_digest: the data set's digest, which tells whether it has changed since.
        augmentation: how the training images were changed, in words.
        code: where the code of a network of the user's own was; None for a network of Convoy's.
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
    code: Code | None = None


def save_checkpoint(checkpoint: Checkpoint, run: Path, state: dict[str, Any] | None = None) -> None:
    """Writes a checkpoint, with the state of tensors and plain values to resume from unless training is finished.

    Raises:
        UserError: the file cannot be written; the one before is kept.
    """
    fields = {**vars(checkpoint), "input": checkpoint.input.model_dump(), "settings": asdict(checkpoint.settings)}
    fields["network"] = checkpoint.network.state_dict()
    fields["code"] = checkpoint.code and checkpoint.code._asdict()
    content = io.BytesIO()  # torch.save hides the reason when it cannot write
    with writing(run / CHECKPOINT):
        torch.save({"format": FORMAT, "best": fields, "state": state}, content)
    write_file(run / CHECKPOINT, content.getvalue())


def load_checkpoint(run: Path, network: str | None = None) -> Checkpoint:
    """Loads the best weights of a run.

    Args:
        run: the run's folder.
        network: where the code of its network is now, if it is one of the user's own and has moved.

    Raises:
        UserError: the folder has no checkpoint, it cannot be read, or the code of its network is missing or another.
    """
    return _load(run, network)[0]


def load_interrupted(run: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Loads the best weights of an unfinished run and the state to resume from.

    Raises:
        UserError: as `load_checkpoint`; or the run is finished.
    """
    best, state = _load(run)
    if state is None:
        raise UserError(f"the run in {str(run)!r} is finished: there is nothing to resume")
    return best, state


def _load(run: Path, moved: str | None = None) -> tuple[Checkpoint, dict[str, Any] | None]:
    path = run / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{str(run)!r} has no {CHECKPOINT}: it is not a run of `convoy train`, or its first epoch has not ended")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise UserError(f"{path}: a checkpoint of format {content['format']!r}; this version reads format {FORMAT}")
        fields = content["best"]
        settings, spec = Settings(**fields["settings"]), InputSpec(**fields["input"])
        code = Code(**fields["code"]) if fields.get("code") else None
        network = architectures.build(_buildable(path, settings.network, code, moved), spec, len(fields["labels"]))
        network.load_state_dict(fields["network"])
        fields |= {"network": network.eval(), "input": spec, "settings": settings, "code": code}
        return Checkpoint(**fields), content["state"]
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken pickle can raise anything
        raise UserError(f"{path}: not a checkpoint that this version can read ({type(error).__name__})") from None


def _buildable(path: Path, network: str, code: Code | None, moved: str | None) -> str:
    """What `architectures.build` takes. Code of the user's own is only run if its file is the one that the run was trained with."""
    if code is None:
        if moved is not None:
            raise UserError(f"--network {moved}: the network of this run is Convoy's {network}, which has not moved")
        if architectures.is_custom(network):
            raise UserError(f"{path}: its network is {network}, and nothing says what was in that file")
        return network
    if moved is not None and not architectures.is_custom(moved):
        raise UserError(f"--network {moved}: the network of this run is {code.network}; accepted is {custom.HOW}")
    try:
        return custom.find(moved or code.network, code.digest).network
    except UserError as error:
        raise UserError(
            f"{path}: the code of its network, then in {code.file}, cannot be used: {error}; if it has moved, give --network "
            f"{custom.HOW}"
        ) from None
