"""Small ONNX graphs that Convoy did not write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
PRODUCT = helper.make_node("MatMul", ["x", "weight"], ["product"])


def write(
    path: Path, nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, int], constants: Mapping[str, Any] | None = None, **how: Any
) -> Path:
    """A graph that takes `x`, float32[N,4]; `outputs` are the types of its outputs by name."""
    given = {"weight": WEIGHT, **(constants or {})}
    graph = helper.make_graph(
        nodes, "odd", [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path, **how)
    return path


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)
