"""The figures of a run by epoch: `metrics.jsonl`, `curves.png` and, if asked for, TensorBoard."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from service.errors import UserError

METRICS = "metrics.jsonl"
CURVES = "curves.png"


@dataclass(frozen=True)
class EpochMetrics:
    """The figures of one epoch.

    Losses are mean cross-entropies in nats, without label smoothing; accuracies are fractions. Those of the training part are taken
    during the epoch: on augmented images, while the weights change. `learning_rate` is that of the last step.
    """

    epoch: int
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float
    images_per_second: float
    learning_rate: float
    seconds: float


def best_epoch(history: Sequence[EpochMetrics]) -> EpochMetrics:
    """The epoch with the lowest validation loss, the first if several have it."""
    return min(history, key=lambda epoch: epoch.validation_loss)


def write_metrics(history: Sequence[EpochMetrics], run: Path) -> None:
    """Writes `metrics.jsonl`, a line an epoch. It is written whole, so that after a resume it agrees with the checkpoint."""
    partial = run / f"{METRICS}.partial"
    partial.write_text("".join(json.dumps(asdict(epoch)) + "\n" for epoch in history), encoding="utf-8")
    partial.replace(run / METRICS)


def plot_curves(history: Sequence[EpochMetrics], path: Path) -> None:
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
    best = best_epoch(history)
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


def tensorboard_writer(folder: Path) -> Callable[[EpochMetrics], None]:
    """A function that writes an epoch's figures for TensorBoard. Raises UserError if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard, which is not installed (pip install tensorboard)") from None
    opened = cache(lambda: SummaryWriter(str(folder)))  # at the first write: it makes the folder

    def write(epoch: EpochMetrics) -> None:
        writer = opened()
        for name, value in vars(epoch).items():
            if name != "epoch":
                part, _, figure = name.partition("_")
                tag = f"{figure}/{part}" if part in ("training", "validation") else name
                writer.add_scalar(tag, value, epoch.epoch)
        writer.flush()

    return write
