"""The course of a training, by epoch: as a picture and for TensorBoard."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from service.errors import UserError


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Losses are mean cross-entropies in nats, without label smoothing, and accuracies fractions, of the part named: the training
    part as it was seen, augmented and while the weights moved. `learning_rate` is that of the epoch's last step.
    """

    epoch: int
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float
    images_per_second: float
    learning_rate: float
    seconds: float


def plot(history: Sequence[Epoch], path: Path) -> None:
    """Draws loss, accuracy and learning rate by epoch as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [epoch.epoch for epoch in history]
    marker = "o" if len(history) < 30 else ""
    for part, style in (("training", "--"), ("validation", "-")):
        drawn = {"linestyle": style, "marker": marker, "markersize": 3, "label": part}
        loss.plot(epochs, [getattr(epoch, f"{part}_loss") for epoch in history], **drawn)
        accuracy.plot(epochs, [100 * getattr(epoch, f"{part}_accuracy") for epoch in history], **drawn)
    rate.plot(epochs, [epoch.learning_rate for epoch in history], marker=marker, markersize=3, color="tab:green")
    best = min(history, key=lambda epoch: epoch.validation_loss)
    loss.axvline(best.epoch, color="gray", linewidth=0.8, label=f"kept: epoch {best.epoch}")
    loss.set(title="Cross-entropy loss", xlabel="epoch", ylabel="nats", yscale="log")
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="percent")
    rate.set(title="Learning rate at the end of the epoch", xlabel="epoch")
    for axes in (loss, accuracy, rate):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
    loss.legend()
    accuracy.legend()
    figure.savefig(path, dpi=120)


def tensorboard(folder: Path) -> Callable[[Epoch], None]:
    """Gives a function that writes an epoch's figures for TensorBoard. Raises UserError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard, which is not installed (pip install tensorboard)") from None
    opened = cache(lambda: SummaryWriter(str(folder)))  # once there is something to write: it makes the folder

    def write(epoch: Epoch) -> None:
        writer = opened()
        for name, value in vars(epoch).items():
            if name != "epoch":
                part, _, figure = name.partition("_")
                tag = f"{figure}/{part}" if part in ("training", "validation") else name
                writer.add_scalar(tag, value, epoch.epoch)
        writer.flush()

    return write
