"""The figures of a run by epoch: `metrics.jsonl`, `curves.png` and, if asked for, TensorBoard."""

import io
import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from export.data.sample_size import enough_to_choose
from export.files import write_file, writing
from service.errors import UserError

METRICS = "metrics.jsonl"
CURVES = "curves.png"


@dataclass(frozen=True)
class EpochMetrics:
    """The figures of one epoch.

    Losses are mean cross-entropies in nats, without label smoothing; accuracies are fractions. Those of the training part are taken
    during the epoch: on augmented images, while the weights change. `learning_rate` is that of the last step. Of the
    validation part there are also the recall of each class, None for one without images, and their mean, the balanced accuracy.
    With weights of classes, the losses are means with these weights.
    """

    epoch: int
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float
    images_per_second: float
    learning_rate: float
    seconds: float
    validation_balanced_accuracy: float | None = None
    validation_recalls: tuple[float | None, ...] = ()


def best_epoch(history: Sequence[EpochMetrics]) -> EpochMetrics:
    """The epoch with the lowest validation loss, the first if several have it."""
    return min(history, key=lambda epoch: epoch.validation_loss)


def kept_epoch(history: Sequence[EpochMetrics], validation_items: int) -> EpochMetrics:
    """The epoch whose weights are kept: the best, or the last if so few validation pictures must not choose."""
    return best_epoch(history) if enough_to_choose(validation_items) else history[-1]


def write_metrics(history: Sequence[EpochMetrics], run: Path) -> None:
    """Writes `metrics.jsonl`, a line an epoch. It is written whole, so that after a resume it agrees with the checkpoint.

    Raises UserError if it cannot be written.
    """
    write_file(run / METRICS, "".join(json.dumps(asdict(epoch)) + "\n" for epoch in history).encode())


def plot_curves(history: Sequence[EpochMetrics], path: Path, kept: EpochMetrics | None = None) -> None:
    """Draws loss, accuracy and learning rate by epoch as a PNG, and which epoch was kept: by default the best.

    Raises UserError if it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [epoch.epoch for epoch in history]
    marker = "o" if len(history) < 30 else ""
    for part, style in (("training", "--"), ("validation", "-")):
        drawn = {"linestyle": style, "marker": marker, "markersize": 3, "label": part}
        loss.plot(epochs, [getattr(epoch, f"{part}_loss") for epoch in history], **drawn)
        accuracy.plot(epochs, [100 * getattr(epoch, f"{part}_accuracy") for epoch in history], **drawn)
    balanced = [epoch.validation_balanced_accuracy for epoch in history]
    if any(value is not None for value in balanced):
        percent = [math.nan if value is None else 100 * value for value in balanced]
        accuracy.plot(epochs, percent, ":", marker=marker, markersize=3, color="tab:orange", label="validation, balanced")
    rate.plot(epochs, [epoch.learning_rate for epoch in history], marker=marker, markersize=3, color="tab:green")
    kept = kept or best_epoch(history)
    loss.axvline(kept.epoch, color="gray", linewidth=0.8, label=f"kept: epoch {kept.epoch}")
    loss.set(title="Cross-entropy loss", xlabel="epoch", ylabel="nats", yscale="log")
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="percent")
    rate.set(title="Learning rate at the end of the epoch", xlabel="epoch")
    for axes in (loss, accuracy, rate):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
    loss.legend()
    accuracy.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    write_file(path, content.getvalue())


def tensorboard_writer(folder: Path) -> Callable[[EpochMetrics], None]:
    """A function that writes an epoch's figures for TensorBoard, or raises UserError if it cannot.

    Raises UserError if the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the package tensorboard, which is not installed (pip install tensorboard)") from None
    opened = cache(lambda: SummaryWriter(str(folder)))  # at the first write: it makes the folder
    threading.excepthook = partial(_without_tensorboard, threading.excepthook)

    def write(epoch: EpochMetrics) -> None:
        with writing(folder):
            writer = opened()
            for name, value in vars(epoch).items():
                if name != "epoch" and isinstance(value, float):
                    part, _, figure = name.partition("_")
                    tag = f"{figure}/{part}" if part in ("training", "validation") else name
                    writer.add_scalar(tag, value, epoch.epoch)
            writer.flush()

    return write


def _without_tensorboard(others: Callable[[threading.ExceptHookArgs], object], error: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread raises its error, such as of a full disk, in the thread that writes too."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        others(error)
