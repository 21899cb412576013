"""PyTorch's answers with a checkpoint's weights, and the comparison of an exported file with them."""

import numpy as np
import torch
from numpy.typing import NDArray

from export.data.datasets import Dataset, Part
from export.evaluation.calibration import choose_temperature
from export.evaluation.gates import Comparison, compare
from export.evaluation.measurement import batches, true_classes
from export.progress import OnCount, ignore_progress
from export.training.checkpoint import Checkpoint
from export.training.inference import predict_logits
from service.model.inference import Model


def compare_with_pytorch(
    served: Model, checkpoint: Checkpoint, dataset: Dataset, on_count: OnCount = ignore_progress
) -> Comparison:
    """Compares a loaded file with the checkpoint that it was made from, at the file's temperature, on the test part."""
    temperature = served.contract.temperature
    return compare(served, lambda pixels: probabilities(checkpoint, pixels, temperature), dataset.test, dataset.labels, on_count)


def best_temperature(checkpoint: Checkpoint, dataset: Dataset, on_count: OnCount = ignore_progress) -> float:
    """The temperature that suits the validation part, 1 if none does or it is too small (`calibration.choose_temperature`)."""
    truth = true_classes(dataset.validation, dataset.labels, checkpoint.labels)
    return choose_temperature(_logits(checkpoint, dataset.validation, on_count), truth)


def probabilities(checkpoint: Checkpoint, pixels: NDArray[np.uint8], temperature: float) -> NDArray[np.float32]:
    """Probabilities float32[N,K] for pixels uint8[N,H,W,C], with the logits divided by `temperature`."""
    found: NDArray[np.float32] = (torch.from_numpy(predict_logits(checkpoint, pixels)) / temperature).softmax(1).numpy()
    return found


def _logits(checkpoint: Checkpoint, part: Part, on_count: OnCount) -> NDArray[np.float32]:
    """Logits float32[N,K] for a part of the data, without a temperature."""
    found = []
    for batch in batches(len(part), checkpoint.input):
        found.append(predict_logits(checkpoint, part.pixels[batch]))
        on_count(batch.stop, len(part))
    return np.concatenate(found)
