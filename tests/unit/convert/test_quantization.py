"""int8 and fp16: what is in the files, what they cost, and what is refused. On real networks that learnt the digits."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from export.cli import export as commands
from export.convert import pipeline, quantization
from export.data import datasets
from export.inspection.model_file import inspect
from export.networks import architectures
from export.networks.resnet import BasicBlock
from export.training import loop
from service.errors import GoldenMismatch, UserError
from service.model import session

Folders = pytest.TempPathFactory


@pytest.fixture(scope="module")
def int8(tmp_path_factory: Folders, run: Path, digits: datasets.Dataset) -> pipeline.Exported:
    folder = tmp_path_factory.mktemp("int8")
    return pipeline.export(loop.load_checkpoint(run), digits, folder, "digits", precision="int8")


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: Folders, run: Path, digits: datasets.Dataset) -> pipeline.Exported:
    folder = tmp_path_factory.mktemp("fp16")
    return pipeline.export(loop.load_checkpoint(run), digits, folder, "digits", precision="fp16")


class Graph:
    """A graph, by the names of its values."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self.nodes = list(graph.node)
        self.made_by = {name: node for node in graph.node for name in node.output}
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def of(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]


def outlier(network: torch.nn.Module, first: str, second: str, factor: float) -> torch.nn.Module:
    """The same function, but the first channel between two layers is `factor` as large: ReLU and pooling do not mind."""
    changed = copy.deepcopy(network)
    before, after = changed.get_submodule(first), changed.get_submodule(second)
    assert isinstance(before.weight, torch.Tensor)
    assert isinstance(before.bias, torch.Tensor)
    assert isinstance(after.weight, torch.Tensor)
    share = after.weight.shape[1] // len(before.weight)  # a flattened channel is several inputs
    with torch.no_grad():
        before.weight[0] *= factor
        before.bias[0] *= factor
        after.weight[:, :share] /= factor
    return changed


# int8


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


def test_what_it_costs_is_measured_and_said(int8: pipeline.Exported, run: Path, digits: datasets.Dataset) -> None:
    cost = int8.cost
    assert cost is not None
    assert cost.fp32.accuracy - cost.lower.accuracy <= 0.005
    assert cost.lower.accuracy == int8.report.scores.accuracy
    assert cost.fp32.accuracy == int8.report.reference_accuracy == int8.parity.scores.accuracy
    assert cost.lower.size_bytes == int8.path.stat().st_size < 0.4 * cost.fp32.size_bytes
    assert min(cost.fp32.images_per_second, cost.lower.images_per_second) > 0
    found = cost.quantization
    assert found is not None
    assert [layer.layer for layer in found.layers] == ["conv1", "conv2", "conv3", "hidden", "output"]
    assert all(0 < layer.divergence < 0.1 for layer in found.layers)
    assert set(found.methods) == {"extremes", "percentile", "entropy"}
    assert found.methods[found.method] == min(found.methods.values())
    assert (found.calibration_items, found.sensitivity_items) == (512, 180)
    assert found.accuracy >= found.reference_accuracy - 1 / 180 - 1e-9
    assert found.in_float == (), "what lies on the border between two classes is no reason"
    card = (int8.path.parent / "README.md").read_text()
    assert f"| int8 | {cost.lower.accuracy:.2%} | {cost.lower.size_bytes:,} |" in card
    assert f"| fp32 | {cost.fp32.accuracy:.2%} | {cost.fp32.size_bytes:,} |" in card
    assert len(re.findall(r"^\| \w+ \| (?:Conv|Gemm) \| [\d.e-]+ \| [\d.]+% \| (?:int8|float) \|$", card, re.MULTILINE)) == 5
    assert "the ranges of int8" in card


