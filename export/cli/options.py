"""Options that several commands share."""

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
