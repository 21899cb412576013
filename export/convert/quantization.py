"""Static quantisation to int8 with ONNX Runtime, for the layers that it does not harm.

ONNX Runtime runs a layer between a DequantizeLinear and a QuantizeLinear ("QDQ") as an integer operator. Activations are uint8,
with a range for each tensor from training images; weights are int8, with a scale for each output channel. Normalisation, logits
and Softmax stay in float.

Two things are chosen by measurement on the validation part. First the method for the ranges: the extremes, a percentile, or the
range that loses the least information. Then the layers that stay in float: the most harmful layers, one after the other, until the
accuracy suffices. Harm is the mean Kullback-Leibler divergence of the answers from those in float, which also ranks layers that
change no label.

Weights use 7 of their 8 bits ("reduced range"). A CPU without VNNI adds two 8-bit products in 16 bits, which overflows silently:
there, with all 8 bits, `speed-net` changes 58 % of its labels on CIFAR-10, and with 7 bits 1 %, as many as with 8 bits in exact
arithmetic. The CPU that serves a file is not the one that made it, so 7 bits are used everywhere.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from scipy.special import rel_entr

from export.files import temporary_folder
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
# These stay in integers if their input is in integers; a Relu is fused into the layer before it.
_FOLLOWERS = ("Relu", "Clip", "MaxPool", "AveragePool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
# ONNX Runtime's integer matrix products can return float, so that logits are never rounded to 8 bits.
_FLOAT_OUTPUT = ("Gemm", "MatMul")
_CALIBRATION_BATCH_ITEMS = 16
_CALIBRATION_BATCH_BYTES = 1 << 21

Run = Callable[[onnx.ModelProto, NDArray[np.uint8]], NDArray[np.float32]]
"""Runs a graph as it will be served: probabilities float32[N,K] for images uint8[N,H,W,C]."""


@dataclass(frozen=True)
class Sensitivity:
    """One layer.

    Attributes:
        layer: its name.
        operator: its ONNX operator.
        divergence: of the answers from those in float, in nats, with this layer alone in int8.
        changed: fraction of labels that this changes.
        quantized: whether it became int8.
    """

    layer: str
    operator: str
    divergence: float
    changed: float
    quantized: bool


@dataclass(frozen=True)
class Quantization:
    """How a graph was quantised.

    Attributes:
        method: the method chosen for the ranges.
        methods: divergence in nats with all layers in int8, by method.
        calibration_items: number of training images for the ranges.
        sensitivity_items: number of validation images for the divergences.
        layers: in graph order.
        accuracy: on the validation part, in int8.
        reference_accuracy: on the validation part, in float.
    """

    method: str
    methods: dict[str, float]
    calibration_items: int
    sensitivity_items: int
    layers: tuple[Sensitivity, ...]
    accuracy: float
    reference_accuracy: float


def quantize(
    graph: onnx.ModelProto,
    calibration: NDArray[np.uint8],
    validation: NDArray[np.uint8],
    truth: NDArray[np.int64],
    run: Run,
    max_loss: float,
    on_progress: OnProgress = ignore_progress,
) -> tuple[onnx.ModelProto, Quantization]:
    """Quantises a graph.

    Args:
        graph: float32, from images to probabilities.
        calibration: training images uint8[n,H,W,C] for the ranges.
        validation: images uint8[N,H,W,C] for the decisions.
        truth: their classes int64[N].
        run: runs a graph.
        max_loss: fraction of the validation part that may be lost. One image always may: it can lie on the border of a class.
        on_progress: called with each step.

    Raises:
        UserError: there is no layer to quantise, or any layer in int8 loses too much accuracy.
    """
    layers = _layers(graph)
    if not layers:
        raise UserError("int8: this network has neither a convolution nor a matrix product: there is nothing to quantise")
    search = _LayerSearch(graph, list(layers), validation, truth, run, on_progress)
    method, methods, ranges = search.choose_ranges(calibration)
    sensitivities = search.measure_each_layer(ranges)
    most_divergent_first = sorted(sensitivities, key=lambda node: -sensitivities[node][0])
    candidate, accuracy, floats = search.keep_in_float(most_divergent_first, ranges, max_loss)
    onnx.checker.check_model(candidate, full_check=True)
    rows = tuple(Sensitivity(*layers[node], *sensitivities[node], node not in floats) for node in layers)
    return candidate, Quantization(method, methods, len(calibration), len(search.sample), rows, accuracy, search.reference_accuracy)


class _LayerSearch:
    """Runs a graph with some layers in int8 and compares its answers with those in float. Layers are named by their nodes."""

    def __init__(
        self, graph: onnx.ModelProto, nodes: list[str], validation: NDArray[np.uint8], truth: NDArray[np.int64], run: Run,
        on_progress: OnProgress,
    ) -> None:  # fmt: skip
        self._graph = graph
        self._nodes = nodes
        self._validation = validation
        self._truth = truth
        self._run = run
        self._on_progress = on_progress
        self._expected = run(graph, validation)
        self.sample = validation[:SENSITIVITY_ITEMS]
        self.reference_accuracy = self._accuracy_of(self._expected)

    def choose_ranges(self, calibration: NDArray[np.uint8]) -> tuple[str, dict[str, float], Any]:
        """The best method with all layers in int8, the divergence of each method, and the ranges of the best."""
        ranges = {}
        for done, name in enumerate(METHODS):
            self._on_progress("choosing the ranges", done, len(METHODS))
            ranges[name] = _ranges(self._graph, METHODS[name], calibration)
        divergences = {name: self._compare(self._nodes, found)[0] for name, found in ranges.items()}
        method = min(divergences, key=lambda name: divergences[name])
        return method, divergences, ranges[method]

    def measure_each_layer(self, ranges: Any) -> dict[str, tuple[float, float]]:
        """Divergence and fraction of changed labels with each layer alone in int8, by node."""
        found = {}
        for done, node in enumerate(self._nodes):
            self._on_progress("measuring each layer in int8", done, len(self._nodes))
            found[node] = self._compare([node], ranges)
        return found

    def keep_in_float(self, order: list[str], ranges: Any, max_loss: float) -> tuple[onnx.ModelProto, float, list[str]]:
        """Keeps as few layers in float as the accuracy needs, in this order.

        Returns:
            The graph, its accuracy, and the nodes that stay in float. Raises UserError if a single layer in int8 is too much.
        """
        floats: list[str] = []
        for node in order:
            self._on_progress("choosing what stays in float", len(floats), len(order))
            candidate = _quantized(self._graph, ranges, [other for other in self._nodes if other not in floats])
            accuracy = self._accuracy_of(self._run(candidate, self._validation))
            if accuracy >= self.reference_accuracy - max(max_loss, 1 / len(self._truth)) - 1e-9:
                return candidate, accuracy, floats
            floats.append(node)
        raise UserError(
            f"int8: {accuracy:.2%} of {len(self._truth)} validation images are right with a single layer in int8, against "
            f"{self.reference_accuracy:.2%} in float (allowed loss: {100 * max_loss:g} points); nothing was written"
        )

    def _accuracy_of(self, probabilities: NDArray[np.float32]) -> float:
        return float((probabilities.argmax(1) == self._truth).mean())

    def _compare(self, nodes: Sequence[str], ranges: Any) -> tuple[float, float]:
        """Divergence in nats, and fraction of changed labels, with these layers in int8."""
        expected = self._expected[: len(self.sample)]
        found = self._run(_quantized(self._graph, ranges, nodes), self.sample)
        return _divergence(expected, found), float((found.argmax(1) != expected.argmax(1)).mean())


def _layers(graph: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """The layers that can be quantised, in graph order: name and operator, by the name of the node."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        own = [name for name in node.input if name in weights]
        if node.op_type in _LAYERS and bool(own) != (node.op_type == "Add"):  # an Add of two activations; not of a bias
            found[node.name] = (layer_name(node, own), node.op_type)
    return found