def test_golden_samples_are_replayed(int8: pipeline.Exported, digits: datasets.Dataset, tmp_path: Path) -> None:
    served = session.load_model(int8.path, "cpu", 1)
    assert served.precision == "int8"
    assert served.contract.training.accuracy == int8.report.scores.accuracy
    assert [sample.tolerance for sample in served.contract.golden] == [{"cpu": 0.02, "cuda": 0.05}] * 4
    damaged = onnx.load(int8.path)
    weight = next(tensor for tensor in damaged.graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values[: len(values) // 2] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save_model(damaged, tmp_path / "model.onnx")
    with pytest.raises(GoldenMismatch, match="golden sample"):
        session.load_model(tmp_path / "model.onnx", "cpu", 1)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_temperature_is_that_of_fp32(precision: str, model_file: Path, digits: datasets.Dataset, request: Any) -> None:
    exported: pipeline.Exported = request.getfixturevalue(precision)
    served, fp32 = session.load_model(exported.path, "cpu", 1), session.load_model(model_file, "cpu", 1)
    assert served.contract.training.temperature == fp32.contract.training.temperature != 1.0
    probabilities, logits = served.predict(digits.test.pixels)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), probabilities, atol=1e-6)
    assert np.abs(logits - fp32.predict(digits.test.pixels)[1]).mean() < 0.2
    calibration_error = served.contract.training.calibration_error
    assert calibration_error is not None
    assert abs(calibration_error - exported.parity.scores.reliability.error) < 0.02


