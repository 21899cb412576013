"""int8: a graph whose layers compute with integers, where that does no harm. After ONNX Runtime's static quantisation.

Between a QuantizeLinear and a DequantizeLinear round each layer ("QDQ") ONNX Runtime puts the integer operator. Activations are
uint8, each tensor with the range that pictures of the training part gave it; weights are int8, each output channel with a scale of
its own. Normalisation, the logits and Softmax stay in float.

Which range is best (the extremes, a percentile, or the one that loses the least information) is measured, and so is what each layer
costs: the layers that hurt most stay in float, one after the other, until the validation part is answered as it should be. Harm is
the mean Kullback-Leibler divergence of the answers from those in float: it tells layers apart that change no label.

Weights take 7 of their 8 bits ("reduced range"). A CPU without VNNI adds two products of 8 bits in 16 bits, which overflows without
a sign of it: there, with all 8 bits, `speed-net` changes 58 % of its labels on CIFAR-10, with 7 bits 1 %, as many as with 8 bits in
exact arithmetic. A file is served on other CPUs than the one it was made on, so this is not left to the latter.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from scipy.special import rel_entr

from export.inspection.layer_names import layer_name
from export.progress import OnProgress, ignore_progress
from service.errors import UserError
from service.model.contract import INPUT_NAME

CALIBRATION_ITEMS = 512
SENSITIVITY_ITEMS = 512
METHODS = {
    "extremes": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")
# Stay in integers if what comes in is in integers; a Relu becomes part of the layer before it.
_FOLLOWERS = ("Relu", "Clip", "MaxPool", "AveragePool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
# ONNX Runtime's integer products can give float: logits are never rounded to 8 bits.
_FLOAT_OUTPUT = ("Gemm", "MatMul")
_READ_ITEMS = 16
_READ_BYTES = 1 << 21

Run = Callable[[onnx.ModelProto, NDArray[np.uint8]], NDArray[np.float32]]
"""Probabilities float32[N,K] that a graph gives for pictures uint8[N,H,W,C]."""


@dataclass(frozen=True)
class Sensitivity:
    """A layer, the divergence in nats that it alone causes in int8, the share of labels that it changes, and what was decided."""

    layer: str
    operator: str
    divergence: float
    changed: float
    quantized: bool


@dataclass(frozen=True)
class Quantization:
    """How a graph became int8.

    `methods` are the divergences in nats of everything in int8, by the method that chose the ranges; `method` is the one taken.
    `accuracy` and `reference_accuracy` are those of the validation part, in int8 and in float.
    """

    method: str
    methods: dict[str, float]
    calibration_items: int
    sensitivity_items: int
    layers: tuple[Sensitivity, ...]
    accuracy: float
    reference_accuracy: float

    @property
    def in_float(self) -> tuple[str, ...]:
        """The layers that stayed in float."""
        return tuple(layer.layer for layer in self.layers if not layer.quantized)


def quantize(
    graph: onnx.ModelProto,
    calibration: NDArray[np.uint8],
    validation: NDArray[np.uint8],
    truth: NDArray[np.int64],
    run: Run,
    max_loss: float,
    on_progress: OnProgress = ignore_progress,
) -> tuple[onnx.ModelProto, Quantization]:
    """Makes a graph int8.

    Args:
        graph: in float32, from pictures to probabilities.
        calibration: training pictures uint8[n,H,W,C], by which the ranges are chosen.
        validation: pictures uint8[N,H,W,C], by which it is decided what stays in float.
        truth: their classes int64[N].
        run: computes with a graph as it will be served.
        max_loss: the fraction of the validation part that may be lost. One picture always may: it can lie on the border.
        on_progress: called with each step.

    Raises:
        UserError: there is nothing to quantise, or so much accuracy is lost with any layer in int8.
    """
    layers = _layers(graph)
    if not layers:
        raise UserError("int8: this network has neither a convolution nor a matrix product: there is nothing to quantise")
    nodes = list(layers)
    expected = run(graph, validation)
    sample = validation[:SENSITIVITY_ITEMS]

    def harm(chosen: Sequence[str], ranges: Any) -> tuple[float, float]:
        found = run(_quantized(graph, ranges, chosen), sample)
        return _divergence(expected[: len(sample)], found), float((found.argmax(1) != expected[: len(sample)].argmax(1)).mean())

    ranges = {}
    for done, name in enumerate(METHODS):
        on_progress("choosing the ranges", done, len(METHODS))
        ranges[name] = _ranges(graph, METHODS[name], calibration)
    methods = {name: harm(nodes, found)[0] for name, found in ranges.items()}
    method = min(methods, key=lambda name: methods[name])
    alone = {}
    for done, node in enumerate(nodes):
        on_progress("measuring each layer in int8", done, len(nodes))
        alone[node] = harm([node], ranges[method])
    floats: list[str] = []
    reference = float((expected.argmax(1) == truth).mean())
    for node in sorted(nodes, key=lambda node: -alone[node][0]):
        on_progress("choosing what stays in float", len(floats), len(nodes))
        candidate = _quantized(graph, ranges[method], [other for other in nodes if other not in floats])
        accuracy = float((run(candidate, validation).argmax(1) == truth).mean())
        if accuracy >= reference - max(max_loss, 1 / len(truth)) - 1e-9:
            break
        floats.append(node)
    else:
        raise UserError(
            f"int8: {accuracy:.2%} of {len(truth)} validation pictures are right with a single layer in int8, against "
            f"{reference:.2%} in float (allowed loss: {100 * max_loss:g} points); nothing was written"
        )
    onnx.checker.check_model(candidate, full_check=True)
    rows = tuple(Sensitivity(*layers[node], *alone[node], node not in floats) for node in nodes)
    return candidate, Quantization(method, methods, len(calibration), len(sample), rows, accuracy, reference)


def _layers(graph: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """What can be quantised, in order: names and operators of the layers, by the name of their node."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        own = [name for name in node.input if name in weights]
        if node.op_type in _LAYERS and bool(own) != (node.op_type == "Add"):  # of sums, those of two activations
            found[node.name] = (layer_name(node, own), node.op_type)
    return found


