"""The commands that the export stage adds to the program `convoy`."""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.cli import options
from export.cli.progress_bar import progress_bar
from service.errors import LoadError, UserError

if TYPE_CHECKING:
    from export.data.datasets import Part

EVALUATION = "evaluation.json"

console = Console(highlight=False)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True, help="Folder of models, made if it is missing.")
@click.option("--name", help="Name of the model; the data's name if not given.")
@click.option("--minimum-accuracy", type=click.FloatRange(0, 100), callback=options.finite, default=0.0, metavar="PERCENT",
              help="Refuse to export below this accuracy on the test part.")  # fmt: skip
@click.option("--data", metavar="digits|mnist|cifar10|DIR", help="Where the data of the training are now, if they have moved.")
@options.data_dir_option
@click.option("--calibration/--no-calibration", default=True, show_default=True,
              help="Fit a temperature on the validation part, so that the model is as often right as it is sure.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "int8", "fp16"]), default="fp32", show_default=True,
              help="What the layers compute in. int8 for CPUs: a quarter of the size, and faster for large networks, most of all "
                   "on CPUs with VNNI; a small one may be slower. fp16 for GPUs: half the size; on a CPU slower than "
                   "fp32.")  # fmt: skip
@click.option("--max-accuracy-loss", type=click.FloatRange(0, 100), callback=options.finite, default=0.5, show_default=True,
              metavar="POINTS",
              help="Refuse to export if more is lost on the test part: by fp32 to PyTorch, by int8 and fp16 to fp32.")  # fmt: skip
def export(
    run: Path, repository: Path, name: str | None, minimum_accuracy: float, data: str | None, data_dir: Path | None,
    calibration: bool, precision: Literal["fp32", "int8", "fp16"], max_accuracy_loss: float,
) -> None:  # fmt: skip
    """Export the checkpoint in the folder RUN as the next version of a model: REPOSITORY/NAME/<version>/model.onnx.

    The file is compared with PyTorch on the whole test part and measured through the code that serves it; if either disappoints,
    nothing is written to the repository. Beside the file come a model card, README.md, and the pictures that it shows.

    With --precision int8, each layer is measured in int8 on the validation part, and those that hurt stay in float; the table is
    printed and stands in the model card.
    """
    from export.cli import summary
    from export.convert import pipeline
    from export.data.datasets import reload_dataset
    from export.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run)
    known = (checkpoint.source, checkpoint.settings.seed, checkpoint.input, checkpoint.labels)
    dataset = options.load_with_progress(console, partial(reload_dataset, *known, data, data_dir))
    with progress_bar() as on_progress:
        found = pipeline.export(
            checkpoint, dataset, repository, name or dataset.name, minimum_accuracy / 100, calibration, run, on_progress,
            precision, max_accuracy_loss / 100,
        )  # fmt: skip
    path, parity = found.path, found.parity
    beside = sorted(file.name for file in path.parent.iterdir() if file != path)
    if found.cost is not None:
        summary.show_cost(found.cost, console)
    console.print(
        f"parity {'' if found.cost is None else 'of fp32 '}with PyTorch on {parity.scores.items} test pictures: largest difference "
        f"{parity.max_difference:.1e}, same top label on {100 * parity.same_top1:g}%; PyTorch's accuracy "
        f"{parity.reference_accuracy:.2%}\n{summary.headline(found.comparison.scores)}\n"
        f"wrote {path}, and beside it {', '.join(beside)}; next: convoy serve {shlex.quote(str(repository))}",
        soft_wrap=True,
        markup=False,
    )


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, metavar="digits|mnist|cifar10|DIR", help="What to measure on; its labels must be the model's."
)
@options.data_dir_option
@click.option("--part", type=click.Choice(["training", "validation", "test"]), default="test", show_default=True,
              help="Which part of the data, split as for the model's training: test pictures it has never seen.")  # fmt: skip
