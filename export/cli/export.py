"""`convoy export`: the checkpoint of a run as a new version in a model repository."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console

from export.cli.dataset_loading import load_with_progress
from export.cli.options import DATA, data_dir_option, embeddings_option, explainable_option
from export.cli.parameters import MinimumAccuracy
from export.cli.progress_bar import progress_bar
from service.cli.parameters import FiniteFloat

if TYPE_CHECKING:
    from export.convert.pipeline import Exported

console = Console(highlight=False)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True,
              help="Folder of models, created if it does not exist.")  # fmt: skip
@click.option("--name", show_default="the data's name", help="Name of the model.")
@click.option("--minimum-accuracy", type=MinimumAccuracy(), default=0.0, metavar="PERCENT",
              help="Refuse to export below this accuracy on the test part.")  # fmt: skip
@click.option("--data", metavar=DATA, help="Where the data of the run are now, if they have moved.")
@data_dir_option
@click.option("--network", metavar="FILE.py:NAME",
              help="Where the code of the run's network is now, if it is your own and has moved.")  # fmt: skip
@click.option("--calibration/--no-calibration", default=True, show_default=True,
              help="Fit a temperature on the validation part, so that the confidence agrees with the accuracy; not on fewer than "
                   "50 images, nor where cross-validation shows no gain.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "int8", "fp16"]), default="fp32", show_default=True,
              help="Precision of the layers. int8, for CPUs: a quarter of the size; large networks are faster, most of all on CPUs "
                   "with VNNI, small ones may be slower. fp16, for GPUs: half the size; slower than fp32 on a CPU.")  # fmt: skip
@click.option("--max-accuracy-loss", type=FiniteFloat(0, 100), default=0.5, show_default=True, metavar="POINTS",
              help="Refuse to export if more accuracy is lost on the test part: from PyTorch to fp32, or from fp32 to int8 or "
                   "fp16.")  # fmt: skip
@explainable_option
@embeddings_option
def export(
    run: Path, repository: Path, name: str | None, minimum_accuracy: float, data: str | None, data_dir: Path | None,
    network: str | None, calibration: bool, precision: Literal["fp32", "int8", "fp16"], max_accuracy_loss: float,
    explainable: bool, embeddings: bool,
) -> None:  # fmt: skip
    """Export the checkpoint in the folder RUN as the next version of a model: REPOSITORY/NAME/<version>/model.onnx.

    The file is compared with PyTorch on the whole test part, and its accuracy measured with the code that serves it. If either gate
    fails, nothing is written to the repository. A model card, README.md, and its images are written beside the file.

    With --precision int8, each layer is measured in int8 on the validation part, and the layers that lose too much stay in float.
    The table of layers is printed and is in the model card.
    """
    from export.convert import pipeline
    from export.convert.hidden_outputs import HiddenOutputs
    from export.data.datasets import reload_dataset
    from export.data.sample_size import ENOUGH_TO_CHOOSE, enough_to_choose
    from export.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(run, network)
    known = (checkpoint.source, checkpoint.settings.seed, checkpoint.input, checkpoint.labels)
    dataset = load_with_progress(console, partial(reload_dataset, *known, data, data_dir))
    if calibration and not enough_to_choose(len(dataset.validation)):
        console.print(
            f"WARNING: no temperature is fitted: {len(dataset.validation)} validation pictures are too few, and {ENOUGH_TO_CHOOSE} "
            "would do; how sure the model seems says little",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    with progress_bar() as on_progress:
        exported = pipeline.export(
            checkpoint, dataset, repository, name or dataset.name, minimum_accuracy / 100, calibration, run, on_progress,
            precision, max_accuracy_loss / 100, HiddenOutputs(explainable, embeddings),
        )  # fmt: skip
    _show(exported, repository)


def _show(exported: "Exported", repository: Path) -> None:
    from export.cli import summary

    path, parity = exported.path, exported.parity
    beside = sorted(file.name for file in path.parent.iterdir() if file != path)
    if exported.cost is not None:
        summary.show_cost(exported.cost, console)
    console.print(
        f"parity {'' if exported.cost is None else 'of fp32 '}with PyTorch on {parity.scores.items} test images: largest "
        f"difference {parity.max_difference:.1e}, same top label on {100 * parity.same_top1:g}%; PyTorch's accuracy "
        f"{parity.reference_accuracy:.2%}\n{summary.headline(exported.comparison.scores)}\n"
        f"wrote {path}, and beside it {', '.join(beside)}; next: convoy serve {shlex.quote(str(repository))}",
        soft_wrap=True,
        markup=False,
    )
