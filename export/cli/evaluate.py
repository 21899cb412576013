"""`convoy evaluate`: measures a model file on a data set."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console

from export.cli.dataset_loading import load_with_progress
from export.cli.options import DATA, data_dir_option
from export.cli.output_folder import check_output_folder, create_output_folder
from export.cli.progress_bar import progress_bar
from export.files import write_file
from service.errors import LoadError, UserError

if TYPE_CHECKING:
    from export.data.datasets import Dataset
    from service.model.inference import Model
    from service.model.providers import Provider

EVALUATION = "evaluation.json"

console = Console(highlight=False)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar=DATA, help="The data to measure on; their labels must be the model's.")
@data_dir_option
@click.option("--part", type=click.Choice(["training", "validation", "test"]), default="test", show_default=True,
              help="The part of the data, split as for the model's training: it has not seen the test part.")  # fmt: skip
@click.option("--provider", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True,
              help="ONNX Runtime execution provider; auto takes CUDA where it works.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path),
              help=f"Folder, new or empty, for {EVALUATION} and images of the confusion matrix, the reliability diagram and the "
                   "most confident mistakes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def evaluate(
    model: Path, data: str, data_dir: Path | None, part: str, provider: Literal["auto", "cuda", "cpu"], output: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure the file MODEL.onnx with the code that serves it, from the bytes of each image to its label.

    Shows accuracy with its 95 % confidence interval, precision and recall of every class, the expected calibration error, and which
    classes are mistaken for each other. Does not need PyTorch.
    """
    from export.cli import summary
    from export.evaluation import figures
    from export.evaluation.measurement import measure
    from service.model.session import check_provider

    check_provider(provider)
    if output is not None:
        check_output_folder(output)
    served = _load(model, provider)
    dataset = _load_data(served, data, data_dir)
    if output is not None:
        create_output_folder(output)
    images = getattr(dataset, part)
    with progress_bar() as on_progress:
        scores = measure(served, images, dataset.labels, partial(on_progress, f"{part} part"))
    content = json.dumps({**_heading(served, dataset, part), **summary.as_json(scores)}, indent=2, ensure_ascii=False)
    files = []
    if output is not None:
        write_file(output / EVALUATION, f"{content}\n".encode())
        files = [EVALUATION, *figures.draw(scores, images, served.contract.input, output)]
    if as_json:
        click.echo(content)
        return
    console.print("\n".join(_headlines(served, dataset, part)), soft_wrap=True, markup=False)
    summary.show(scores, console)
    if files:
        console.print(f"\nwrote {output}: {', '.join(files)}", soft_wrap=True, markup=False)


def _load(model: Path, provider: "Provider") -> "Model":
    from service.model.cpus import cpu_budget
    from service.model.loading import load_model

    try:
        served = load_model(model, provider, cpu_budget())
        served.contract  # noqa: B018 - raises LoadError for a model without one
    except LoadError as error:
        raise UserError(f"{model}: {error}") from None
    return served


def _load_data(served: "Model", data: str, data_dir: Path | None) -> "Dataset":
    """The data at the model's input, split as for its training. Raises UserError if their labels are not the model's."""
    from export.data.datasets import DatasetOptions, load_dataset
    from export.evaluation.measurement import check_labels

    contract = served.contract
    options = DatasetOptions(input=contract.input)
    dataset = load_with_progress(Console(stderr=True), partial(load_dataset, data, contract.seed, data_dir, options))
    check_labels(dataset.labels, contract.labels)
    return dataset


def _heading(served: "Model", dataset: "Dataset", part: str) -> dict[str, str]:
    """What was measured on what, for JSON."""
    return {
        "model": served.contract.name,
        "precision": served.contract.precision,
        "digest": served.digest,
        "provider": served.provider,
        "data": dataset.name,
        "part": part,
    }


def _headlines(served: "Model", dataset: "Dataset", part: str) -> list[str]:
    """What was measured on what, and a warning if the model may have been trained on some of it."""
    contract, training = served.contract, served.contract.training
    digest = served.digest[:12]
    lines = [f"{contract.name} ({contract.precision}, sha256 {digest}, on {served.provider}) on the {part} part of {dataset.name}"]
    if training is None:
        return lines
    if dataset.name != training.data:
        lines.append(f"the model was trained on {training.data}, which may include some of these images")
    elif training.data_digest not in ("", dataset.digest):
        lines.append(
            f"{dataset.name} has changed since the model was trained: images were added, removed or changed. The model may have "
            f"been trained on some of this {part} part"
        )
    return lines
