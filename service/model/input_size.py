"""The size of a model's input, from its ONNX file without ONNX Runtime, and without reading its weights."""

import math
from pathlib import Path
from typing import Any

from service.errors import InvalidModel
from service.model.contract import METADATA_KEY, Contract
from service.model.declared import bound_shape
from service.model.onnx_outline import read_outline

_MAX_CONTRACT_BYTES = 16 * 2**20
"""A larger contract is not read here: its lists of labels and probabilities become ten times their size."""

_MAX_DIMENSIONS = 64
"""More are not multiplied."""

_ELEMENT_BYTES = {1: 4, 2: 1, 10: 2, 11: 8}
"""float32, uint8, float16 and float64, which are served by tensor, by ONNX's number of the type."""


def input_item_bytes(path: Path, input_shape: tuple[int, ...] = ()) -> int:
    """Bytes of one item of the model's input, by its contract or, without one, by its graph and `input_shape`, as in `Declared`.

    0 for a graph that is not served: unless it takes one tensor, of which only the batch's size is open then.

    Raises:
        OSError: the file cannot be read.
        InvalidModel: it is not a regular file or not an ONNX file, or its contract is invalid.
    """
    model = read_outline(path)
    if any(entry.key == METADATA_KEY.encode() and len(entry.value) > _MAX_CONTRACT_BYTES for entry in model.metadata_props):
        raise InvalidModel(f"its contract has more than {_MAX_CONTRACT_BYTES // 2**20} MiB")
    contract = Contract.of_model(model)
    return contract.input.size_bytes if contract is not None else _graph_item_bytes(model.graph, input_shape)


def _graph_item_bytes(graph: Any, input_shape: tuple[int, ...]) -> int:
    weights = {tensor.name for tensor in graph.initializer}  # older files list them among the inputs
    inputs = [taken.type.tensor_type for taken in graph.input if taken.name not in weights]
    if len(inputs) != 1:
        return 0
    open_sides = tuple(max(dimension.dim_value, 0) for dimension in inputs[0].shape.dim[1:])  # 0, or -1, for one that is open
    sides = bound_shape(open_sides, input_shape) or open_sides
    if not 0 < len(sides) <= _MAX_DIMENSIONS or min(sides) <= 0:
        return 0
    element_bytes = _ELEMENT_BYTES.get(inputs[0].elem_type, 0)
    return element_bytes * math.prod(sides)
