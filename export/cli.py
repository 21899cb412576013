"""The commands that the export stage adds to the program `convoy`."""

from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export import options
from export.train_command import train as train

console = Console(highlight=False)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="Folder of models, made if it is missing.")
@click.option("--name", help="Name of the model; the data's name if not given.")
@click.option("--minimum-accuracy", type=click.FloatRange(0, 100), callback=options.finite, default=0.0, metavar="PERCENT",
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
