"""`convoy import`: a classifier from anywhere as a new version in a model repository."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
from click.core import ParameterSource
from rich.console import Console

from export.cli.options import CROP_PCT, embeddings_option, explainable_option
from export.cli.parameters import MinimumAccuracy
from export.cli.progress_bar import progress_bar
from service.cli.parameters import FiniteFloat
from service.errors import UserError

if TYPE_CHECKING:
    from export.importing.pipeline import Imported
    from export.importing.search import Trial

_FILTERS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming", "tf-bilinear", "cv2-linear")
_Scores = Literal["auto", "logits", "probabilities", "log-probabilities", "sigmoid", "multilabel"]
_LONGEST_SIDE = 4096
_SHOWN_TRIALS = 20
_ARGUMENTS = "convoy.arguments"
_TAKEN_BY_SEARCH = (
    "source", "repository", "name", "labels", "outputs", "layout", "input_shape", "data", "dry_run", "search_preprocessing",
)  # fmt: skip

console = Console(highlight=False)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them: so many, and in a range."""

    name = "numbers"

    def __init__(self, counts: tuple[int, ...], low: float = -1e9, high: float = 1e9, *, whole: bool = False) -> None:
        self.counts = counts
        self.low = low
        self.high = high
        self.whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Reads the numbers, or says what is accepted."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(word) if self.whole else float(word) for word in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in self.counts or not all(self.low <= number <= self.high for number in numbers):
            accepted = " or ".join(map(str, self.counts))
            kind = f"whole numbers from {self.low:g} to {self.high:g}" if self.whole else "numbers"
            self.fail(f"{value!r} is not {accepted} {kind}, with commas between them.", param, ctx)
        return numbers


class _Remembering(click.Command):
    """Keeps its arguments as they were typed: the contract says what imported a model."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the presets, which are imported for `--help` alone."""
        from export.importing.presets import PRESETS

        with formatter.section("Presets"):
            formatter.write_dl([(name, preset.meaning) for name, preset in PRESETS.items()])
        super().format_epilog(ctx, formatter)


@click.command(name="import", cls=_Remembering)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), required=True,
              help="Folder of models, created if it does not exist.")  # fmt: skip
