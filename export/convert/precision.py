"""Precisions below fp32: the file made from the fp32 file, and what that costs and gains, both measured in one run.

What is chosen is chosen by the training and the validation part. The test part is looked at once, at the end.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from export.convert import quantization
from export.convert.publish import write
from export.convert.quantization import Quantization
from export.data.datasets import Dataset
from export.evaluation import scores
from export.evaluation.scores import Report
from export.progress import OnProgress, ignore_progress
from service.errors import LoadError, UserError
from service.model import cpus, session
from service.model.contract import MAX_GOLDEN_PIXELS, Contract
from service.model.preprocessing import decode
from service.model.providers import ProviderName
from service.model.session import Model

Precision = Literal["fp32", "int8", "fp16"]

TOLERANCE: dict[Precision, dict[ProviderName, float]] = {
    "fp32": {"cpu": 1e-4, "cuda": 5e-3},
    "int8": {"cpu": 0.02, "cuda": 0.05},  # where a value is halfway between two steps, float's last bit decides
    "fp16": {"cpu": 5e-3, "cuda": 0.02},
}
"""How far a provider may be off the golden samples' probabilities; those of int8 and fp16 are the file's own, on the CPU."""

SPEED_ITEMS = 32
_ROUND_SECONDS = 0.2


@dataclass(frozen=True)
class Figures:
    """A file: the fraction of the test part that it gets right, its size, and how many images a second the CPU does."""

    accuracy: float
    size_bytes: int
    images_per_second: float


@dataclass(frozen=True)
class Cost:
    """What a precision costs and gains against `fp32`; `quantization` says how an int8 file was made.

    Images a second are those of batches of `batch_items`.
    """

    precision: Precision
    fp32: Figures
    lower: Figures
    batch_items: int
    quantization: Quantization | None = None


def quantize(
    graph: onnx.ModelProto,
    contract: Contract,
    dataset: Dataset,
    max_loss: float,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
) -> tuple[onnx.ModelProto, Quantization]:
    """Makes an fp32 graph int8.

    Args:
        graph: the graph.
        contract: its contract.
        dataset: ranges are taken from its training part, decisions from its validation part.
        max_loss: the fraction of the test part that may be lost; of the validation part half of it may, for they differ by chance.
        folder: where candidates are written; what is left there is of no use.
        on_progress: called with each step.

    Raises:
        UserError: as `quantization.quantize`.
    """

    def run(candidate: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        copy = onnx.ModelProto()
        copy.CopyFrom(candidate)
        return scores.predict(load_candidate(copy, contract, "int8", folder / "candidate.onnx"), pixels)

    random = np.random.default_rng(contract.training.seed)
    items = min(quantization.CALIBRATION_ITEMS, len(dataset.training))
    chosen = np.sort(random.choice(len(dataset.training), items, replace=False))
    truth = scores.truth_of(dataset.validation, dataset.labels, contract.labels)
    order = random.permutation(len(truth))  # so that the first pictures are of all classes
    return quantization.quantize(
        graph, dataset.training.pixels[chosen], dataset.validation.pixels[order], truth[order], run, max_loss / 2, on_progress
    )


def load_candidate(graph: onnx.ModelProto, contract: Contract, precision: Precision, path: Path) -> Model:
    """Writes a graph with a contract, but without golden samples, and loads it on the CPU as a server would.

    Raises:
        UserError: it cannot be served.
    """
    write(graph, contract.model_copy(update={"precision": precision, "golden": ()}), path)
    try:
        return session.load_model(path, "cpu", cpus.cpu_budget())
    except LoadError as error:
        raise UserError(f"{precision}: the exported file cannot be served: {error}") from None


def with_own_golden(served: Model, contract: Contract) -> Contract:
    """The contract of a loaded file of a lower precision: the golden pictures of the fp32 file, and its own answers to them."""
    precision: Precision = served.contract.precision
    pictures = np.stack([decode(sample.image_png, contract.input, MAX_GOLDEN_PIXELS) for sample in contract.golden])
    golden = tuple(
        sample.model_copy(update={"probabilities": tuple(row.tolist()), "tolerance": TOLERANCE[precision]})
        for sample, row in zip(contract.golden, served.probabilities(pictures), strict=True)
    )
    return served.contract.model_copy(update={"golden": golden})


def cost(precision: Precision, files: Sequence[Path], report: Report, found: Quantization | None) -> Cost:
    """Puts together what is known of the fp32 file and the one made from it, and measures their speed, on the CPU."""
    served = [session.load_model(path, "cpu", cpus.cpu_budget()) for path in files]
    batch_items = next(scores.batches(SPEED_ITEMS, served[0].contract.input)).stop
    speeds = images_per_second(served, batch_items)
    accuracies = (report.reference_accuracy, report.scores.accuracy)
    fp32, lower = (
        Figures(accuracy, path.stat().st_size, speed) for accuracy, path, speed in zip(accuracies, files, speeds, strict=True)
    )
    return Cost(precision, fp32, lower, batch_items, found)


def images_per_second(models: Sequence[Model], items: int, rounds: int = 5) -> list[float]:
    """Images a second of each model, in batches of `items` random pictures: the median over rounds in which they take turns."""
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (items, *served.input.shape), np.uint8) for served in models]
    found: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for speeds, served, batch in zip(found, models, batches, strict=True):
            start, done = time.perf_counter(), 0
            while not done or time.perf_counter() - start < _ROUND_SECONDS:
                served.predict(batch)
                done += items
            if turn:  # the first round warms up
                speeds.append(done / (time.perf_counter() - start))
    return [statistics.median(speeds) for speeds in found]
