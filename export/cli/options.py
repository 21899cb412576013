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

explainable_option = click.option(
    "--explainable", is_flag=True,
    help="Have the file give the activations before global average pooling to those who ask, so that a server explains its answers "
         "by class activation maps, in one run of the network. Without it a server hides parts of the picture, in a hundred.",
)  # fmt: skip

embeddings_option = click.option(
    "--embeddings", is_flag=True,
    help="Have the file give what its last linear layer takes to those who ask: pictures that look alike have embeddings that are "
         "close.",
)  # fmt: skip
