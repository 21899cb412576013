"""The options that choose data and network, as the commands share them, and how the data are loaded before the user's eyes."""

import fcntl
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from export.cli.progress_bar import progress_bar
from export.progress import OnProgress
from service.errors import UserError

if TYPE_CHECKING:
    from export.data.datasets import Dataset

_LARGEST_SIDE = 4096
_SKIPPED_SHOWN = 5
_LABELS_SHOWN = 10
_METAVAR = "digits|mnist|cifar10|DIR"


class ImageSize(click.ParamType[tuple[int, int]]):
    """`N` or `HxW` in pixels, as (height, width)."""

    name = "image size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Reads a size, or says what is accepted."""
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().split("x")
        if len(sides) not in (1, 2) or not all(
            side.isascii() and side.isdigit() and 1 <= int(side) <= _LARGEST_SIDE for side in sides
        ):
            self.fail(f"{value!r} is neither N nor HxW, of 1 to {_LARGEST_SIDE} pixels, such as 64 or 48x64.", param, ctx)
        return int(sides[0]), int(sides[-1])


def finite(_: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuses NaN, which click's ranges let through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.", param=parameter)
    return value


def check_new_folder(folder: Path, hint: str = "") -> None:
    """Raises UserError if `new_folder` would refuse the folder of `--output`: before work that may take minutes."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"--output {str(folder)!r} exists and is not an empty folder: nothing is overwritten, choose another{hint}"
            )
        above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:
        raise UserError(f"--output {str(folder)!r}: {error.strerror}") from None
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--output {str(folder)!r}: this user may not write to {str(above)!r}")


def hold(run: Path) -> None:
    """Keeps a run's folder for this process until it ends. Raises UserError if another training has it."""
    try:
        descriptor = os.open(run, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another training writes to {str(run)!r}: wait for it, or choose another --output") from None
    except OSError:
        return  # a file system without locks


def new_folder(folder: Path) -> None:
    """Makes the folder of `--output`. Raises UserError if there is something in it, or if it cannot be written."""
    check_new_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".convoy-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output {str(folder)!r}: {error.strerror}") from None


class NetworkHelp(click.Command):
    """A command whose help ends with the networks. They are looked up when help is asked for, as PyTorch takes its time."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Writes the networks and their options."""
        from export.networks.architectures import describe

        with formatter.section("Networks, and their options with the default first"):
            formatter.write(describe() + "\n")
        with formatter.section("Examples"):
            formatter.write(
                "  convoy train --data mnist --network article-cnn:pool=average,kernel=5 --output run\n"
                "  convoy train --data photos/ --network resnet18 --image-size 64 --fit crop --output run   "
                "(photos/cat/*.jpg, photos/dog/*.jpg)\n"
            )


data_option = click.option(
    "--data", required=True, metavar=_METAVAR,
    help="What to train on: a data set by name, or a folder of pictures: DIR/<class>/*.jpg, or DIR/train/<class>/*.jpg with "
         "DIR/test and DIR/val beside it. Parts that are missing are split off, by the seed.",
)  # fmt: skip
data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), metavar="DIR",
    help="Where the files of mnist or cifar10 are; what is missing is downloaded to it. Default: the user's cache folder.",
)  # fmt: skip
network_option = click.option(
    "--network",
    default="article-cnn",
    show_default=True,
    metavar="NAME[:option=value,...]",
    help="Which network to train; see below.",
)


def picture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `data.Choices` has, but for `channels`: the keywords are `image_size`, `fit`, `flip` and `shift_pixels`."""
    for option in (
        click.option("--shift", "shift_pixels", type=click.IntRange(0, _LARGEST_SIDE), metavar="PIXELS",
                     help="Move training pictures by up to so much at random. Default: the recipe's, or else 2 for digits, 1 for "
                          "mnist, an eighth of the picture for others."),
        click.option("--flip/--no-flip", default=None,
                     help="Mirror every other training picture. Default: yes, except for digits and mnist; turn it off for "
                          "pictures of anything that can be read."),
        click.option("--fit", type=click.Choice(["stretch", "crop", "pad"]),
                     help="How a picture of another shape is brought to the network's input, in training and serving. "
                          "Default: stretch."),
        click.option("--image-size", type=ImageSize(), metavar="N|HxW",
                     help="The network's input in pixels. Default: the pictures' own size; of a folder, if it is the same for all "
                          "and at most 64, else 32, 64, 128 or 224 by their median size."),
    ):  # fmt: skip
        command = option(command)
    return command


def load_with_progress(console: Console, read: "Callable[[OnProgress], Dataset]", *, to_train: bool = False) -> "Dataset":
    """Loads data with `read`, which is given a progress callback; shows a bar meanwhile, and then what was loaded."""
    with progress_bar(console) as on_progress:
        dataset = read(on_progress)
    console.print(summary(dataset, to_train=to_train), soft_wrap=True, markup=False)
    return dataset


def summary(dataset: "Dataset", *, to_train: bool = False) -> str:
    """What was loaded, and what was chosen for it, in a line or a few."""
    spec = dataset.input
    lines = [
        f"{dataset.name}: {len(dataset.training)} training, {len(dataset.validation)} validation, {len(dataset.test)} test "
        f"pictures, {len(dataset.labels)} classes, {'x'.join(map(str, spec.shape))}",
        f"pictures are {dataset.pictures}; brought to {spec.height}x{spec.width}, {'gray' if spec.channels == 1 else 'color'}, "
        f"{spec.fit}{f'; in training {dataset.augmentation}' if to_train else ''}",
    ]
    if to_train:
        lines.append(
            f"classes: {', '.join(dataset.labels[:_LABELS_SHOWN])}{', ...' if len(dataset.labels) > _LABELS_SHOWN else ''}"
        )
    if dataset.skipped:
        lines.append(f"left out: {len(dataset.skipped)} files")
        lines += [f"  {line}" for line in dataset.skipped[:_SKIPPED_SHOWN]]
        if len(dataset.skipped) > _SKIPPED_SHOWN:
            lines.append(f"  and {len(dataset.skipped) - _SKIPPED_SHOWN} more")
    return "\n".join(lines)
