"""`convoy train`: trains a network and writes the folder of a run."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from export.cli import advice
from export.cli.dataset_loading import load_with_progress
from export.cli.output_folder import check_output_folder, create_output_folder, lock_run
from export.cli.progress_bar import training_bar
from export.cli.summary import show_classes, show_loaded
from export.cli.train_options import OPTION_GROUPS, TrainCommand
from export.text import as_text
from export.training import recipes
from service.errors import UserError

if TYPE_CHECKING:
    from export.data.datasets import Dataset
    from export.training.checkpoint import Checkpoint
    from export.training.distributed import ProcessGroup
    from export.training.history import EpochMetrics
    from export.training.pretrained import Weights

_NOTABLE = 0.02
"""From this difference on between balanced accuracy and accuracy, an epoch's line has both."""

_NETWORK = "article-cnn"
_COLOURS = {1: "gray", 3: "colour"}


@click.command(cls=TrainCommand, params=[option for options in OPTION_GROUPS.values() for option in options])
def train(output: Path, resume: bool, tensorboard: bool, **chosen: Any) -> None:
    """Train a network and write a run folder: checkpoint, metrics by epoch, and curves as an image.

    The weights of the epoch with the lowest validation loss are kept, or, of fewer than 50 validation images, those of the last
    epoch. The test part is measured once, at the end. The checkpoint is written after every epoch: after Ctrl-C or a crash it can
    be exported, or the training continued with --resume.
    """
    from export.training.distributed import join_group

    with join_group() as group:
        console = Console(highlight=False, quiet=group.rank > 0)
        dataset, settings, weights = group.rank_zero_first(partial(_prepare, console, group, output, resume, **chosen))
        console.print(
            "\n".join([_describe(settings, group), *advice.before_training(dataset, settings)]), soft_wrap=True, markup=False
        )
        try:
            checkpoint = _train(console, group, dataset, settings, output, resume, tensorboard, weights)
            if group.rank == 0:
                _report_test_accuracy(console, checkpoint, dataset, output)
        except KeyboardInterrupt:
            _report_interruption(console, group, output)
            raise
        except UserError:
            if group.rank == 0:
                _remove_if_empty(output)
            raise
    group.exit_process()


def _prepare(
    console: Console, group: "ProcessGroup", output: Path, resume: bool, data: str, data_dir: Path | None, network: str | None,
    image_size: tuple[int, int] | None, resize: str | None, crop: tuple[int, int] | None, crop_pct: float | None,
    filter_name: str | None, fit: str | None, channels: str | None, flip: bool | None, shift_pixels: int | None,
    weights: Path | None, init_from: Path | None, class_weights: str | None, recipe: str | None, **chosen: Any,
) -> "tuple[Dataset, recipes.Settings, Weights | None]":  # fmt: skip
    """Checks what can be checked at once, loads the data, which can take minutes, and takes the output folder."""
    from export.data.datasets import DatasetOptions, known_classes, load_dataset
    from export.data.input_choice import SHORT_FORMS, InputChoice
    from export.networks import architectures
    from export.training.checkpoint import CHECKPOINT, load_checkpoint, load_interrupted
    from export.training.class_balance import automatic_weights, given_weights, read_class_weights
    from export.training.pretrained import read_weights
    from service.model.input_spec import InputSpec

    if fit and resize:
        raise UserError(f"--fit {fit} is short for --resize {SHORT_FORMS[fit]}: one of the two is accepted")
    colours = {"gray": 1, "rgb": 3}[channels] if channels else None
    wanted = InputChoice(image_size, colours, resize or (SHORT_FORMS[fit] if fit else None), filter_name, crop, crop_pct)
    wanted.of(InputSpec(height=32, width=32, channels=3))  # contradictions are said before the data are read
    if class_weights and chosen["balanced_sampling"]:
        raise UserError("--class-weights and --balanced-sampling both make up for classes that are rare: one of them is accepted")
    weight_of = read_class_weights(Path(class_weights)) if class_weights and class_weights != "auto" else None
    if init_from and weights:
        raise UserError("--init-from and --weights both say what to start from: one of them is accepted")
    start = load_checkpoint(init_from) if init_from else None
    network = network or (start.settings.network if start else _NETWORK)
    code = architectures.code(network)
    if (expected := known_classes(data)) is not None:
        architectures.check_head(network, expected)
    file = init_from / CHECKPOINT if init_from else weights
    read = read_weights(file) if file else None
    if resume:
        load_interrupted(output)
        if group.rank == 0:
            lock_run(output)
    elif group.rank == 0:
        check_output_folder(output, " (or --resume, to continue an interrupted training)")
    base = recipes.recipe(network, recipe)
    shift = base.shift_pixels if shift_pixels is None else shift_pixels
    mirror = base.flip if flip is None else flip
    options = DatasetOptions(start.input if start and wanted == InputChoice() else wanted, mirror, shift)
    dataset = load_with_progress(console, partial(load_dataset, data, chosen["seed"], data_dir, options), to_train=True)
    if start:
        chosen = _continued(start, dataset, chosen)
    if class_weights:
        labels, classes = dataset.training.labels, dataset.labels
        chosen["class_weights"] = (
            automatic_weights(labels, len(classes)) if weight_of is None else given_weights(weight_of, classes)
        )
    settings = recipes.settings(
        code.network if code else network, len(dataset.training), base, dataset.input.channels,
        weights=str(read) if read else None, **chosen,
    )  # fmt: skip
    _check_channels(settings, dataset.input.channels)
    if group.rank == 0 and not resume:
        create_output_folder(output)
        lock_run(output)
    return dataset, settings, read


