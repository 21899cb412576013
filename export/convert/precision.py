"""Converts a model to a precision below fp32: int8 for CPUs, fp16 for GPUs.

Training and validation part decide how. The test part is only used afterwards, by the accuracy gate.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from export.convert import quantization
from export.convert.onnx_conversion import to_onnx
from export.convert.publish import write_model
from export.convert.quantization import Quantization
from export.data.datasets import Dataset, Part
from export.evaluation.measurement import predict, true_classes
from export.progress import OnProgress, ignore_progress
from export.training.checkpoint import Checkpoint
from export.training.inference import predict_logits
from service.errors import UserError
from service.model.contract import Contract
from service.model.providers import ProviderName

Precision = Literal["fp32", "int8", "fp16"]

TOLERANCE: dict[Precision, dict[ProviderName, float]] = {
    "fp32": {"cpu": 1e-4, "cuda": 5e-3},
    "int8": {"cpu": 0.02, "cuda": 0.05},  # the last bit of a float decides how a value halfway between two steps is rounded
    "fp16": {"cpu": 5e-3, "cuda": 0.02},
}
"""Largest difference between a provider's probabilities and those of a golden sample."""

_RANGE_ITEMS = 512


def to_int8(
    graph: onnx.ModelProto,
    contract: Contract,
    dataset: Dataset,
    max_loss: float,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
) -> tuple[onnx.ModelProto, Quantization]:
    """Quantises an fp32 graph.

    Args:
        graph: the graph.
        contract: its contract.
        dataset: the ranges of activations come from its training part, decisions from its validation part.
        max_loss: the fraction of the test part that may be lost. Half of it may be lost of the validation part: the two parts
            differ by chance.
        folder: for temporary files.
        on_progress: called with each step.

    Raises:
        UserError: as `quantization.quantize`.
    """
    candidate_contract = contract.model_copy(update={"precision": "int8", "golden": ()})

    def run(candidate: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        copy = onnx.ModelProto()
        copy.CopyFrom(candidate)
        return predict(write_model(copy, candidate_contract, folder / "candidate.onnx"), pixels)

    random = np.random.default_rng(contract.seed)
    items = min(quantization.CALIBRATION_ITEMS, len(dataset.training))
    chosen = np.sort(random.choice(len(dataset.training), items, replace=False))
    truth = true_classes(dataset.validation, dataset.labels, contract.labels)
    order = random.permutation(len(truth))  # the first images are a sample of all classes
    return quantization.quantize(
        graph, dataset.training.pixels[chosen], dataset.validation.pixels[order], truth[order], run, max_loss / 2, on_progress
    )


def to_fp16(checkpoint: Checkpoint, validation: Part, temperature: float) -> onnx.ModelProto:
    """A graph whose layers compute in half precision. Raises UserError as `check_half_range` does."""
    check_half_range(checkpoint, validation)
    return to_onnx(checkpoint, temperature, torch.float16)


def check_half_range(checkpoint: Checkpoint, part: Part) -> None:
    """Raises UserError if a weight, or an activation for images of a part, is beyond the range of half precision.

    ONNX Runtime computes half precision in float32 on the CPU, so the accuracy gate would not notice.
    """
    largest = _largest_values(checkpoint, part.pixels[:_RANGE_ITEMS])
    name, value = max(largest.items(), key=lambda item: item[1])
    limit = torch.finfo(torch.float16).max
    if not value < limit:
        raise UserError(f"fp16: {name} reaches {value:.3g}, half precision ends at {limit:g}: export with --precision fp32")


def _largest_values(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """The largest absolute value of each weight, and of each module's inputs and outputs; infinity for NaN."""
    network = checkpoint.network
    largest: dict[str, float] = {}

    def record(name: str, values: Any) -> None:
        if isinstance(values, torch.Tensor) and values.is_floating_point():
            largest[name] = max(largest.get(name, 0.0), float(values.detach().abs().max().nan_to_num(nan=torch.inf)))

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            for values in (*inputs, output):  # a sum inside a block is seen as the input of the next module
                record(name or "the network", values)

        return hook

    for name, weights in (*network.named_parameters(), *network.named_buffers()):
        record(name, weights)
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in network.named_modules()]
    try:
        predict_logits(checkpoint, pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
