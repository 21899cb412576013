"""What the graph of a model without a contract gives, and what its layers say of the numbers: probabilities or not."""

from dataclasses import dataclass

import onnx
from onnx import TensorProto

UNKNOWN = "scores of unknown kind, unless serving.toml says it"

_KINDS = {
    "Softmax": "probabilities of which one is true",
    "LogSoftmax": "logarithms of probabilities",
    "Sigmoid": "probabilities, each by itself",
    "HardSigmoid": "probabilities, each by itself",
}
"""What the numbers are, by the layer that makes them."""

_UNCHANGED = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""They leave the numbers as they are. So do quantisation and what follows it, but for rounding."""
_ROUNDED = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Output:
    """An output of a graph.

    Attributes:
        name: in the graph.
        kind: of its elements, as ONNX names it, such as `float`.
        numbers: what they are, as far as the layer that makes them tells.
    """

    name: str
    kind: str
    numbers: str


def outputs(model: onnx.ModelProto) -> tuple[Output, ...]:
    """The outputs of a model without local functions (see `onnx.inliner`)."""
    producers = {name: node for node in model.graph.node for name in node.output if name}
    return tuple(_output(value, producers) for value in model.graph.output)


def _output(value: onnx.ValueInfoProto, producers: dict[str, onnx.NodeProto]) -> Output:
    element = value.type.tensor_type.elem_type
    kind = TensorProto.DataType.Name(element).lower() if element else "unknown type"
    node = producers.get(value.name)
    while node is not None and node.op_type in (*_UNCHANGED, *_ROUNDED) and node.input:
        node = producers.get(node.input[0])
    operator = "" if node is None else node.op_type
    if "float" not in kind and kind not in ("double", "unknown type"):
        return Output(value.name, kind, "no scores")
    return Output(value.name, kind, f"{_KINDS[operator]} (by {operator})" if operator in _KINDS else UNKNOWN)
