"""`convoy evaluate`: measures a model file on labelled pictures."""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console

from export.cli.options import DATA, data_dir_option
from export.cli.output_folder import check_output_folder, create_output_folder
from export.cli.progress_bar import progress_bar
from export.files import write_file
from export.text import first_of
from service.errors import InvalidModel, LoadError, UserError

if TYPE_CHECKING:
    from export.evaluation.folder import Measured
    from service.model.inference import Model
    from service.model.providers import Provider

EVALUATION = "evaluation.json"

_SHOWN_LEFT_OUT = 5
_SHOWN_LABELS = 3

console = Console(highlight=False)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar=DATA,
              help="Labelled pictures: a data set, or any folder of class folders. It may have few of the model's classes, or "
                   "test/ alone.")  # fmt: skip
@data_dir_option
@click.option("--labels-map", type=click.Path(path_type=Path), metavar="FILE",
              help="Which of the model's labels a class folder is: .csv with rows of folder,label, or .json with an object. Other "
                   "folders go by their names, whatever their case, spaces and underscores.")  # fmt: skip
@click.option("--part", type=click.Choice(["training", "validation", "test", "all"]),
              show_default="test, where the data have parts or are those that the model was trained on; else all",
              help="The part of the data, split as for the model's training: it has not seen the test part.")  # fmt: skip
@click.option("--head", metavar="NAME", default="", show_default="the first", help="Which answer of a model that gives several.")
@click.option("--provider", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True,
              help="ONNX Runtime execution provider; auto takes CUDA where it works.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path),
              help=f"Folder, new or empty, for {EVALUATION} and images of the confusion matrix, the reliability diagram and the "
                   "most confident mistakes.")  # fmt: skip
@click.option("--predictions", type=click.Path(path_type=Path), metavar="FILE.csv",
              help="Write a row for each picture: path, label, answers, probabilities, and why a broken one has none.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def evaluate(
    model: Path, data: str, data_dir: Path | None, labels_map: Path | None, part: str | None, head: str,
    provider: Literal["auto", "cuda", "cpu"], output: Path | None, predictions: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the file MODEL.onnx with the code that serves it, from the bytes of each picture to its label.

    Shows accuracy with its 95 % confidence interval, precision and recall of every class, the expected calibration error, and which
    classes are mistaken for each other. Broken pictures are left out and counted. Does not need PyTorch.
    """
    from export.cli import summary
    from export.data.labelled_pictures import load_pictures
    from export.evaluation import figures
    from export.evaluation.folder import measure
    from export.evaluation.label_mapping import read_labels_map
    from export.evaluation.predictions import check_predictions_file, write_predictions
    from service.model.session import check_provider

    check_provider(provider)
    if output is not None:
        check_output_folder(output)
    if predictions is not None:
        check_predictions_file(predictions, output)
    given = None if labels_map is None else read_labels_map(labels_map)
    served = _load(model, data, provider)
    with progress_bar() as on_progress:
        pictures = load_pictures(data, served.contract, part, data_dir, on_progress)
        found = measure(served, pictures, head, given, partial(on_progress, "measuring"))
    _report_left_out(found)
    files = []
    if output is not None:
        create_output_folder(output)
    if predictions is not None:
        write_predictions(predictions, found)
        files = [str(predictions)]
    one_label = found.head.activation != "multilabel"
    figures_of = summary.as_json(found.scores) if one_label else summary.multilabel_as_json(found.multilabel_scores)
    content = json.dumps({**_heading(served, found), **figures_of}, indent=2, ensure_ascii=False)
    if output is not None:
        write_file(output / EVALUATION, f"{content}\n".encode())
        drawn = figures.draw(found.scores, found.encoded, served.contract.input, output) if one_label else []
        files.append(f"{output}: {', '.join([EVALUATION, *drawn])}")
    if as_json:
        click.echo(content)
        return
    console.print("\n".join(_headlines(served, found)), soft_wrap=True, markup=False)
    if one_label:
        summary.show(found.scores, console)
    else:
        summary.show_multilabel(found.multilabel_scores, console)
    if files:
        console.print("", *(f"wrote {line}" for line in files), sep="\n", soft_wrap=True, markup=False)


def _load(model: Path, data: str, provider: "Provider") -> "Model":
    """The model, loaded as a server does. Raises UserError for one without a contract, too."""
    from export.data.datasets import folder_name
    from service.model.cpus import cpu_budget
    from service.model.loading import load_model

    try:
        if _is_foreign(model):
            raise UserError(
                f"{model}: no contract: the file does not say how a picture becomes its input, nor what its labels are. Import it, "
                f"and evaluate the file that this writes: convoy import {shlex.quote(str(model))} --repository models --name "
                f"{folder_name(model.with_suffix(''))} --labels labels.txt --preset torchvision|timm|keras|caffe "
                f"--data {shlex.quote(data)}"
            )
        return load_model(model, provider, cpu_budget())
    except LoadError as error:
        raise UserError(f"{model}: {error}") from None


def _is_foreign(model: Path) -> bool:
    """Whether it is an ONNX file without a contract. Loading it says what is wrong with others."""
    from service.model.contract import Contract
    from service.model.onnx_outline import read_outline

    try:
        return Contract.of_model(read_outline(model)) is None
    except (OSError, InvalidModel):
        return False


def _report_left_out(found: "Measured") -> None:
    """Says on stderr what was not measured."""
    lines = found.left_out
    if not lines:
        return
    more = len(lines) - _SHOWN_LEFT_OUT
    shown = [f"  {line}" for line in lines[:_SHOWN_LEFT_OUT]] + [f"  and {more} more"] * (more > 0)
    click.echo("\n".join([f"left out: {len(lines)}, {len(found.broken)} of them broken pictures", *shown]), err=True)


def _heading(served: "Model", found: "Measured") -> dict[str, object]:
    """What was measured on what, for JSON."""
    return {
        "model": served.contract.name,
        "precision": served.contract.precision,
        "digest": served.digest,
        "provider": served.provider,
        "head": found.head.name,
        "data": found.pictures.name,
        "part": found.pictures.part,
        "left_out": found.left_out,
    }


def _headlines(served: "Model", found: "Measured") -> list[str]:
    """What was measured on what, and a warning if the model may have been trained on some of it."""
    contract, training, pictures = served.contract, served.contract.training, found.pictures
    part = pictures.name if pictures.part == "all" else f"the {pictures.part} part of {pictures.name}"
    head = f", {found.head.name!r}" if len(contract.heads) > 1 else ""
    lines = [f"{contract.name}{head} ({contract.precision}, sha256 {served.digest[:12]}, on {served.provider}) on {part}"]
    shown = [repr(found.head.labels[index]) for index in sorted(set(found.classes[found.measured].tolist()))]
    if len(shown) < len(found.head.labels):
        lines.append(f"{len(shown)} of its {len(found.head.labels)} labels have pictures: {first_of(shown, _SHOWN_LABELS)}")
    if training is None:
        return lines
    if pictures.of_training:
        if pictures.part != "test":
            lines.append(f"the model was trained on {'some of these' if pictures.part == 'all' else 'these'} pictures")
    elif pictures.name != training.data:
        lines.append(f"the model was trained on {training.data}, which may include some of these images")
    elif training.data_digest:
        lines.append(
            f"{pictures.name} has changed since the model was trained: images were added, removed or changed. The model may have "
            f"been trained on some of {part}"
        )
    return lines