def _continued(start: "Checkpoint", dataset: "Dataset", chosen: dict[str, Any]) -> dict[str, Any]:
    """The options with the normalisation that a run's weights need. The last layer is no newer than the others for its classes."""
    for name, values in (("mean", start.mean), ("std", start.std)):
        if chosen[name] is None:
            chosen = {**chosen, name: tuple(value / 255 for value in values)}
    if dataset.labels == start.labels and chosen["head_learning_rate"] is None:
        chosen = {**chosen, "head_learning_rate": 0.0}
    return chosen


def _check_channels(settings: recipes.Settings, channels: int) -> None:
    """Raises UserError if there are more or fewer means than channels."""
    for option, values in (("--mean", settings.mean), ("--std", settings.std)):
        if values and len(values) != channels:
            raise UserError(
                f"{option}: {len(values)} numbers for an input of {channels} channels, {_COLOURS[channels]}; --channels changes it"
            )


def _train(
    console: Console, group: "ProcessGroup", dataset: "Dataset", settings: recipes.Settings, run: Path, resume: bool,
    tensorboard: bool, weights: "Weights | None",
) -> "Checkpoint":  # fmt: skip
    """Trains with a bar for the steps and a line for each epoch."""
    from export.training import loop
    from export.training.history import tensorboard_writer

    write = tensorboard_writer(run / "tensorboard") if tensorboard and group.rank == 0 else None

    def on_epoch(epoch: "EpochMetrics") -> None:
        console.print(_epoch_line(epoch, settings.epochs, dataset.labels), soft_wrap=True)
        if write is not None:
            write(epoch)

    with training_bar(console) as on_step:
        return loop.train(
            dataset, settings, run, on_step, on_epoch, group, resume, weights, lambda loaded: show_loaded(loaded, console)
        )


def _report_interruption(console: Console, group: "ProcessGroup", run: Path) -> None:
    """Prints what is in the run's folder and how to continue. Removes the folder if it is empty."""
    from export.training.checkpoint import CHECKPOINT
    from export.training.history import CURVES

    if (run / CURVES).exists():
        text = f"interrupted after the training, before the test part was measured; next: {_next_command(run)}"
    elif (run / CHECKPOINT).exists():
        program = "convoy" if group.size == 1 else "torchrun ... -m service.cli"
        arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
        text = (
            f"interrupted; {run / CHECKPOINT} holds the epoch kept so far, ready to export. To continue:\n"
            f"  {program} {shlex.join(arguments)} --resume"
        )
    else:
        text = "interrupted before the end of the first epoch: nothing is kept"
        _remove_if_empty(run)
    console.print(text, soft_wrap=True, markup=False)


def _report_test_accuracy(console: Console, checkpoint: "Checkpoint", dataset: "Dataset", run: Path) -> None:
    from scipy.special import softmax

    from export.evaluation.scores import Scores
    from export.training.inference import predict_logits

    scores = Scores(dataset.labels, dataset.test.labels, softmax(predict_logits(checkpoint, dataset.test.pixels), axis=1))
    low, high = scores.accuracy_interval
    balanced = f"balanced accuracy {scores.balanced_accuracy:.2%}, " if scores.imbalanced else ""
    show_classes(scores, console)
    lines = [
        f"kept epoch {checkpoint.epoch}; test {balanced}accuracy {scores.accuracy:.2%} ({scores.correct} of {scores.items}; 95 % "
        f"interval {low:.1%} to {high:.1%})",
        *advice.after_test(scores, dataset, checkpoint.settings),
        f"wrote {run}; next: {_next_command(run)}",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def _next_command(run: Path) -> str:
    return f"convoy export {shlex.quote(str(run))} --repository models"


def _describe(settings: recipes.Settings, group: "ProcessGroup") -> str:
    """All settings, and the device and precision that they are computed with."""
    import torch

    from export.networks import architectures
    from export.training.optimization import uses_bfloat16

    values = {name.replace("_", "-"): value for name, value in settings.given().items() if name not in ("network", "autocast")}
    listed = ", ".join(f"{name} {as_text(value)}" for name, value in values.items())
    on_cuda = group.device.type == "cuda"
    where = torch.cuda.get_device_name(group.device) if on_cuda else f"the CPU, threads: {torch.get_num_threads()}"
    processes = f"{group.size} processes, each " if group.size > 1 else ""
    precision = "bfloat16" if uses_bfloat16(settings, group.device) else "float32"
    return f"{architectures.shown(settings.network)}: {listed}\n{processes}{precision} on {where}"


def _epoch_line(epoch: "EpochMetrics", epochs: int, labels: Sequence[str]) -> str:
    """The figures of an epoch; where the balanced accuracy is another than the accuracy, it too, and the hardest class."""
    balanced = ""
    known = [(recall, labels[index]) for index, recall in enumerate(epoch.validation_recalls) if recall is not None]
    if known and abs((epoch.validation_balanced_accuracy or 0.0) - epoch.validation_accuracy) >= _NOTABLE:
        recall, hardest = min(known)
        balanced = f" (balanced {epoch.validation_balanced_accuracy:.1%}, {hardest!r} {recall:.1%})"
    return (
        f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}: loss {epoch.training_loss:.4f}, accuracy "
        f"{epoch.training_accuracy:.1%}; validation {epoch.validation_loss:.4f}, {epoch.validation_accuracy:.2%}{balanced}; "
        f"{epoch.images_per_second:,.0f} images/s, {epoch.seconds:.1f} s"
    )


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder)