@click.option("--name", required=True, help="Name of the model.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="Names of the classes: one a line, or JSON.")  # fmt: skip
@click.option("--preset", metavar="NAME",
              help="Pictures are prepared as by torchvision, timm, keras or caffe; for Keras there are also keras-torch, "
                   "keras-caffe and keras-raw, by the mode of preprocess_input.")  # fmt: skip
@click.option("--preprocessor", type=click.Path(path_type=Path), metavar="FILE",
              help="... or as this file says: Hugging Face's preprocessor_config.json, or timm's config.json.")  # fmt: skip
@click.option("--resize", metavar="HOW",
              help="short:256 (the shorter side), stretch:224x224, pad:224, cover:224, or none. By default stretched.")  # fmt: skip
@click.option("--filter", "filter_name", type=click.Choice(_FILTERS), help="Of the resize. By default bilinear.")
@click.option("--crop", type=click.IntRange(1, _LONGEST_SIDE), metavar="N", help="Cut the middle NxN of the resized picture.")
@click.option("--crop-pct", **CROP_PCT)
@click.option("--scale", type=FiniteFloat(0, 1e9, min_open=True), metavar="S",
              help="What pixels, 0 to 255, are divided by: 255, 127.5 or 1.")  # fmt: skip
@click.option("--mean", type=Numbers((1, 3)), metavar="R,G,B",
              help="Subtracted after --scale, in its units; in the order of the channels as the network takes them.")  # fmt: skip
@click.option("--std", type=Numbers((1, 3)), metavar="R,G,B", help="Divided by after that.")
@click.option("--channels", type=click.Choice(["rgb", "bgr", "gray"]), help="What the network was trained on. By default rgb.")
@click.option(
    "--layout", type=click.Choice(["auto", "nchw", "nhwc"]), default="auto", show_default=True, help="Of the graph's input."
)
@click.option("--pad-color", type=Numbers((3,), 0, 255, whole=True), metavar="R,G,B", help="Of the border that --resize pad makes.")
@click.option("--pad-align", type=click.Choice(["center", "start"]), help="Where the picture is within that border.")
@click.option("--alpha", type=click.Choice(["white", "drop"]), help="Transparent pixels: over white, or their alpha dropped.")
@click.option("--exif", type=click.Choice(["apply", "ignore"]), help="Whether a picture is turned as its camera says.")
@click.option("--input-shape", type=Numbers((2,), 1, _LONGEST_SIDE, whole=True), metavar="H,W",
              help="Height and width where the graph leaves them open.")  # fmt: skip
@click.option("--scores", type=click.Choice(get_args(_Scores)), default="auto", show_default=True,
              help="What the graph's output holds; auto finds it on real pictures and says it. One sigmoid unit is the "
                   "probability of the second label.")  # fmt: skip
@click.option("--threshold", type=FiniteFloat(0, 1, min_open=True, max_open=True), show_default="0.5",
              help="From this probability on a label is taken as true, where each is true or not by itself.")  # fmt: skip
@click.option("--output", "outputs", multiple=True, metavar="NAME[=LABELS]",
              help="The output, or any value inside the graph, that holds the scores. Given again, further heads, each "
                   "with a file of labels of its own.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR",
              help="Labelled pictures, DIR/<class>/*.jpg: the accuracy on all of them is measured; of a folder with parts, on "
                   "DIR/test, else DIR/val.")  # fmt: skip
@click.option("--minimum-accuracy", type=MinimumAccuracy(), metavar="PERCENT",
              help="Refuse to import below this; needs --data.")  # fmt: skip
@click.option("--reference", type=click.Path(path_type=Path), metavar="FILE.npz",
              help="Pictures, and the pixels, inputs or outputs that the training's own pipeline made of them, which "
                   "must be the same; export/README.md says how it is written.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "int8", "fp16"]), default="fp32", show_default=True,
              help="Of the layers. int8, for CPUs, is made on the pictures of --data; fp16, for GPUs, of any fp32 source. A "
                   "source in a lower precision keeps it.")  # fmt: skip
@click.option("--max-accuracy-loss", type=FiniteFloat(0, 100), default=0.5, show_default=True, metavar="POINTS",
              help="Refuse to import if int8 or fp16 loses more on --data.")  # fmt: skip
@explainable_option
@embeddings_option
@click.option("--search-preprocessing", is_flag=True,
              help="Try the usual ways to prepare pictures on --data, print how many are right with each, and write "
                   "nothing.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Do everything, but write nothing to the repository.")
@click.pass_context
def import_model(
    ctx: click.Context, source: Path, repository: Path, name: str, labels: Path | None, preset: str | None,
    preprocessor: Path | None,
    resize: str | None, filter_name: str | None, crop: int | None, crop_pct: float | None, scale: float | None,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: Literal["rgb", "bgr", "gray"] | None, layout: str,
    pad_color: tuple[int, int, int] | None, pad_align: str | None, alpha: str | None, exif: str | None,
    input_shape: tuple[int, int] | None, scores: _Scores, threshold: float | None, outputs: tuple[str, ...], data: Path | None,
    minimum_accuracy: float | None, reference: Path | None, precision: Literal["fp32", "int8", "fp16"],
    max_accuracy_loss: float, explainable: bool, embeddings: bool, search_preprocessing: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Import a classifier that was trained elsewhere as the next version of a model: REPOSITORY/NAME/<version>/model.onnx.

    SOURCE is an ONNX file, a folder with one, a program.pt2 of torch.export.save, or a model.keras where Keras is installed. It is
    wrapped into a graph that takes pixels and gives probabilities, so that it is served as Convoy's own models are. What the file
    says of itself is taken; what is found out is printed.

    Nothing is written unless the gates pass: the graph gives the same for the same picture, the wrapped file what the source gives,
    the pixels are those of --reference, and the accuracy on --data is high enough. The model card, README.md, says what was shown
    and what was not.

    \b
    Examples:
      convoy import resnet50.onnx --repository models --name resnet50 --preset torchvision --labels imagenet.txt
      convoy import model.onnx --repository models --name pets --resize stretch --scale 255 --data pets/test
    """  # noqa: D301 - \b keeps click from re-wrapping the lines
    if search_preprocessing:
        _refuse_beside_search(ctx)
    from export.convert.hidden_outputs import HiddenOutputs
    from export.importing import pipeline
    from export.importing.labels import read_labels_file
    from export.importing.recipe_options import RecipeOptions
    from export.importing.request import Request
    from export.importing.source import read_source

    options = RecipeOptions(
        preset, preprocessor, resize, filter_name, crop, crop_pct, scale, mean, std, channels, pad_color, pad_align, alpha, exif
    )
    request = Request(
        name, repository, None if labels is None else read_labels_file(labels), tuple(map(_output, outputs)),
        scores, threshold, layout, input_shape, data, (minimum_accuracy or 0.0) / 100,
        reference, precision=precision, max_accuracy_loss=max_accuracy_loss / 100, dry_run=dry_run,
        command=shlex.join(["convoy", "import", *ctx.meta[_ARGUMENTS]]), crop=crop,
        hidden=HiddenOutputs(explainable, embeddings),
    )  # fmt: skip
    with progress_bar() as on_progress:
        if search_preprocessing:
            _show_trials(pipeline.search_preprocessing(read_source(source), request, _say, on_progress))
            return
        imported = pipeline.import_model(read_source(source), options.recipe, request, _say, on_progress)
    _show(imported, repository)


def _refuse_beside_search(ctx: click.Context) -> None:
    """Raises UserError for flags that the search would ignore: it tries the ways to prepare pictures, and imports nothing."""
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in _TAKEN_BY_SEARCH and ctx.get_parameter_source(parameter.name or "") == ParameterSource.COMMANDLINE
    ]
    if given:
        raise UserError(
            f"--search-preprocessing tries ways to prepare pictures by itself and imports nothing: leave out {', '.join(given)}; "
            "beside it accepted are --data, --labels, --output, --layout and --input-shape"
        )


def _output(text: str) -> tuple[str, tuple[str, ...] | None]:
    """NAME or NAME=LABELS. Raises UserError if the labels cannot be read."""
    from export.importing.labels import read_labels_file

    name, found, path = text.partition("=")
    if not name or (found and not path):
        raise UserError(f"--output {text!r}: NAME or NAME=LABELS is accepted, such as color=colors.txt")
    return name, read_labels_file(Path(path)) if path else None


def _show_trials(trials: "list[Trial]") -> None:
    for trial in trials[:_SHOWN_TRIALS]:
        low, high = trial.interval
        _say(f"{trial.accuracy:6.1%} ({low:.1%} to {high:.1%})  {trial.flags}")
    best, tried = trials[0], len(trials)
    close = sum(trial.accuracy >= best.interval[0] for trial in trials) - 1
    unclear = f"; {close} others are within its interval: more pictures, or what the training did, tell them apart" if close else ""
    _say(f"the best of {tried} ways on {best.items} pictures: {best.flags}{unclear}")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


def _show(imported: "Imported", repository: Path) -> None:
    if imported.path is None:
        _say("every gate passed; nothing was written, as this is a dry run")
        return
    _say(f"wrote {imported.path}, and beside it README.md; next: convoy serve {shlex.quote(str(repository))}")