def _ranges(graph: onnx.ModelProto, method: CalibrationMethod, pictures: NDArray[np.uint8]) -> Any:
    """The range of every activation, as ONNX Runtime's quantiser takes them."""
    with tempfile.TemporaryDirectory(prefix="convoy-ranges-") as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        onnx.save_model(graph, path)
        calibrator = create_calibrator(
            path, (*_LAYERS, *_FOLLOWERS), augmented_model_path=str(path.with_name("augmented.onnx")), calibrate_method=method
        )
        step = max(1, min(_READ_ITEMS, _READ_BYTES // pictures[0].nbytes))  # it holds all activations of what it is given at once
        for at in range(0, len(pictures), step):
            calibrator.collect_data(_Pictures(pictures[at : at + step]))
        return calibrator.compute_data()


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """One batch, as ONNX Runtime's calibration reads it."""

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter([pictures])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next input, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def _quantized(graph: onnx.ModelProto, ranges: Any, chosen: Sequence[str]) -> onnx.ModelProto:
    """The graph with the layers of these nodes in int8, and no others."""
    quantizer = QDQQuantizer(
        graph,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[node.name for node in graph.graph.node if node.op_type in _LAYERS and node.name not in chosen],
        op_types_to_quantize=[*_LAYERS, *_FOLLOWERS],
        extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUT)},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # it puts its nodes at the end
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _divergence(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence, in nats, of answers float32[N,K] from the expected ones."""
    least = np.fmax(found, np.finfo(np.float32).tiny)  # a probability of 0, or none at all, is a large loss, not an infinite one
    return float(rel_entr(expected.astype(np.float64), least).sum(axis=1).mean())
