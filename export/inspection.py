"""What is inside an ONNX file: its layers, its contract, its digest. Needs onnx; neither PyTorch nor ONNX Runtime."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from service.contract import METADATA_KEY, Contract
from service.errors import InvalidModel, UserError

Shape = tuple[int | str, ...]

# The constants that onnx_export.Served normalises with: they were measured, not learned.
_NORMALISATION = ("mean", "std")


@dataclass(frozen=True)
class Layer:
    """One node of the graph. `macs` are multiply-accumulates for one image; `shape` is of its first output."""

    name: str
    operator: str
    shape: Shape | None
    parameters: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """All that can be said of a file without running it. `contract` is None for a file that Convoy did not write."""

    layers: list[Layer]
    parameters: int
    macs: int
    contract: Contract | None
    digest: str
    size_bytes: int


def inspect(path: Path) -> Inspection:
    """Reads a model file.

    Raises:
        UserError: it cannot be read or is no ONNX model.
        InvalidModel: it has a contract that is not valid.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a valid ONNX model ({reason})") from None
    layers = _layers(onnx.shape_inference.infer_shapes(model).graph)
    if not model.graph.node:
        raise UserError(f"{path}: an ONNX file without a layer")
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    return Inspection(
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        contract=_contract(path, text) if text is not None else None,
        digest=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
    )


def _contract(path: Path, text: str) -> Contract:
    try:
        return Contract.from_json(text)
    except InvalidModel as error:
        raise InvalidModel(f"{path}: {error}") from None


def _layers(graph: onnx.GraphProto) -> list[Layer]:
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    counted: set[str] = set()
    layers = []
    for node in graph.node:
        shape = shapes.get(node.output[0])
        own = [name for name in node.input if name in weights and name not in counted]
        counted.update(own)
        layers.append(
            Layer(
                name=node.name.removeprefix("node_") or node.output[0],
                operator=node.op_type,
                shape=shape,
                # Scalars and integers are constants of the graph (shapes, axes), not something that was learned.
                parameters=sum(math.prod(weights[name]) for name in own if _learned(graph, name)),
                macs=_macs(node, shape, weights, shapes),
            )
        )
    return layers


def _learned(graph: onnx.GraphProto, name: str) -> bool:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    return tensor.data_type in floats and len(tensor.dims) > 0 and tensor.name not in _NORMALISATION


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or "?"
        for dimension in value.type.tensor_type.shape.dim
    )


def _macs(node: onnx.NodeProto, shape: Shape | None, weights: dict[str, tuple[int, ...]], shapes: dict[str, Shape | None]) -> int:
    """Multiply-accumulates for one image: of convolutions and matrix products; the rest is not worth counting."""
    if shape is None or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    outputs = math.prod(side for side in shape[1:] if isinstance(side, int))
    if node.op_type == "Conv":
        kernel = weights.get(node.input[1])
        return outputs * math.prod(kernel[1:]) if kernel else 0  # (filters, channels / groups, height, width)
    rows = shapes.get(node.input[0])
    length = rows[-1] if rows else None
    return outputs * length if isinstance(length, int) else 0
