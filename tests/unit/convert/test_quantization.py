"""int8 files: what they hold, and which layers stay in float. On real networks that learnt the digits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.convert import pipeline, quantization
from export.data import datasets
from export.inspection.model_file import inspect
from export.training import loop
from export.training.checkpoint import load_checkpoint
from export.training.recipes import Settings
from service.errors import UserError
from tests.unit.convert.networks import Graph, outlier


def test_weights_are_int8_by_channel_and_activations_uint8(int8: pipeline.Exported) -> None:
    graph = Graph(int8.path)
    layers = graph.of("Conv", "Gemm")
    assert len(layers) == 5
    for layer in layers:
        weight, activation = graph.made_by[layer.input[1]], graph.made_by[layer.input[0]]
        assert weight.op_type == activation.op_type == "DequantizeLinear"
        values, scale, zero = (graph.weights[name] for name in weight.input)
        assert values.dtype == zero.dtype == np.int8
        assert scale.shape == (len(values),), "a scale for each output channel"
        assert not zero.any()
        assert 60 <= np.abs(values.astype(int)).max() <= 64, "seven bits"
        assert graph.weights[activation.input[2]].dtype == np.uint8
        assert graph.weights[activation.input[1]].shape == ()
    for node in graph.of("Softmax", "Sub", "Div"):
        assert all(name not in graph.made_by or "Linear" not in graph.made_by[name].op_type for name in node.input), "in float"
    for node in graph.of("Conv", "MaxPool", "Reshape"):
        assert graph.made_by[node.input[0]].op_type == "DequantizeLinear", "no layer between them goes back to float"


def test_layers_that_hurt_stay_in_float(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run)
    hurt = dataclasses.replace(checkpoint, network=outlier(checkpoint.network, "conv1", "conv2", 20_000.0))
    exported = pipeline.export(hurt, digits, tmp_path, "digits", precision="int8")
    assert exported.cost is not None
    found = exported.cost.quantization
    assert found is not None
    assert [layer.layer for layer in found.layers if not layer.quantized] == ["conv1", "conv2"]
    most = {layer.layer for layer in sorted(found.layers, key=lambda layer: -layer.divergence)[:2]}
    assert most == {"conv1", "conv2"}
    assert exported.cost.lower.accuracy >= exported.cost.fp32.accuracy - 0.005
    graph = Graph(exported.path)
    kinds = [graph.weights[layer.input[1]].dtype if layer.input[1] in graph.weights else np.int8 for layer in graph.of("Conv")]
    assert kinds == [np.float32, np.float32, np.int8]
    by_layer = {layer.name: layer.precision for layer in inspect(exported.path).layers}
    assert [by_layer[name] for name in ("conv1", "pool1", "conv2", "conv3", "output")] == ["fp32", "fp32", "fp32", "int8", "int8"]


def test_a_network_that_loses_too_much_in_int8_is_refused(digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = loop.train(digits, Settings("twelve-filters", epochs=3, seed=0), tmp_path)
    hurt = dataclasses.replace(checkpoint, network=outlier(checkpoint.network, "conv", "output", 20_000.0))
    with pytest.raises(UserError, match=r"int8: .*% of 180 validation images are right with .* single layer .* against 9.*%"):
        pipeline.export(hurt, digits, tmp_path / "models", "digits", precision="int8")
    assert not (tmp_path / "models").exists()


def test_layers_that_can_be_quantised(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"], name="normalise"),
        helper.make_node("MatMul", ["a", "network.first.weight"], ["b"], name="node_first"),
        helper.make_node("Add", ["b", "bias"], ["c"], name="node_bias"),
        helper.make_node("Add", ["c", "b"], ["d"], name="node_skip"),
        helper.make_node("MatMul", ["d", "c"], ["y"], name="node_product"),
    ]
    weights = {"mean": np.zeros(1, np.float32), "network.first.weight": np.ones((3, 3), np.float32), "bias": np.ones(3, np.float32)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 3])], [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    found = quantization._layers(helper.make_model(graph))
    assert found == {"node_first": ("first", "MatMul"), "node_skip": ("skip", "Add")}
