"""int8 and fp16 files beside fp32: cost, golden samples, temperature, and the range of half precision."""

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
from onnx import TensorProto, numpy_helper

from export.cli import evaluate as evaluate_command
from export.cli import inspect as inspect_command
from export.convert import pipeline
from export.convert.precision import check_half_range
from export.data import datasets
from export.inspection.model_file import inspect
from export.networks import architectures
from export.networks.resnet import BasicBlock
from export.training.checkpoint import load_checkpoint
from service.errors import GoldenMismatch, UserError
from service.model.loading import load_model
from tests.unit.convert.networks import Graph, outlier


def test_the_cost_is_measured_and_reported(int8: pipeline.Exported, run: Path, digits: datasets.Dataset) -> None:
    cost = int8.cost
    assert cost is not None
    assert cost.fp32.accuracy - cost.lower.accuracy <= 0.005
    assert cost.lower.accuracy == int8.comparison.scores.accuracy
    assert cost.fp32.accuracy == int8.comparison.reference_accuracy == int8.parity.scores.accuracy
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
    assert all(layer.quantized for layer in found.layers), "what lies on the border between two classes is no reason"
    card = (int8.path.parent / "README.md").read_text()
    assert f"| int8 | {cost.lower.accuracy:.2%} | {cost.lower.size_bytes:,} |" in card
    assert f"| fp32 | {cost.fp32.accuracy:.2%} | {cost.fp32.size_bytes:,} |" in card
    assert len(re.findall(r"^\| \w+ \| (?:Conv|Gemm) \| [\d.e-]+ \| [\d.]+% \| (?:int8|float) \|$", card, re.MULTILINE)) == 5
    assert "the ranges of int8" in card


def test_golden_samples_are_replayed(int8: pipeline.Exported, digits: datasets.Dataset, tmp_path: Path) -> None:
    served = load_model(int8.path, "cpu", 1)
    assert served.precision == "int8"
    assert served.contract.measured.accuracy == int8.comparison.scores.accuracy
    assert [sample.tolerance for sample in served.contract.golden] == [{"cpu": 0.02, "cuda": 0.05}] * 4
    damaged = onnx.load(int8.path)
    weight = next(tensor for tensor in damaged.graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2)
    values = numpy_helper.to_array(weight).copy()
    values[: len(values) // 2] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save_model(damaged, tmp_path / "model.onnx")
    with pytest.raises(GoldenMismatch, match="golden sample"):
        load_model(tmp_path / "model.onnx", "cpu", 1)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_temperature_is_that_of_fp32(precision: str, model_file: Path, digits: datasets.Dataset, request: Any) -> None:
    exported: pipeline.Exported = request.getfixturevalue(precision)
    served, fp32 = load_model(exported.path, "cpu", 1), load_model(model_file, "cpu", 1)
    assert served.contract.temperature == fp32.contract.temperature != 1.0
    probabilities, logits = served.predict(digits.test.pixels)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), probabilities, atol=1e-6)
    assert np.abs(logits - fp32.predict(digits.test.pixels)[1]).mean() < 0.2
    calibration_error = served.contract.measured.calibration_error
    assert calibration_error is not None
    assert abs(calibration_error - exported.parity.scores.reliability.error) < 0.02


def test_fp16_has_the_inputs_and_outputs_of_fp32(fp16: pipeline.Exported, digits: datasets.Dataset, model_file: Path) -> None:
    graph = Graph(fp16.path)
    assert all(graph.weights[layer.input[1]].dtype == np.float16 for layer in graph.of("Conv", "Gemm"))
    served = load_model(fp16.path, "cpu", 1)
    assert served.precision == "fp16"
    assert [output.dtype for output in served.predict(digits.test.pixels[:2])] == [np.float32, np.float32]
    difference = np.abs(
        served.probabilities(digits.test.pixels) - load_model(model_file, "cpu", 1).probabilities(digits.test.pixels)
    )
    assert 0 < difference.max() < 5e-3
    assert fp16.cost is not None
    assert fp16.cost.lower.size_bytes < 0.6 * fp16.cost.fp32.size_bytes
    assert f"| fp16 | {fp16.cost.lower.accuracy:.2%} |" in (fp16.path.parent / "README.md").read_text()
    assert {sample.tolerance["cuda"] for sample in served.contract.golden} == {0.02}


def test_fp16_that_overflows_is_refused_with_the_figures(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run)
    large = dataclasses.replace(checkpoint, network=outlier(checkpoint.network, "hidden", "output", 1e6))
    with pytest.raises(
        UserError, match=r"fp16: hidden reaches \S+e\+\d+, half precision ends at 65504: export with --precision fp32"
    ):
        pipeline.export(large, digits, tmp_path / "models", "digits", precision="fp16")
    assert not (tmp_path / "models").exists()


def test_fp16_is_refused_if_a_sum_inside_a_block_overflows(run: Path, digits: datasets.Dataset) -> None:
    torch.manual_seed(0)
    network = architectures.build("resnet18", digits.input, 10).eval()
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock)]
    checkpoint = dataclasses.replace(load_checkpoint(run), network=network)
    part = digits.validation
    few = dataclasses.replace(part, pixels=part.pixels[:16], labels=part.labels[:16])
    check_half_range(checkpoint, few)
    with torch.no_grad():  # what the second block adds up is beyond the range, and neither of its parts is
        blocks[0].norm2.bias.fill_(40_000.0)
        blocks[1].norm2.bias.fill_(40_000.0)
        for block, name in ((1, "conv1"), (2, "conv1"), (2, "shortcut.conv")):
            blocks[block].get_parameter(f"{name}.weight").mul_(1e-6)
    with pytest.raises(UserError, match="half precision ends at 65504"):
        check_half_range(checkpoint, few)
    with torch.no_grad():
        blocks[1].norm2.bias.fill_(0.0)
    check_half_range(checkpoint, few)
    with torch.no_grad():
        blocks[5].get_buffer("norm1.running_var").fill_(1e5)
    with pytest.raises(UserError, match=r"fp16: .*norm1.* reaches 1e\+05"):
        check_half_range(checkpoint, few)


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
    shown = CliRunner().invoke(inspect_command.inspect, [str(exported.path)], catch_exceptions=False, standalone_mode=False).stdout
    assert re.search(rf"conv2 \(Conv\) +\(N, 64, 11, 11\) +18,496 +2,230,272 +{precision}", shown)
    assert re.search(rf"^precision +{precision}$", shown, re.MULTILINE)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_evaluate_finds_the_accuracy_of_the_contract(precision: str, request: Any) -> None:
    exported: pipeline.Exported = request.getfixturevalue(precision)
    arguments = [str(exported.path), "--data", "digits", "--json"]
    shown = CliRunner().invoke(evaluate_command.evaluate, arguments, catch_exceptions=False, standalone_mode=False).stdout
    assert json.loads(shown)["accuracy"] == load_model(exported.path, "cpu", 1).contract.measured.accuracy