@click.option("--provider", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True,
              help="ONNX Runtime execution provider; auto takes CUDA where it works.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path),
              help="Folder, new or empty, for scores.json, the confusion matrix, the reliability diagram and the most "
                   "confident mistakes as pictures.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def evaluate(
    model: Path, data: str, data_dir: Path | None, part: str, provider: Literal["auto", "cuda", "cpu"], output: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure the file MODEL.onnx through the code that serves it, from the bytes of each picture to its label.

    Shows accuracy with its 95 % confidence interval, precision and recall of every class, how far the confidence can be believed
    (expected calibration error), and what is taken for what. Needs no PyTorch.
    """
    from export.cli import summary
    from export.data import datasets
    from export.evaluation import figures
    from export.evaluation.measurement import check_labels, measure
    from service.model.cpus import cpu_budget
    from service.model.loading import load_model
    from service.model.session import check_provider

    check_provider(provider)
    if output is not None:
        options.check_new_folder(output)
    try:
        served = load_model(model, provider, cpu_budget())
        contract = served.contract
    except LoadError as error:
        raise UserError(f"{model}: {error}") from None
    spec = contract.input
    choices = datasets.Choices((spec.height, spec.width), spec.channels, spec.fit)
    read = partial(datasets.load_dataset, data, contract.training.seed, data_dir, choices)
    dataset = options.load_with_progress(Console(stderr=True), read)
    check_labels(dataset.labels, contract.labels)
    if output is not None:
        options.new_folder(output)
    chosen: Part = getattr(dataset, part)
    with progress_bar() as on_progress:
        scores = measure(served, chosen, dataset.labels, partial(on_progress, f"{part} part"))
    heading = {
        "model": contract.name,
        "precision": contract.precision,
        "digest": served.digest,
        "provider": served.provider,
        "data": dataset.name,
        "part": part,
    }
    content = json.dumps({**heading, **summary.as_json(scores)}, indent=2, ensure_ascii=False)
    files = []
    if output is not None:
        (output / EVALUATION).write_text(content + "\n", encoding="utf-8")
        files = [EVALUATION, *figures.draw(scores, chosen, contract.input, output)]
    if as_json:
        click.echo(content)
        return
    console.print(
        f"{contract.name} ({contract.precision}, sha256 {served.digest[:12]}, on {served.provider}) on the {part} part of "
        f"{dataset.name}",
        soft_wrap=True,
        markup=False,
    )
    if dataset.name != contract.training.data:
        console.print(
            f"the model was trained on {contract.training.data}: whether these pictures were among them cannot be told",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    elif contract.training.data_digest not in ("", dataset.digest):
        console.print(
            f"{dataset.name} is not what it was when the model was trained: pictures were added, removed or changed since, so that "
            f"some of this {part} part may have been trained on",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    summary.show(scores, console)
    if files:
        console.print(f"\nwrote {output}: {', '.join(files)}", soft_wrap=True, markup=False)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
def inspect(model: Path) -> None:
    """Show the layers, the contract and the digest of an ONNX file, one that Convoy wrote or any other."""
    from export.inspection import model_file

    found = model_file.inspect(model)
    table = Table("Layer (type)", "Output Shape", "Param #", "MACs", "Precision", box=None, header_style="bold", pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for layer in found.layers:
        shape = "?" if layer.shape is None else f"({', '.join(map(str, layer.shape))})"
        macs = "?" if layer.macs is None else f"{layer.macs:,}"
        name = escape(f"{layer.name} ({layer.operator})")
        table.add_row(name, escape(shape), f"{layer.parameters:,}", macs, layer.precision or "?")
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
    calibration = "not measured" if training.calibration_error is None else f"expected error {training.calibration_error:.2%}"
    calibration += "" if training.temperature == 1.0 else f", with a temperature of {training.temperature:.3f}"
    accuracy = "not measured" if training.accuracy is None else f"{training.accuracy:.2%}"
    if training.accuracy_interval is not None:
        accuracy += " (95 % interval {:.1%} to {:.1%})".format(*training.accuracy_interval)
    facts = {
        "name": contract.name,
        "input": f"uint8 {' x '.join(map(str, contract.input.shape))}, {contract.input.resize}, {contract.input.fit}",
        "labels": f"{len(contract.labels)}: {', '.join(contract.labels[:20])}{', ...' if len(contract.labels) > 20 else ''}",
        "head": contract.head,
        "precision": contract.precision,
        "trained": f"{training.network} on {training.data}, kept epoch {training.epochs}, seed {training.seed}",
        "accuracy": accuracy,
        "calibration": calibration,
        "golden": f"{len(contract.golden)} samples",
        "versions": ", ".join(f"{package} {version}" for package, version in training.versions.items()),
        "commit": training.commit or "unknown",
    }
    for key, value in facts.items():
        console.print(f"{key:<11} {value}", soft_wrap=True, markup=False)
