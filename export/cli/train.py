"""`convoy train`: what can be chosen about a training, and how its course is shown."""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from export.cli import options
from export.training import recipes
from service.errors import UserError

if TYPE_CHECKING:
    from export.data.datasets import Dataset
    from export.training.checkpoint import Checkpoint
    from export.training.distributed import Group
    from export.training.history import EpochMetrics
    from export.training.loop import Step

_GROUPS = {
    "Data and network": ("data", "data_dir", "network", "image_size", "fit"),
    "Training; the defaults are the network's recipe, below": (
        "epochs", "batch_size", "optimizer", "learning_rate", "schedule", "weight_decay", "label_smoothing", "ema_decay", "flip",
        "shift_pixels", "patience", "seed", "autocast",
    ),
    "The run": ("output", "resume", "tensorboard", "help"),
}  # fmt: skip


class TrainHelp(options.NetworkHelp):
    """Help with the options in groups, and the recipes after the networks."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options."""
        for title, names in _GROUPS.items():
            parameters = sorted(
                (each for each in self.get_params(ctx) if each.name in names), key=lambda each: names.index(str(each.name))
            )
            with formatter.section(title):
                formatter.write_dl([record for each in parameters if (record := each.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the recipes, then the networks and examples."""
        with formatter.section("Recipes"):
            formatter.write(recipes.describe() + "\n")
        with formatter.section("Several processes or machines (DistributedDataParallel; --batch-size is that of all together)"):
            formatter.write("  torchrun --nproc-per-node 2 -m service.cli train --data mnist --output run\n")
        super().format_epilog(ctx, formatter)


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `recipes.Settings` has, beside the network."""
    for option in (
        click.option("--epochs", type=click.IntRange(1, 100_000), metavar="N", help="Passes over the training part."),
        click.option("--batch-size", type=click.IntRange(1, 1_000_000), metavar="N",
                     help="Pictures a step. Other sizes than the recipe's change its learning rate to suit."),
        click.option("--optimizer", type=click.Choice(recipes.OPTIMIZERS),
                     help="Adam; AdamW, whose weight decay is apart from the gradient; SGD with Nesterov momentum."),
        click.option("--learning-rate", type=click.FloatRange(0, 10, min_open=True), callback=options.finite, metavar="RATE",
                     help="The highest of the schedule. Too high: the loss jumps or diverges; too low: it falls slowly."),
        click.option("--schedule", type=click.Choice(recipes.SCHEDULES), default="one-cycle", show_default=True,
                     help="one-cycle: up to the learning rate and down to nearly nothing over all epochs; or constant."),
        click.option("--weight-decay", type=click.FloatRange(0, 1), callback=options.finite, metavar="RATE",
                     help="Pull of the weights towards zero, against overfitting; norms and biases are left out."),
        click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), callback=options.finite, metavar="SHARE",
                     help="Share of each label that is spread over all classes: 0.1 makes a network less sure of itself."),
        click.option("--ema-decay", type=click.FloatRange(0, 1, max_open=True), callback=options.finite, metavar="DECAY",
                     help="Measure and keep a moving average of the weights, such as 0.99 a step; 0: the weights themselves."),
        click.option("--patience", type=click.IntRange(0), default=0, metavar="EPOCHS", show_default=True,
                     help="Stop after so many epochs without a lower validation loss; 0: never."),
        click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True,
                     help="Seed of the split, the weights, the shuffling and the augmentation: the same seed, the same training."),
        click.option("--autocast", type=click.Choice(recipes.AUTOCASTS), default="auto", show_default=True,
                     help="Compute in bfloat16: auto does where the processor has it (GPUs from Ampere on, CPUs with AMX)."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(cls=TrainHelp)
@options.data_option
@options.data_dir_option
@options.picture_options
@options.network_option
@_training_options
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="RUN",
              help="Folder for the run; must be new or empty, but for --resume.")  # fmt: skip
@click.option("--resume", is_flag=True,
              help="Go on with the interrupted training in RUN, exactly: the same command as before, with this added.")  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Write RUN/tensorboard too; needs the package tensorboard.")
def train(**given: Any) -> None:
    """Train a network and write a run folder: checkpoint, metrics by epoch, and curves as a picture.

    Kept are the weights of the epoch with the lowest validation loss. The test part is looked at once, at the end. The checkpoint
    is written after every epoch: after Ctrl-C, or a crash, it can be exported, and --resume goes on from there.
    """
    from export.training import distributed

    with distributed.join_group() as group:
        _train(group, **given)
    group.exit_process()


def _train(
    group: "Group", data: str, data_dir: Path | None, network: str, output: Path, resume: bool, tensorboard: bool,
    image_size: tuple[int, int] | None, fit: str | None, flip: bool | None, shift_pixels: int | None, **given: Any,
) -> None:  # fmt: skip
    from export.data import datasets
    from export.networks import architectures
    from export.training import checkpoint as checkpoints
    from export.training import history, loop

    console = Console(highlight=False, quiet=group.rank > 0)

    def prepare() -> "tuple[Dataset, recipes.Settings]":
        architectures.parse(network)  # this and the folder before the data, which can take minutes
        if resume:
            checkpoints.load_interrupted(output)
        elif group.rank == 0:
            options.check_new_folder(output, " (or --resume, to go on with an interrupted training)")
        shift = recipes.recipe(network).shift_pixels if shift_pixels is None else shift_pixels
        choices = datasets.Choices(image_size, None, fit, flip, shift)
        if resume and group.rank == 0:
            options.hold(output)
        dataset = options.load_with_progress(
            console, partial(datasets.load_dataset, data, given["seed"], data_dir, choices), to_train=True
        )
        settings = recipes.settings(network, len(dataset.training), **given)
        if group.rank == 0 and not resume:
            options.new_folder(output)
            options.hold(output)
        return dataset, settings

    dataset, settings = group.rank_zero_first(prepare)
    console.print(_describe(settings, group), soft_wrap=True, markup=False)
    write = history.tensorboard_writer(output / "tensorboard") if tensorboard and group.rank == 0 else lambda epoch: None
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("accuracy {task.fields[accuracy]:6.2%}"), TextColumn("{task.fields[speed]:,.0f} images/s"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=None, loss=float("nan"), accuracy=0.0, speed=0.0)

        def on_step(step: "Step") -> None:
            fields: dict[str, Any] = {"loss": step.loss, "accuracy": step.accuracy, "speed": step.images_per_second}
            progress.update(task, completed=step.done, total=step.total, **fields)

        def on_epoch(epoch: "EpochMetrics") -> None:
            console.print(
                f"epoch {epoch.epoch:>{len(str(settings.epochs))}}/{settings.epochs}: loss {epoch.training_loss:.4f}, accuracy "
                f"{epoch.training_accuracy:.1%}; validation {epoch.validation_loss:.4f}, {epoch.validation_accuracy:.2%}; "
                f"{epoch.images_per_second:,.0f} images/s, {epoch.seconds:.1f} s",
                soft_wrap=True,
            )
            write(epoch)

        try:
            checkpoint = loop.train(dataset, settings, output, on_step, on_epoch, group, resume)
        except KeyboardInterrupt:
            progress.stop()
            if (output / history.CURVES).exists():
                _say_all_but_done(console, output)
            elif not (output / checkpoints.CHECKPOINT).exists():
                console.print("interrupted before the first epoch had ended: nothing is kept")
                _remove_if_empty(output)
            else:
                program = "convoy" if group.size == 1 else "torchrun ... -m service.cli"
                again = [argument for argument in sys.argv[1:] if argument != "--resume"]
                console.print(
                    f"interrupted; {output / checkpoints.CHECKPOINT} holds the best epoch so far, ready to export. To go on:\n"
                    f"  {program} {shlex.join(again)} --resume",
                    soft_wrap=True, markup=False,
                )  # fmt: skip
            raise
        except UserError:
            if group.rank == 0:
                _remove_if_empty(output)
            raise
    if group.rank == 0:
        try:
            _report(console, checkpoint, dataset, output)
        except KeyboardInterrupt:
            _say_all_but_done(console, output)
            raise


def _say_all_but_done(console: Console, run: Path) -> None:
    console.print(f"interrupted when all was done but the look at the test part; next: {_next(run)}", soft_wrap=True, markup=False)


def _report(console: Console, checkpoint: "Checkpoint", dataset: "Dataset", output: Path) -> None:
    from export.evaluation.scores import accuracy_interval
    from export.training.inference import count_correct

    correct, items = count_correct(checkpoint, dataset.test), len(dataset.test)
    low, high = accuracy_interval(correct, items)
    console.print(
        f"kept epoch {checkpoint.epoch}; test accuracy {correct / items:.2%} ({correct} of {items}; 95 % interval "
        f"{low:.1%} to {high:.1%})\nwrote {output}; next: {_next(output)}",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _next(run: Path) -> str:
    return f"convoy export {shlex.quote(str(run))} --repository models"


def _describe(settings: recipes.Settings, group: "Group") -> str:
    """The settings in full, and where they are computed."""
    import torch

    from export.training.optimization import uses_bfloat16

    fields = asdict(settings)
    precision = "bfloat16" if uses_bfloat16(settings, group.device) else "float32"
    where = (
        torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else f"the CPU, threads: {torch.get_num_threads()}"
    )
    processes = f"{group.size} processes, each " if group.size > 1 else ""
    chosen = ", ".join(f"{name.replace('_', '-')} {value:g}" if isinstance(value, float) else f"{name.replace('_', '-')} {value}"
                       for name, value in fields.items() if name not in ("network", "autocast"))  # fmt: skip
    return f"{settings.network}: {chosen}\n{processes}{precision} on {where}"


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        shutil.rmtree(folder)
