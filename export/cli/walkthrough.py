"""`convoy walkthrough`: every layer's effect on an image, as a web page and PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from export.cli.output_folder import check_output_folder, create_output_folder
from export.cli.progress_bar import progress_bar
from export.files import read_file
from export.progress import OnProgress
from export.walkthrough.pixel_scaling import PIXEL_SCALINGS, PixelScaling
from service.cli.parameters import FiniteFloat
from service.errors import InvalidRequest, LoadError, UserError

if TYPE_CHECKING:
    from export.walkthrough.subject import Subject
    from export.walkthrough.web_page import Page

_LEARNING_RATE = 0.01

console = Console(highlight=False)


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--model", "model_path", type=click.Path(path_type=Path), metavar="MODEL.onnx|RUN",
              help="The network: an ONNX file, or the folder of a run. Without one, the steps of a convolutional layer are shown "
                   "by hand, as in the tutorials.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), required=True,
              help="Folder, new or empty, for index.html and the PNG files.")  # fmt: skip
@click.option("--label", metavar="NAME", show_default="the image's folder if its name is a label, else the network's answer",
              help="The right answer, for the gradient step; only with a RUN.")  # fmt: skip
@click.option("--learning-rate", type=FiniteFloat(0, 1000, min_open=True), show_default=f"{_LEARNING_RATE}",
              help="Of the gradient step; only with a RUN.")  # fmt: skip
@click.option("--scaling", type=click.Choice(PIXEL_SCALINGS), show_default="0..1",
              help="The range of pixel values that an ONNX file not exported by Convoy takes.")  # fmt: skip
def walkthrough(
    image: Path, model_path: Path | None, output: Path, label: str | None, learning_rate: float | None, scaling: PixelScaling | None
) -> None:
    """Show every layer's effect on IMAGE, as a self-contained web page, OUTPUT/index.html, and PNG files.

    With a model, the page shows the maps of every layer, the filters of the first, the answer, and which pixels mattered for it.
    With a RUN of `convoy train` it also shows one step of backpropagation on the image.

    \b
    Examples:
      convoy walkthrough photo.jpg --output tour
      convoy walkthrough digit.png --model models/digits/1/model.onnx --output tour
      convoy walkthrough digit.png --model run --label 6 --output tour
    """  # noqa: D301 - \b keeps click from re-wrapping the lines
    from export.walkthrough import web_page

    check_output_folder(output)
    encoded = read_file(image)
    with progress_bar() as on_progress:
        try:
            page = _build_page(image, encoded, model_path, label, learning_rate, scaling, on_progress)
        except InvalidRequest as error:
            raise UserError(f"{image}: {error}") from None
        except LoadError as error:
            raise UserError(f"{model_path}: {error}") from None
        on_progress("writing the page", 0, 0)
        create_output_folder(output)
        names = web_page.write(page, output)
    for bar in page.answers[:1]:
        console.print(f"{image.name}: {bar.name}, {bar.text}", soft_wrap=True, markup=False)
    for section in page.sections:
        if section.bars:
            console.print(section.paragraphs[-1], soft_wrap=True, markup=False)
    console.print(f"wrote {output / names[0]} and {len(names) - 1} PNG files beside it", soft_wrap=True, markup=False)


def _build_page(
    image: Path, encoded: bytes, model_path: Path | None, label: str | None, learning_rate: float | None,
    scaling: PixelScaling | None, on_progress: OnProgress,
) -> "Page":  # fmt: skip
    from export.data.image_files import MAX_PIXELS
    from export.walkthrough import network_page, subject, tutorial_page, tutorial_steps
    from service.model.preprocessing import decode

    if model_path is None:
        for name, value in (("--label", label), ("--learning-rate", learning_rate), ("--scaling", scaling)):
            if value is not None:
                raise UserError(f"{name} needs --model")
        return tutorial_page.build_page(tutorial_steps.compute_steps(encoded, MAX_PIXELS), image.name)
    on_progress("reading the model", 0, 0)
    found = subject.load_subject(model_path, scaling)
    if found.assumed:
        click.echo(f"convoy: {model_path}: {found.assumed}", err=True)
    target = _target_class(found, label, learning_rate, image)
    pixels, photo = decode(encoded, found.spec, MAX_PIXELS), tutorial_steps.decode_photo(encoded, MAX_PIXELS)
    return network_page.build_page(found, pixels, photo, image.name, target, learning_rate or _LEARNING_RATE, on_progress)


def _target_class(found: "Subject", label: str | None, learning_rate: float | None, image: Path) -> int | None:
    """The right class for the gradient step: the `--label`, or the image's folder if it is a label; else None."""
    if found.checkpoint is None:
        for name, value in (("--label", label), ("--learning-rate", learning_rate)):
            if value is not None:
                raise UserError(f"{name} is for a gradient step, which needs a run of `convoy train` as --model")
        return None
    if label is not None and label not in found.labels:
        raise UserError(f"--label {label!r} is not one of {', '.join(found.labels)}")
    name = image.resolve().parent.name if label is None else label
    return found.labels.index(name) if name in found.labels else None