def test_layers_that_hurt_stay_in_float(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = loop.load_checkpoint(run)
    hurt = dataclasses.replace(checkpoint, network=outlier(checkpoint.network, "conv1", "conv2", 20_000.0))
    exported = pipeline.export(hurt, digits, tmp_path, "digits", precision="int8")
    assert exported.cost is not None
    found = exported.cost.quantization
    assert found is not None
    assert found.in_float == ("conv1", "conv2")
    most = {layer.layer for layer in sorted(found.layers, key=lambda layer: -layer.divergence)[:2]}
    assert most == {"conv1", "conv2"}
    assert exported.cost.lower.accuracy >= exported.cost.fp32.accuracy - 0.005
    graph = Graph(exported.path)
    kinds = [graph.weights[layer.input[1]].dtype if layer.input[1] in graph.weights else np.int8 for layer in graph.of("Conv")]
    assert kinds == [np.float32, np.float32, np.int8]
    by_layer = {layer.name: layer.precision for layer in inspect(exported.path).layers}
    assert [by_layer[name] for name in ("conv1", "pool1", "conv2", "conv3", "output")] == ["fp32", "fp32", "fp32", "int8", "int8"]


def test_a_network_of_which_nothing_can_be_int8_is_refused(digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = loop.train(digits, loop.Settings("twelve-filters", epochs=3, seed=0), tmp_path)
    hurt = dataclasses.replace(checkpoint, network=outlier(checkpoint.network, "conv", "output", 20_000.0))
    with pytest.raises(UserError, match=r"int8: .*% of 180 validation pictures are right with .* single layer .* against 9.*%"):
        pipeline.export(hurt, digits, tmp_path / "models", "digits", precision="int8")
    assert not (tmp_path / "models").exists()


def test_what_can_be_quantised(tmp_path: Path) -> None:
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


# fp16


def test_fp16_takes_and_gives_what_fp32_does(fp16: pipeline.Exported, digits: datasets.Dataset, model_file: Path) -> None:
    graph = Graph(fp16.path)
    assert all(graph.weights[layer.input[1]].dtype == np.float16 for layer in graph.of("Conv", "Gemm"))
    served = session.load_model(fp16.path, "cpu", 1)
    assert served.precision == "fp16"
    assert [output.dtype for output in served.predict(digits.test.pixels[:2])] == [np.float32, np.float32]
    difference = np.abs(
        served.probabilities(digits.test.pixels) - session.load_model(model_file, "cpu", 1).probabilities(digits.test.pixels)
    )
    assert 0 < difference.max() < 5e-3
    assert fp16.cost is not None
    assert fp16.cost.lower.size_bytes < 0.6 * fp16.cost.fp32.size_bytes
    assert f"| fp16 | {fp16.cost.lower.accuracy:.2%} |" in (fp16.path.parent / "README.md").read_text()
    assert {sample.tolerance["cuda"] for sample in served.contract.golden} == {0.02}


def test_fp16_that_overflows_is_refused_with_the_figures(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = loop.load_checkpoint(run)
    large = dataclasses.replace(checkpoint, network=outlier(checkpoint.network, "hidden", "output", 1e6))
    with pytest.raises(
        UserError, match=r"fp16: hidden comes to \S+e\+\d+ and half precision ends at 65504: export with --precision fp32"
    ):
        pipeline.export(large, digits, tmp_path / "models", "digits", precision="fp16")
    assert not (tmp_path / "models").exists()


def test_fp16_is_refused_for_a_sum_inside_of_a_block_that_is_beyond_its_range(run: Path, digits: datasets.Dataset) -> None:
    torch.manual_seed(0)
    network = architectures.build("resnet18", digits.input, 10).eval()
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock)]
    checkpoint = dataclasses.replace(loop.load_checkpoint(run), network=network)
    pipeline._check_half_range(checkpoint, digits.validation)
    with torch.no_grad():  # what the second block adds up is beyond the range, and neither of its parts is
        blocks[0].norm2.bias.fill_(40_000.0)
        blocks[1].norm2.bias.fill_(40_000.0)
        for block, name in ((1, "conv1"), (2, "conv1"), (2, "shortcut.conv")):
            blocks[block].get_parameter(f"{name}.weight").mul_(1e-6)
    with pytest.raises(UserError, match="half precision ends at 65504"):
        pipeline._check_half_range(checkpoint, digits.validation)
    with torch.no_grad():
        blocks[1].norm2.bias.fill_(0.0)
    pipeline._check_half_range(checkpoint, digits.validation)
    with torch.no_grad():
        blocks[5].get_buffer("norm1.running_var").fill_(1e5)
    with pytest.raises(UserError, match=r"fp16: .*norm1.* comes to 1e\+05"):
        pipeline._check_half_range(checkpoint, digits.validation)


# The commands


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_inspect_counts_as_in_fp32(precision: str, model_file: Path, request: Any) -> None:
    exported: pipeline.Exported = request.getfixturevalue(precision)
    found, fp32 = inspect(exported.path), inspect(model_file)
    assert (found.parameters, found.macs) == (fp32.parameters, fp32.macs) == (93_322, 2_794_240)
    assert not {layer.operator for layer in found.layers} & {"QuantizeLinear", "DequantizeLinear"}
    by_name = {layer.name: layer for layer in found.layers}
    before = {layer.name: layer for layer in fp32.layers}
    for name in ("conv1", "pool1", "conv2", "pool2", "conv3", "flatten", "hidden", "output"):
        layer = by_name[name]
        assert (layer.precision, before[name].precision) == (precision, "fp32")
        assert (layer.shape, layer.parameters, layer.macs) == (before[name].shape, before[name].parameters, before[name].macs)
    assert by_name["softmax"].precision == "fp32"
    shown = CliRunner().invoke(commands.inspect, [str(exported.path)], catch_exceptions=False, standalone_mode=False).stdout
    assert re.search(rf"conv2 \(Conv\) +\(N, 64, 11, 11\) +18,496 +2,230,272 +{precision}", shown)
    assert re.search(rf"^precision +{precision}$", shown, re.MULTILINE)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_evaluate_finds_the_accuracy_of_the_contract(precision: str, request: Any) -> None:
    exported: pipeline.Exported = request.getfixturevalue(precision)
    arguments = [str(exported.path), "--data", "digits", "--json"]
    shown = CliRunner().invoke(commands.evaluate, arguments, catch_exceptions=False, standalone_mode=False).stdout
    assert json.loads(shown)["accuracy"] == session.load_model(exported.path, "cpu", 1).contract.training.accuracy


def test_export_prints_the_table_and_takes_a_limit(run: Path, tmp_path: Path) -> None:
    def export(*more: str) -> str:
        arguments = [str(run), "--repository", str(tmp_path / "models"), "--precision", "int8", *more]
        return CliRunner().invoke(commands.export, arguments, catch_exceptions=False, standalone_mode=False).stdout

    shown = export("--max-accuracy-loss", "1")
    assert re.search(r"^conv1 +Conv +[\d.]+e-\d+ +[\d.]+% +int8", shown, re.MULTILINE)
    assert re.search(r"^int8 +[\d.]+% +[\d,]+ +[\d,]+", shown, re.MULTILINE)
    for value, message in (("nan", "not a finite number"), ("-1", "0<=x<=100"), ("half", "not a valid float")):
        refused = CliRunner().invoke(
            commands.export, [str(run), "--repository", str(tmp_path / "none"), "--max-accuracy-loss", value]
        )
        assert refused.exit_code == 2
        assert message in refused.output
    refused = CliRunner().invoke(commands.export, [str(run), "--repository", str(tmp_path / "none"), "--precision", "int4"])
    assert refused.exit_code == 2
    assert "'fp32', 'int8', 'fp16'" in refused.output
    assert not (tmp_path / "none").exists()
