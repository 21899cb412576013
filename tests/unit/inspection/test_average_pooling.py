"""The end of a network is found behind what only changes how a number is stored."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.inspection.activations import Activations
from export.inspection.average_pooling import average_pooling, last_product


def test_quantised_activations_are_looked_through() -> None:
    """As in an int8 file: each value goes through a QuantizeLinear and a DequantizeLinear, the scores too."""

    def rounded(value: str, result: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [value, "step", "zero"], [f"{value}_q"]),
            helper.make_node("DequantizeLinear", [f"{value}_q", "step", "zero"], [result]),
        ]

    random = np.random.default_rng(0)
    weights = random.normal(size=(4, 3)).astype(np.float32)
    constants: dict[str, Any] = {
        "kernel": random.normal(size=(4, 3, 3, 3)).astype(np.float32), "weights": weights, "step": np.array(0.05, np.float32),
        "zero": np.array(128, np.uint8),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"]), *rounded("a", "maps"),
        helper.make_node("GlobalAveragePool", ["maps"], ["m"]), *rounded("m", "means"),
        helper.make_node("Flatten", ["means"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["z"]), *rounded("z", "logits"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "int8", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = Activations(model, True, random.normal(size=(1, 3, 8, 8)).astype(np.float32), 1)
    pooling, product = average_pooling(found, "logits"), last_product(found, "logits")
    assert pooling is not None
    assert pooling.maps == "maps"
    np.testing.assert_array_equal(pooling.weights, weights.T)
    assert product is not None
    assert product.input[0] == "row"
