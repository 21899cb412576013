"""Accuracy, size and images a second of fp32, int8 and fp16 files, all made from one checkpoint.

Accuracy is measured on the whole test part, through the code that serves. Speed is the median of rounds in which ONNX Runtime runs
each file in turn, on the CPU, with batches of random pictures. A precision that fails its gate is shown with the reason.

Usage: python -m tests.benchmarks.precision [RUN ...] [--rounds 7] [--threads N] [--max-accuracy-loss POINTS]
A RUN is the folder of a training (`convoy train`); its data are loaded again. Without one, article-cnn is trained on digits first.
"""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from export.cli import summary
from export.convert import pipeline
from export.convert.precision import Precision
from export.convert.precision_cost import images_per_second
from export.data import datasets
from export.training import loop
from export.training.checkpoint import load_checkpoint
from export.training.recipes import Settings
from service.errors import UserError
from service.model import cpus
from service.model.loading import load_model

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "fp16")
BATCHES = (1, 8, 32)

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=cpus.cpu_budget())
    parser.add_argument("--max-accuracy-loss", type=float, default=0.5, metavar="POINTS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(arguments.runs or [train_on_digits(Path(folder))]):
            measure(run, Path(folder) / str(number), arguments.rounds, arguments.threads, arguments.max_accuracy_loss / 100)


def train_on_digits(folder: Path) -> Path:
    """A run of article-cnn on the digits."""
    run = folder / "run"
    run.mkdir()
    loop.train(datasets.load_dataset("digits", 0), Settings("article-cnn", epochs=6, seed=0), run)
    return run


def measure(run: Path, repository: Path, rounds: int, threads: int, max_loss: float) -> None:
    """Exports one run in every precision and prints the figures of the files."""
    checkpoint = load_checkpoint(run)
    dataset = datasets.reload_dataset(checkpoint.source, checkpoint.settings.seed, checkpoint.input, checkpoint.labels)
    files: dict[Precision, pipeline.Exported] = {}
    for precision in PRECISIONS:
        try:
            files[precision] = pipeline.export(
                checkpoint, dataset, repository, dataset.name, precision=precision, max_accuracy_loss=max_loss
            )
        except UserError as error:
            console.print(f"{precision}: {error}", markup=False)
    console.print(
        f"\n{checkpoint.settings.network} on {dataset.name}: {len(dataset.training)} training, {len(dataset.test)} test pictures "
        f"of {'x'.join(map(str, checkpoint.input.shape))}; {threads} threads, {rounds} rounds",
        style="bold",
    )
    if "int8" in files and (cost := files["int8"].cost):
        summary.show_cost(cost, console)
    table = Table("precision", "accuracy", "bytes", *(f"images/s in batches of {items}" for items in BATCHES), box=None)
    served = [load_model(exported.path, "cpu", threads) for exported in files.values()]
    speeds = {items: images_per_second(served, items, rounds) for items in BATCHES}
    for index, (precision, exported) in enumerate(files.items()):
        cells = (f"{found[index]:,.0f} ({found[index] / found[0]:.2f} times)" for found in speeds.values())
        table.add_row(precision, f"{exported.comparison.scores.accuracy:.2%}", f"{exported.path.stat().st_size:,}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
