"""What is inside an ONNX file: its layers, its contract, its digest. Needs onnx; neither PyTorch nor ONNX Runtime.

Shapes come from ONNX's own shape inference, run twice: on the graph as it is, for what is shown, and with the batch bound to one
picture, for what is counted. Whatever depends on constants alone is no layer but part of the layer that uses it: so int8 weights
behind a DequantizeLinear, or transposed ones, count as weights of their product. Nor is a QuantizeLinear or DequantizeLinear of
activations: they say in what the layer between them is computed.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, inliner

from export.files import read_file
from export.inspection.layer_names import layer_name
from service.errors import InvalidModel, UserError, first_line
from service.model.contract import METADATA_KEY, Contract

Shape = tuple[int | str, ...]

# The constants that onnx_export.Served normalises with: they were measured, not learned.
_NORMALISATION = ("mean", "std")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# Which inputs of a quantised operator are weights; the others are scales, zero points and activations.
_QUANTISED_WEIGHTS = {
    "QLinearConv": (3, 8), "ConvInteger": (1,), "QLinearMatMul": (0, 3), "MatMulInteger": (0, 1), "QGemm": (3, 6),
    "DynamicQuantizeMatMul": (1, 4), "MatMulIntegerToFloat": (1, 6), "QuantizeLinear": (0,), "DequantizeLinear": (0,),
}  # fmt: skip
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
# Where the two factors stand among the inputs.
_CONVOLUTIONS = {"Conv": (0, 1), "ConvTranspose": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_PRODUCTS = {
    "Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), "QGemm": (0, 3),
    "DynamicQuantizeMatMul": (0, 1), "MatMulIntegerToFloat": (0, 1),
}  # fmt: skip
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Layer:
    """One node of the graph. `output` is the name of its first output there, and `shape` is its shape.

    `statistics` are those of its `parameters` that are running means and variances. `macs` are multiply-accumulates for one
    image, None if a shape that they depend on is not known. `precision` is what it is computed in: `fp32`, `fp16`, `int8` and so
    on, None if that is not known.
    """

    name: str
    operator: str
    precision: str | None
    shape: Shape | None
    parameters: int
    statistics: int
    macs: int | None
    output: str


@dataclass(frozen=True)
class Inspection:
    """All that can be said of a file without running it.

    `macs` is of the layers where they are known. `contract` is None for a file that Convoy did not write; `external` are the
    files beside it that hold its weights, if they are not inside.
    """

    layers: list[Layer]
    parameters: int
    statistics: int
    macs: int
    contract: Contract | None
    digest: str
    size_bytes: int
    external: tuple[str, ...] = ()


def inspect(path: Path) -> Inspection:
    """Reads a model file; of weights outside it no more than their sizes, so they need not be there.

    Raises:
        UserError: it cannot be read or is no ONNX model.
        InvalidModel: it has a contract that is not valid.
    """
    content, model = read(path)
    found = contract(path, model)
    with _valid(path):
        counted = layers(inliner.inline_local_functions(model), ours=found is not None)
    return Inspection(
        layers=counted,
        parameters=sum(layer.parameters for layer in counted),
        statistics=sum(layer.statistics for layer in counted),
        macs=sum(layer.macs or 0 for layer in counted),
        contract=found,
        digest=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        external=_external(model),
    )


def read(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """A model file's bytes, and what they say. Raises UserError as `inspect` does."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected an ONNX file, such as `convoy export` makes from a run")
    content = read_file(path)
    with _valid(path):
        model = onnx.load_model_from_string(content)
        if not model.ir_version or not model.graph.node:
            raise ValueError("there is no layer in it")
    return content, model