def _ranges(graph: onnx.ModelProto, method: CalibrationMethod, images: NDArray[np.uint8]) -> Any:
    """The range of every activation, in the form of ONNX Runtime's quantiser."""
    with temporary_folder() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = folder / "model.onnx"
        onnx.save_model(graph, path)
        calibrator = create_calibrator(
            path, (*_LAYERS, *_FOLLOWERS), augmented_model_path=str(path.with_name("augmented.onnx")), calibrate_method=method
        )
        # The calibrator holds all activations of a batch in memory.
        step = max(1, min(_CALIBRATION_BATCH_ITEMS, _CALIBRATION_BATCH_BYTES // images[0].nbytes))
        for at in range(0, len(images), step):
            calibrator.collect_data(_CalibrationBatch(images[at : at + step]))
        return calibrator.compute_data()


class _CalibrationBatch(CalibrationDataReader):  # type: ignore[misc]
    """One batch for ONNX Runtime's calibration."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter([images])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next input, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def _quantized(graph: onnx.ModelProto, ranges: Any, chosen: Sequence[str]) -> onnx.ModelProto:
    """The graph with only the layers of the `chosen` nodes in int8."""
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
    quantizer.model.topological_sort()  # the quantiser appends its nodes at the end
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _divergence(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence, in nats, of probabilities float32[N,K] from the expected ones."""
    least = np.fmax(found, np.finfo(np.float32).tiny)  # 0 and NaN give a large divergence, not an infinite one
    return float(rel_entr(expected.astype(np.float64), least).sum(axis=1).mean())
