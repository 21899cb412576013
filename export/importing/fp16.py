"""Brings an imported graph to half precision with ONNX Runtime's own converter, with gates.

What Convoy put around it, the normalisation and the softmax, stays in float32.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.importing.gates import Gate
from export.importing.wrapping import PREFIX
from service.errors import LoadError, UserError, first_line
from service.model.contract import INPUT_NAME
from service.model.cpus import cpu_budget
from service.model.session import OpenGraph

_LARGEST = float(np.finfo(np.float16).max)


def to_fp16(graph: onnx.ModelProto, pixels: NDArray[Any]) -> tuple[onnx.ModelProto, Gate]:
    """A wrapped fp32 graph whose layers compute in half precision, and the gate that its numbers passed.

    Args:
        graph: the graph; it is not changed.
        pixels: [n,H,W,C] of different pictures.

    Raises:
        UserError: a weight, or a value for one of the pictures, is beyond the range of half precision, or the graph cannot be
            converted.
    """
    name, value = _largest(graph, pixels)
    if not value < _LARGEST:
        raise UserError(
            f"fp16 range gate: {name!r} reaches {value:.3g}, half precision ends at {_LARGEST:g}: import with --precision fp32; "
            "nothing was written"
        )
    source = onnx.ModelProto()
    source.CopyFrom(graph)
    kept = [node.name for node in source.graph.node if node.name.startswith(PREFIX)]
    try:
        converted: onnx.ModelProto = convert_float_to_float16(source, keep_io_types=True, node_block_list=kept)
        _merge_casts(converted.graph)
        OnnxModel.graph_topological_sort(converted.graph)  # its casts are at the end
    except Exception as error:  # noqa: BLE001 - the converter raises errors of any class
        raise UserError(f"--precision fp16: ONNX Runtime's converter cannot convert the graph: {first_line(error)}") from None
    halves = sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in converted.graph.initializer)
    return converted, Gate(
        "fp16 range", f"the largest value, of {name!r}, is {value:.3g} of at most {_LARGEST:g}; {halves} weights are fp16"
    )


def _largest(graph: onnx.ModelProto, pixels: NDArray[Any]) -> tuple[str, float]:
    """The weight or value with the largest magnitude, and that; infinity for NaN.

    ONNX Runtime computes half precision in float32 on a CPU, so that a value beyond the range would not be noticed there.
    """
    largest = {
        tensor.name: _magnitude(numpy_helper.to_array(tensor))
        for tensor in graph.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    extended = onnx.ModelProto()
    extended.CopyFrom(graph)
    existing = {output.name for output in extended.graph.output}
    names = {name for node in extended.graph.node if not node.name.startswith(PREFIX) for name in node.output if name}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - existing))
    items = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    try:
        session = OpenGraph(extended.SerializeToString(), cpu_budget())
        for at in range(0, len(pixels), items):
            batch = pixels[at : at + items]
            batch = np.pad(batch, [(0, items - len(batch)), *[(0, 0)] * (batch.ndim - 1)], mode="edge")
            for name, value in session.run(batch).items():
                if name in names and value.dtype == np.float32:
                    largest[name] = max(largest.get(name, 0.0), _magnitude(value))
    except LoadError as error:
        raise UserError(f"fp16 range gate: the values inside the graph cannot be seen: {error}; nothing was written") from None
    return max(largest.items(), key=lambda found: found[1], default=(INPUT_NAME, 0.0))


def _merge_casts(graph: onnx.GraphProto) -> None:
    """Keeps one of the casts that the converter makes of a value for each node that reads it in float32: all have one name."""
    casts: dict[str, onnx.NodeProto] = {}
    for node in list(graph.node):
        if node.op_type == "Cast" and casts.setdefault(node.output[0], node) is not node:
            graph.node.remove(node)
    values = {value.name: value for value in graph.value_info}
    del graph.value_info[:]
    graph.value_info.extend(values.values())


def _magnitude(value: NDArray[Any]) -> float:
    return float(np.nan_to_num(np.abs(value), nan=np.inf).max(initial=0.0))