def contract(path: Path, model: onnx.ModelProto) -> Contract | None:
    """The contract of a model that was read from `path`, if it has one. Raises InvalidModel if that is not valid."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    try:
        return None if text is None else Contract.from_json(text)
    except InvalidModel as error:
        raise InvalidModel(f"{path}: {error}") from None


def layers(model: onnx.ModelProto, ours: bool) -> list[Layer]:
    """The layers of a model without functions of its own (`onnx.inliner`); `ours` says whether Convoy exported it."""
    pictures = _bind_batch(model)
    shown, bound = onnx.shape_inference.infer_shapes(model), onnx.shape_inference.infer_shapes(pictures[0], data_prop=True)
    return list(_Walk(pictures[1], _NORMALISATION if ours else ()).layers(shown.graph, bound.graph))


_INVALID = (
    DecodeError, ValueError, IndexError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError
)  # fmt: skip
"""What comes of a file that is no ONNX model, or one whose nodes lack inputs."""


@contextmanager
def _valid(path: Path) -> Iterator[None]:
    try:
        yield
    except _INVALID as error:
        raise UserError(f"{path}: not a valid ONNX model ({first_line(error)})") from None


def _external(model: onnx.ModelProto) -> tuple[str, ...]:
    tensors = (tensor for graph in _graphs(model.graph) for tensor in graph.initializer)
    entries = (entry for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL for entry in tensor.external_data)
    return tuple(sorted({entry.value for entry in entries if entry.key == "location"}))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all that its nodes hold: the branches of an If, the body of a Loop."""
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        body for attribute in node.attribute for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs)
    ]


