"""Options that several commands share."""

from pathlib import Path
from typing import Any

import click

from service.cli.parameters import FiniteFloat

DATA = "digits|mnist|cifar10|DIR"

DATA_DIR: dict[str, Any] = {
    "type": click.Path(path_type=Path),
    "metavar": "DIR",
    "show_default": "the user's cache",
    "help": "Folder with the files of mnist or cifar10; missing files are downloaded to it.",
}
"""The option `--data-dir`."""

CROP_PCT: dict[str, Any] = {
    "type": FiniteFloat(0.01, 1),
    "metavar": "P",
    "help": "Resize so that the input is this share of the shorter side, and cut the middle, as timm does.",
}
"""The option `--crop-pct`: for a square input, in place of `--resize` and `--crop`."""

data_dir_option = click.option("--data-dir", **DATA_DIR)
