"""The commands that the export stage adds to the program `convoy`."""

import math
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from export import options
from service.errors import UserError

if TYPE_CHECKING:
    from export.training import Epoch

console = Console(highlight=False)


def _finite(_: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuses NaN, which click's ranges let through."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", param=parameter)
    return value


@click.command(cls=options.NetworkHelp)
@options.data_option
@options.data_dir_option
@options.picture_options
@options.network_option
@click.option("--epochs", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Passes over the training part.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the run; must be new or empty.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images a step.")
@click.option("--learning-rate", type=click.FloatRange(0, 10, min_open=True), callback=_finite, default=2e-3, show_default=True,
              help="Adam's highest learning rate, on a one-cycle schedule.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True,
              help="Seed of the split, the weights and the shuffling.")  # fmt: skip
def train(
    data: str, data_dir: Path | None, network: str, epochs: int, output: Path, batch_size: int, learning_rate: float, seed: int,
    **pictures: Any,
) -> None:  # fmt: skip
    """Train a network and write a run folder: checkpoint, metrics by epoch, and curves as a picture.

    Kept are the weights of the epoch with the lowest validation loss. The test part is looked at once, at the end. Ctrl-C leaves
    the best checkpoint so far.
    """
    from export import networks, training
    from export.data import Choices
    from export.data import load as load_data
    from export.evaluation import wilson_interval

    networks.parse(network)  # before the data, which can take minutes
    settings = training.Settings(network, epochs, batch_size, learning_rate, seed)
    dataset = options.load(console, partial(load_data, data, seed, data_dir, Choices(**pictures)))
    _new_folder(output)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("accuracy {task.fields[accuracy]:6.2%}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=None, loss=float("nan"), accuracy=0.0)

        def on_step(done: int, total: int, loss: float, accuracy: float) -> None:
            progress.update(task, completed=done, total=total, loss=loss, accuracy=accuracy)

        def on_epoch(epoch: "Epoch") -> None:
            console.print(
                f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}: loss {epoch.training_loss:.4f}, accuracy "
                f"{epoch.training_accuracy:.1%}; validation {epoch.validation_loss:.4f}, {epoch.validation_accuracy:.1%}; "
                f"{epoch.images_per_second:,.0f} images/s",
                soft_wrap=True,
            )

        try:
            checkpoint = training.train(dataset, settings, output, on_step, on_epoch)
        except KeyboardInterrupt:
            progress.stop()
            if (output / training.CHECKPOINT).exists():
                console.print(f"interrupted; {output / training.CHECKPOINT} holds the best epoch so far")
            else:
                _remove_if_empty(output)
            raise
        except UserError:
            _remove_if_empty(output)
            raise
    correct, items = training.test_accuracy(checkpoint, dataset.test)
    low, high = wilson_interval(correct, items)
    console.print(
        f"kept epoch {checkpoint.epoch}; test accuracy {correct / items:.2%} ({correct} of {items}; 95 % interval "
        f"{low:.1%} to {high:.1%})\nwrote {output}; next: convoy export {output} --repository models",
        soft_wrap=True,
    )


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="Folder of models, made if it is missing.")
@click.option("--name", help="Name of the model; the data's name if not given.")
@click.option("--minimum-accuracy", type=click.FloatRange(0, 100), callback=_finite, default=0.0, metavar="PERCENT",
              help="Refuse to export below this accuracy on the test part.")  # fmt: skip
def export(run: Path, repository: Path, name: str | None, minimum_accuracy: float) -> None:
    """Export the checkpoint in the folder RUN as the next version of a model: REPOSITORY/NAME/<version>/model.onnx.

    The file is compared with PyTorch on the whole test part and measured through the code that serves it; if either disappoints,
    nothing is written to the repository.
    """
    from export import onnx_export, training
    from export.data import load_again

    checkpoint = training.load(run)
    dataset = options.load(
        console, partial(load_again, checkpoint.source, checkpoint.settings.seed, checkpoint.input, checkpoint.labels, None, None)
    )
    with console.status("exporting") as status:
        path, report = onnx_export.export(
            checkpoint, dataset, repository, name or dataset.name, minimum_accuracy / 100, on_step=status.update
        )
    low, high = report.accuracy_interval
    console.print(
        f"parity with PyTorch on {report.items} test pictures: largest difference {report.max_difference:.1e}, "
        f"same top label on {report.same_top1:.0%}\n"
        f"accuracy as served: {report.accuracy:.2%} (95 % interval {low:.1%} to {high:.1%}); "
        f"PyTorch: {report.reference_accuracy:.2%}\n"
        f"wrote {path}; next: convoy serve {repository}",
        soft_wrap=True,
    )


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
def inspect(model: Path) -> None:
    """Show the layers, the contract and the digest of an ONNX file, one that Convoy wrote or any other."""
    from export.inspection import inspect as read

    found = read(model)
    table = Table("Layer (type)", "Output Shape", "Param #", "MACs", box=None, header_style="bold", pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for layer in found.layers:
        shape = "?" if layer.shape is None else f"({', '.join(map(str, layer.shape))})"
        macs = "?" if layer.macs is None else f"{layer.macs:,}"
        table.add_row(escape(f"{layer.name} ({layer.operator})"), escape(shape), f"{layer.parameters:,}", macs)
    console.print(table)
    uncounted = sum(layer.macs is None for layer in found.layers)
    console.print(
        f"\nTotal params: {found.parameters:,}\nTrainable params: {found.parameters - found.statistics:,}\n"
        f"Non-trainable params: {found.statistics:,}\n"
        f"MACs an image: {found.macs:,}{f', and those of {uncounted} layers of unknown shape' if uncounted else ''}\n"
        f"{found.size_bytes:,} bytes, sha256 {found.digest}",
        soft_wrap=True,
    )
    if found.external:
        missing = [name for name in found.external if not (model.parent / name).is_file()]
        where = f"; missing: {', '.join(missing)}" if missing else ""
        console.print(f"weights are outside the file, in {', '.join(found.external)}{where}", soft_wrap=True, markup=False)
    contract = found.contract
    if contract is None:
        console.print("no contract: this file was not written by Convoy")
        return
    training = contract.training
    accuracy = "not measured" if training.accuracy is None else f"{training.accuracy:.2%}"
    if training.accuracy_interval is not None:
        accuracy += " (95 % interval {:.1%} to {:.1%})".format(*training.accuracy_interval)
    facts = {
        "name": contract.name,
        "input": f"uint8 {' x '.join(map(str, contract.input.shape))}, {contract.input.resize}, {contract.input.fit}",
        "labels": f"{len(contract.labels)}: {', '.join(contract.labels[:20])}{', ...' if len(contract.labels) > 20 else ''}",
        "head": contract.head,
        "precision": contract.precision,
        "trained": f"{training.network} on {training.data}, {training.epochs} epochs, seed {training.seed}",
        "accuracy": accuracy,
        "golden": f"{len(contract.golden)} samples",
        "versions": ", ".join(f"{package} {version}" for package, version in training.versions.items()),
        "commit": training.commit or "unknown",
    }
    for key, value in facts.items():
        console.print(f"{key:<10} {value}", soft_wrap=True, markup=False)


def _new_folder(folder: Path) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--output {str(folder)!r} exists and is not an empty folder: nothing is overwritten, choose another")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".convoy-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output {str(folder)!r}: {error.strerror}") from None


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        shutil.rmtree(folder)
