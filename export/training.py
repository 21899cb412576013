"""Trains a network and leaves a run folder: `checkpoint.pt`, `metrics.jsonl` (a line an epoch) and `curves.png`.

The checkpoint is that of the epoch with the lowest validation loss so far, written as soon as it is known, so that Ctrl-C leaves
a usable one. The test part is looked at once, by `test_accuracy`, with the checkpoint that was kept.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from export import networks
from export.data import Dataset, Part
from service.contract import InputSpec
from service.errors import UserError

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
CURVES = "curves.png"


@dataclass(frozen=True)
class Settings:
    """How to train. `learning_rate` is Adam's highest, on a one-cycle schedule."""

    network: str
    epochs: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are mean cross-entropies in nats, accuracies fractions, of the part named."""

    epoch: int
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with all that its export needs. `mean` and `std` are per channel, on the scale 0 to 255."""

    network: nn.Module
    input: InputSpec
    labels: tuple[str, ...]
    data: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: Settings
    epoch: int


Progress = Callable[[int, int, float, float], None]
"""Called after each step with: steps done, steps in all, mean loss and accuracy of the epoch so far."""


def train(
    dataset: Dataset,
    settings: Settings,
    run: Path,
    on_step: Progress = lambda done, total, loss, accuracy: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Checkpoint:
    """Trains with Adam (Kingma and Ba, arXiv:1412.6980) on a one-cycle schedule (Smith, arXiv:1803.09820), with random shifts.

    Returns the checkpoint of the epoch with the lowest validation loss.

    Raises:
        UserError: the network does not fit the data, or the training diverged.
    """
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = networks.build(settings.network, dataset.input, len(dataset.labels)).to(device)
    images, labels = _tensors(dataset.training)  # uint8 (N, C, H, W)
    mean, std = images.float().mean((0, 2, 3)), images.float().std((0, 2, 3)).clamp(min=1.0)
    validation = _tensors(dataset.validation)
    cuts = list(range(settings.batch_size, len(labels), settings.batch_size))
    batches = len(cuts) + 1
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.epochs * batches)
    normalise = _Normalise(mean, std, device)
    best_loss = float("inf")
    history = []
    for epoch in range(1, settings.epochs + 1):
        network.train()
        start = time.perf_counter()
        loss_sum, correct, seen = 0.0, 0, 0
        for step, chosen in enumerate(torch.randperm(len(labels)).tensor_split(cuts), start=1):
            x, y = normalise(_shift(images[chosen])), labels[chosen].to(device)
            logits = network(x)
            loss = functional.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            seen += len(y)
            loss_sum += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            on_step((epoch - 1) * batches + step, settings.epochs * batches, loss_sum / seen, correct / seen)
        speed = seen / (time.perf_counter() - start)
        logits = _logits(network, normalise, validation[0])
        validation_loss = functional.cross_entropy(logits, validation[1]).item()
        validation_accuracy = (logits.argmax(1) == validation[1]).float().mean().item()
        if not math.isfinite(validation_loss):
            raise UserError(
                f"the training diverged in epoch {epoch} (validation loss {validation_loss}): try a lower learning rate"
            )
        history.append(Epoch(epoch, loss_sum / seen, correct / seen, validation_loss, validation_accuracy, speed))
        on_epoch(history[-1])
        with (run / METRICS).open("a", encoding="utf-8") as metrics:
            metrics.write(json.dumps(asdict(history[-1])) + "\n")
        if validation_loss < best_loss:
            best_loss = validation_loss
            kept = (tuple(mean.tolist()), tuple(std.tolist()), settings, epoch)
            save(Checkpoint(network, dataset.input, dataset.labels, dataset.name, *kept), run / CHECKPOINT)
    plot_curves(history, run / CURVES)
    return load(run)


def test_accuracy(checkpoint: Checkpoint, test: Part) -> tuple[int, int]:
    """How many pictures of the test part the network gets right, and of how many."""
    predicted = predict(checkpoint, test.pixels).argmax(axis=1)
    return int((predicted == test.labels).sum()), len(test)


