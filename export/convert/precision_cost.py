"""What a precision below fp32 costs and gains: accuracy, file size and speed, measured beside the fp32 file."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.convert.precision import Precision
from export.convert.quantization import Quantization
from export.evaluation.gates import Comparison
from export.evaluation.measurement import batches
from service.model import cpus
from service.model.inference import Model
from service.model.loading import load_model

SPEED_ITEMS = 32
_ROUNDS = 5
_ROUND_SECONDS = 0.2


@dataclass(frozen=True)
class FileMetrics:
    """Metrics of one file: accuracy on the test part as a fraction, size, and speed on the CPU."""

    accuracy: float
    size_bytes: int
    images_per_second: float


@dataclass(frozen=True)
class PrecisionComparison:
    """A precision beside fp32.

    Attributes:
        precision: the lower precision.
        fp32: figures of the fp32 file.
        lower: figures of the file made from it.
        batch_items: batch size of the speeds.
        quantization: how an int8 file was made.
    """

    precision: Precision
    fp32: FileMetrics
    lower: FileMetrics
    batch_items: int
    quantization: Quantization | None = None


def measure_cost(
    precision: Precision, fp32_file: Path, lower_file: Path, comparison: Comparison, quantization: Quantization | None
) -> PrecisionComparison:
    """Measures the speed of both files on the CPU, by turns; their accuracies are those of `comparison`."""
    files = (fp32_file, lower_file)
    served = [load_model(path, "cpu", cpus.cpu_budget()) for path in files]
    batch_items = next(batches(SPEED_ITEMS, served[0].contract.input)).stop
    speeds = images_per_second(served, batch_items)
    accuracies = (comparison.reference_accuracy, comparison.scores.accuracy)
    fp32, lower = (
        FileMetrics(accuracy, path.stat().st_size, speed) for accuracy, path, speed in zip(accuracies, files, speeds, strict=True)
    )
    return PrecisionComparison(precision, fp32, lower, batch_items, quantization)


def images_per_second(models: Sequence[Model], items: int, rounds: int = _ROUNDS) -> list[float]:
    """Images a second of each model for batches of `items` random images: the median of rounds in which they take turns."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (items, *served.input.shape), np.uint8) for served in models]
    measured: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for speeds, served, batch in zip(measured, models, images, strict=True):
            start, done = time.perf_counter(), 0
            while not done or time.perf_counter() - start < _ROUND_SECONDS:
                served.predict(batch)
                done += items
            if turn:  # the first round is for warming up
                speeds.append(done / (time.perf_counter() - start))
    return [statistics.median(speeds) for speeds in measured]
