"""Parameter types and options that several commands share."""

import math
import re
from pathlib import Path
from typing import Any

import click

DATA = "digits|mnist|cifar10|DIR"

DATA_DIR: dict[str, Any] = {
    "type": click.Path(path_type=Path),
    "metavar": "DIR",
    "show_default": "the user's cache",
    "help": "Folder with the files of mnist or cifar10; missing files are downloaded to it.",
}
"""The option `--data-dir`."""

data_dir_option = click.option("--data-dir", **DATA_DIR)


class ImageSize(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """`N` or `HxW` in pixels, as (height, width). The same as in service/cli, which export/ cannot import."""

    name = "image size"

    def __init__(self, largest_side: int) -> None:
        self.largest_side = largest_side

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parses a size."""
        match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", str(value).lower())
        height, width = (int(match[1]), int(match[2] or match[1])) if match is not None else (0, 0)
        if not (1 <= height <= self.largest_side and 1 <= width <= self.largest_side):
            self.fail(f"{value!r} is neither N nor HxW, of 1 to {self.largest_side} pixels, such as 224 or 224x160.", param, ctx)
        return height, width


class FiniteFloat(click.FloatRange):
    """A number in a range, without NaN, which click accepts. The same as in service/cli, which export/ cannot import."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parses a number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