def predict(checkpoint: Checkpoint, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities float32[N,K] for images uint8[N,H,W,C], computed by PyTorch on the CPU."""
    probabilities: NDArray[np.float32] = torch.from_numpy(logits(checkpoint, images)).softmax(1).numpy()
    return probabilities


def logits(checkpoint: Checkpoint, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits float32[N,K] for images uint8[N,H,W,C], computed by PyTorch on the CPU."""
    normalise = _Normalise(torch.tensor(checkpoint.mean), torch.tensor(checkpoint.std), torch.device("cpu"))
    found: NDArray[np.float32] = _logits(checkpoint.network.cpu(), normalise, torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return found


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint; whoever reads the path sees the old file or the new one, never half of one."""
    content = {
        "format": 1,
        "weights": {name: tensor.cpu() for name, tensor in checkpoint.network.state_dict().items()},
        "input": checkpoint.input.model_dump(),
        "labels": list(checkpoint.labels),
        "data": checkpoint.data,
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
        "settings": asdict(checkpoint.settings),
        "epoch": checkpoint.epoch,
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def load(run: Path) -> Checkpoint:
    """Reads the checkpoint of a run folder, ready to predict. Raises UserError if there is none that can be read."""
    path = run / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{str(run)!r} is no folder of a run: it has no {CHECKPOINT} (`convoy train --output {run}` makes one)")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        settings = Settings(**content["settings"])
        spec = InputSpec(**content["input"])
        network = networks.build(settings.network, spec, len(content["labels"]))
        network.load_state_dict(content["weights"])
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken pickle raises whatever it likes
        raise UserError(f"{path}: not a checkpoint that this version can read ({type(error).__name__})") from None
    return Checkpoint(
        network=network.eval(),
        input=spec,
        labels=tuple(content["labels"]),
        data=content["data"],
        mean=tuple(content["mean"]),
        std=tuple(content["std"]),
        settings=settings,
        epoch=content["epoch"],
    )


def plot_curves(history: list[Epoch], path: Path) -> None:
    """Draws loss and accuracy by epoch as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [epoch.epoch for epoch in history]
    left.plot(epochs, [epoch.training_loss for epoch in history], label="training")
    left.plot(epochs, [epoch.validation_loss for epoch in history], label="validation")
    left.set(title="Cross-entropy loss", xlabel="epoch", yscale="log")
    right.plot(epochs, [100 * epoch.training_accuracy for epoch in history], label="training")
    right.plot(epochs, [100 * epoch.validation_accuracy for epoch in history], label="validation")
    right.set(title="Accuracy in percent", xlabel="epoch")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


class _Normalise:
    """uint8 (N, C, H, W) to float32 of mean 0 and standard deviation 1 a channel, on a device."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, device: torch.device) -> None:
        self._mean = mean[:, None, None].to(device)
        self._std = std[:, None, None].to(device)
        self._device = device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images.to(self._device).float() - self._mean) / self._std


def _tensors(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(part.pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(part.labels)


def _shift(images: torch.Tensor, most: int = 2) -> torch.Tensor:
    """Moves each picture by up to `most` pixels either way, edges repeated: a random crop of the padded picture."""
    count, _, height, width = images.shape
    padded = functional.pad(images.float(), (most,) * 4, mode="replicate")
    rows = torch.randint(0, 2 * most + 1, (count, 1)) + torch.arange(height)  # (N, H)
    columns = torch.randint(0, 2 * most + 1, (count, 1)) + torch.arange(width)  # (N, W)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def _logits(network: nn.Module, normalise: _Normalise, images: torch.Tensor) -> torch.Tensor:
    """Logits float32[N,K], on the CPU, in batches that fit anywhere."""
    network.eval()
    return torch.cat([network(normalise(part)).cpu() for part in images.tensor_split(list(range(256, len(images), 256)))])