def _bind_batch(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model with every free first dimension of its inputs bound to 1, and how many pictures a batch then has.

    What shapes the file states inside and at its outputs is forgotten: it says N where there is now one.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    weights = {tensor.name for tensor in bound.graph.initializer}
    batch = 1
    inputs = [value.type.tensor_type.shape for value in bound.graph.input if value.name not in weights]
    for index, shape in enumerate(inputs):
        if not shape.dim:
            continue
        if shape.dim[0].dim_value:
            batch = shape.dim[0].dim_value if index == 0 else batch
        else:
            shape.dim[0].dim_value = 1
    del bound.graph.value_info[:]
    for output in bound.graph.output:
        output.type.tensor_type.ClearField("shape")
    return bound, batch


class _Walk:
    """Goes through a graph and what its nodes hold, and counts every weight once."""

    def __init__(self, batch: int, measured: Iterable[str]) -> None:
        self._batch = batch
        self._measured = set(measured)
        self._shapes: dict[str, Shape | None] = {}
        self._bound: dict[str, Shape | None] = {}
        self._tensors: dict[str, TensorProto] = {}
        self._roots: dict[str, tuple[str, ...]] = {}  # of a value that depends on constants alone: its weights
        self._counted: set[str] = set()
        self._types: dict[str, int] = {}
        self._dequantised: set[str] = set()  # values that come from a DequantizeLinear
        self._quantised: set[str] = set()  # values that go to a QuantizeLinear and nowhere else

    def layers(self, graph: onnx.GraphProto, bound: onnx.GraphProto, within: str = "") -> Iterator[Layer]:
        """The layers of a graph; `bound` is the same graph with one picture a batch."""
        for source, shapes in ((graph, self._shapes), (bound, self._bound)):
            shapes.update({value.name: _shape(value) for value in (*source.input, *source.value_info, *source.output)})
            shapes.update({tensor.name: tuple(tensor.dims) for tensor in source.initializer})
        self._types.update(
            {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
        )
        self._dequantised.update(name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output)
        self._quantised.update(name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1])
        self._quantised.difference_update(name for node in graph.node if node.op_type != "QuantizeLinear" for name in node.input)
        for tensor in graph.initializer:
            self._constant(tensor.name, tensor)
        for node, same in zip(graph.node, bound.node, strict=True):
            if node.op_type == "Constant":
                self._constant(node.output[0], next((a.t for a in node.attribute if a.name == "value"), TensorProto()))
                continue
            inputs = [name for name in node.input if name]
            weights = tuple(root for name in self._weights(node) for root in self._roots.get(name, ()))
            if inputs and all(name in self._roots for name in inputs) and not _bodies(node):
                self._roots.update(dict.fromkeys(node.output, weights))
                continue
            if node.op_type in _ROUNDING:
                continue
            name = within + layer_name(node, weights)
            own = [root for root in dict.fromkeys(weights) if root not in self._counted]
            self._counted.update(own)
            parameters = sum(math.prod(self._tensors[root].dims) for root in own)
            statistics = [name for name in node.input[3:5] if name in own] if node.op_type == "BatchNormalization" else []
            yield Layer(
                name=name,
                operator=node.op_type,
                precision=self._precision(node),
                shape=self._shapes.get(next(filter(None, node.output), "")),
                parameters=parameters,
                statistics=sum(math.prod(self._tensors[root].dims) for root in statistics),
                macs=self._macs(node),
                output=next(filter(None, node.output), ""),
            )
            for attribute, body, other in zip(_body_names(node), _bodies(node), _bodies(same), strict=True):
                yield from self.layers(body, other, f"{name}.{attribute}.")

    def _constant(self, name: str, tensor: TensorProto) -> None:
        self._tensors[name] = tensor
        self._shapes[name] = self._bound[name] = tuple(tensor.dims)
        self._roots[name] = (name,)

    def _weights(self, node: onnx.NodeProto) -> Iterator[str]:
        """The inputs that are weights: not scalars, not integers (shapes, axes), not what a quantised operator scales by."""
        places = _QUANTISED_WEIGHTS.get(node.op_type)
        for place, name in enumerate(node.input):
            tensor = self._tensors.get(name)
            if tensor is None:
                if places is None or place in places:
                    yield name  # computed from weights, perhaps
            elif name in self._measured or not tensor.dims:
                continue
            elif place in places if places is not None else tensor.data_type in _FLOATS and not node.op_type.startswith("QLinear"):
                yield name

    def _precision(self, node: onnx.NodeProto) -> str | None:
        """A layer between DequantizeLinear and QuantizeLinear, or a product of two dequantised factors, computes with integers."""
        operator = node.op_type
        if operator in _QUANTISED_WEIGHTS or operator.startswith("QLinear"):
            return "int8"
        output = next(filter(None, node.output), "")
        factors = [node.input[place] for place in _CONVOLUTIONS.get(operator) or _PRODUCTS.get(operator) or ()]
        activations = [name for name in node.input if name and name not in self._roots]
        between = output in self._quantised and bool(activations) and self._dequantised.issuperset(activations)
        if self._dequantised.issuperset(factors) if factors else between:
            return "int8"
        kind = TensorProto.DataType.Name(self._types.get(output, TensorProto.UNDEFINED)).lower()
        return None if kind == "undefined" else _PRECISIONS.get(kind, kind)

    def _macs(self, node: onnx.NodeProto) -> int | None:
        """Multiply-accumulates of convolutions, matrix products and recurrent layers; the rest is not worth counting."""
        operator = node.op_type
        if operator in _RECURRENT:
            values, *weights = (self._elements(name) for name in node.input[:3])  # (steps, items, features), W, R
            shape = self._bound.get(node.input[0])
            if values is None or None in weights or not shape or not isinstance(shape[-1], int):
                return None
            return values // shape[-1] * sum(elements or 0 for elements in weights) // self._batch
        places = _CONVOLUTIONS.get(operator) or _PRODUCTS.get(operator)
        if places is None:
            return 0
        left, right = (self._bound.get(node.input[place]) for place in places)
        # A transposed convolution takes each input to a kernel of outputs; all others make each output from `length` inputs.
        elements = self._elements(node.input[0] if operator == "ConvTranspose" else node.output[0])
        if left is None or right is None or elements is None:
            return None
        if operator in _CONVOLUTIONS:
            length = right[1:]  # (filters, channels / groups, height, width)
        else:
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            length = (left[-2] if transposed else left[-1],)
        if not all(isinstance(side, int) for side in length):
            return None
        return elements * math.prod(side for side in length if isinstance(side, int)) // self._batch

    def _elements(self, name: str) -> int | None:
        shape = self._bound.get(name)
        if shape is None or not all(isinstance(side, int) for side in shape):
            return None
        return math.prod(side for side in shape if isinstance(side, int))


def _body_names(node: onnx.NodeProto) -> list[str]:
    return [
        f"{attribute.name}{f'.{index}' if attribute.graphs else ''}".removesuffix("_branch")
        for attribute in node.attribute
        for index in range(attribute.HasField("g") + len(attribute.graphs))
    ]


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or "?"
        for dimension in value.type.tensor_type.shape.dim
    )
