"""The end of a network is found behind what only changes how a number is stored."""

from typing import Any

import numpy as np
import onnx
import pytest
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


def scored(tail: list[tuple[str, Any]], *, alpha: float = 1.0, has_layer: bool = True, as_nodes: bool = False) -> Activations:
    """A convolution, the mean of its maps, a linear layer, then operators with a constant; no constant for None."""
    random = np.random.default_rng(0)
    classes = 3 if has_layer else 4
    constants = {
        "kernel": random.normal(size=(4, 3, 3, 3)).astype(np.float32), "weights": random.normal(size=(3, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"]), helper.make_node("GlobalAveragePool", ["maps"], ["m"]),
        helper.make_node("Flatten", ["m"], ["z"]),
    ]  # fmt: skip
    if has_layer:
        nodes[-1].output[0] = "row"
        nodes.append(helper.make_node("Gemm", ["row", "weights"], ["z"], transB=1, alpha=alpha))
    for at, (operator, constant) in enumerate(tail):
        inputs = [nodes[-1].output[0]]
        if constant is not None:
            value = numpy_helper.from_array(np.array(constant, np.float32), f"c{at}")
            if as_nodes:
                nodes.insert(0, helper.make_node("Constant", [], [f"c{at}"], value=value))
            else:
                constants[f"c{at}"] = np.array(constant, np.float32)
            inputs.append(f"c{at}")
        nodes.append(helper.make_node(operator, inputs, [f"t{at}"]))
    nodes.append(helper.make_node("Identity", [nodes[-1].output[0]], ["logits"]))
    graph = helper.make_graph(
        nodes, "scored", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Activations(model, True, random.normal(size=(1, 3, 8, 8)).astype(np.float32), 1)


@pytest.mark.parametrize("as_nodes", [False, True])
@pytest.mark.parametrize(
    ("tail", "alpha"),
    [
        ([], -2.0), ([("Mul", -1.0)], 1.0), ([("Mul", [1.0, -2.0, 5.0])], 1.0),
        ([("Div", [[-1.0]]), ("Mul", [3.0, 2.0, 1.0])], 1.0),
        ([("Mul", [1.0, 2.0, 4.0]), ("Div", [[1.0, -2.0, 5.0]])], 3.0),
    ],
)  # fmt: skip
def test_factors_after_the_linear_layer_are_in_its_weights(tail: list[tuple[str, Any]], alpha: float, as_nodes: bool) -> None:
    found = scored(tail, alpha=alpha, as_nodes=as_nodes)
    pooling = average_pooling(found, "logits")
    assert pooling is not None
    assert pooling.weights is not None
    means = np.einsum("kc,chw->khw", pooling.weights, found.value(pooling.maps)[0]).mean((1, 2))
    np.testing.assert_allclose(means, found.value("logits")[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_layer", [False, True])
def test_a_temperature_changes_no_map(has_layer: bool) -> None:
    plain, warm = (average_pooling(scored(tail, has_layer=has_layer), "logits") for tail in ([], [("Softmax", None), ("Div", 2.0)]))
    assert plain is not None
    assert warm is not None
    np.testing.assert_array_equal(plain.weights, warm.weights)


def test_other_factors_have_no_map() -> None:
    """None are of the maps where they are applied to probabilities, or to the maps of the classes themselves."""
    assert average_pooling(scored([("Softmax", None), ("Mul", [1.0, 2.0, 3.0])]), "logits") is None
    assert average_pooling(scored([("Softmax", None), ("Mul", -1.0)]), "logits") is None
    assert average_pooling(scored([("Mul", [0.0, 2.0, 3.0])]), "logits") is None
    assert average_pooling(scored([("Mul", -1.0)], has_layer=False), "logits") is None
