"""The layer table, of graphs that Convoy exports and of graphs from other tools."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from export.inspection.model_file import inspect
from export.networks import architectures
from service.model.contract import Contract
from service.model.input_spec import InputSpec
from tests.unit.inspection.graphs import ones, save


def test_counts_are_those_of_keras(model_file: Path) -> None:
    found = inspect(model_file)
    assert found.parameters == 93_322
    assert found.macs == 2_794_240
    by_name = {(layer.name, layer.operator): layer for layer in found.layers}
    convolutions = [by_name[f"conv{number}", "Conv"] for number in (1, 2, 3)]
    assert [layer.parameters for layer in convolutions] == [320, 18_496, 36_928]
    assert [layer.shape for layer in convolutions] == [("N", 32, 26, 26), ("N", 64, 11, 11), ("N", 64, 3, 3)]
    assert by_name["pool1", "MaxPool"].shape == ("N", 32, 13, 13)
    assert by_name["output", "Gemm"].macs == 640
    assert isinstance(found.contract, Contract)
    assert found.contract.training is not None
    assert found.contract.training.parameters == 93_322
    assert not any(layer.folds_norm for layer in found.layers)
    assert found.size_bytes == model_file.stat().st_size


def exported(text: str, spec: InputSpec, classes: int, path: Path) -> Path:
    program = torch.onnx.export(
        architectures.build(text, spec, classes).eval(), (torch.zeros(2, *spec.shape[2:], *spec.shape[:2]),),
        dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("N")},),
    )  # fmt: skip
    assert program is not None
    onnx.save(program.model_proto, path)
    return path


def test_resnet18_has_its_published_cost_and_names(tmp_path: Path) -> None:
    path = exported("resnet18", InputSpec(height=224, width=224, channels=3), 1000, tmp_path / "m.onnx")
    found = inspect(path)
    assert found.macs == 1_814_073_344  # as fvcore and torchvision count it: 1.81 G
    # Each batch norm is folded into its convolution: its 9,600 scales and shifts are gone, and as the shifts of a fresh network
    # are 0, no biases come in their place (but for where the exporter does not see that).
    kernels = sum(math.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4)
    assert kernels + 513_000 == 11_689_512 - 9_600
    assert 0 <= found.parameters - (kernels + 513_000) <= 4_800
    names = [layer.name for layer in found.layers if layer.operator == "Conv"]
    assert [layer.operator for layer in found.layers if layer.folds_norm] == ["Conv"] * 20
    assert names[0] == "conv"
    assert "stage2_block1.shortcut.conv" in names


def test_a_file_without_contract_and_with_a_fixed_batch(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [4, 3], {"w": ones(3, 2)})
    found = inspect(path)
    assert found.contract is None
    assert (found.parameters, found.macs) == (6, 6)
    assert found.layers[0].shape == (4, 2)


def test_groups_and_transposed_convolutions(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "depth"], ["a"], group=8, pads=[1, 1, 1, 1]),  # (N, 8, 10, 10)
        helper.make_node("Conv", ["a", "point", "bias"], ["b"]),  # (N, 4, 10, 10)
        helper.make_node("ConvTranspose", ["b", "up"], ["y"], strides=[2, 2]),  # (N, 6, 20, 20)
    ]
    weights = {"depth": ones(8, 1, 3, 3), "point": ones(4, 8, 1, 1), "bias": ones(4), "up": ones(4, 6, 2, 2)}
    found = inspect(save(tmp_path / "m.onnx", nodes, ["N", 8, 10, 10], weights))
    assert [layer.macs for layer in found.layers] == [8 * 100 * 9, 4 * 100 * 8, 4 * 100 * 6 * 4]
    assert [layer.parameters for layer in found.layers] == [72, 36, 96]
    assert found.layers[-1].shape == ("N", 6, 20, 20)


def test_batch_norm_that_was_not_folded(tmp_path: Path) -> None:
    nodes = [helper.make_node("BatchNormalization", ["x", "scale", "shift", "mean", "var"], ["y"])]
    weights = {name: ones(5) for name in ("scale", "shift", "mean", "var")}
    found = inspect(save(tmp_path / "m.onnx", nodes, ["N", 5, 3, 3], weights))
    assert (found.parameters, found.statistics) == (20, 10)


def test_weights_that_go_through_other_nodes_first(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["stored"], value=numpy_helper.from_array(ones(2, 3))),
        helper.make_node("Transpose", ["stored"], ["w"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["a", "v", "c"], ["b"], transB=1),
        helper.make_node("MatMul", ["b", "u"], ["d"]),
        helper.make_node("Gemm", ["d", "v", "c"], ["y"], transB=1),  # the same weights again: counted once, multiplied twice
    ]
    weights = {"v": ones(5, 2), "c": ones(5), "u": ones(5, 2)}
    found = inspect(save(tmp_path / "m.onnx", nodes, ["N", 3], weights))
    assert [(layer.operator, layer.parameters, layer.macs) for layer in found.layers] == [
        ("MatMul", 6, 6), ("Gemm", 15, 10), ("MatMul", 10, 10), ("Gemm", 0, 10),
    ]  # fmt: skip


def test_a_batch_that_is_reshaped_away(tmp_path: Path) -> None:
    """Attention-like: the products are of two activations, and the batch is no longer first."""
    nodes = [
        helper.make_node("Reshape", ["x", "heads"], ["h"]),  # (N * 2, 4, 3)
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),  # (N * 2, 4, 4)
    ]
    path = save(tmp_path / "m.onnx", nodes, ["N", 2, 4, 3], {"heads": np.array([-1, 4, 3], np.int64)})
    assert inspect(path).macs == 2 * 4 * 4 * 3


def test_layers_in_branches_are_listed(tmp_path: Path) -> None:
    def branch(weight: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(f"out_{weight}", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("MatMul", ["x", weight], [f"out_{weight}"])], weight, [], [value])

    nodes = [
        helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=branch("w"), else_branch=branch("v")),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["N", 3], {"flag": np.array(True), "w": ones(3, 2), "v": ones(3, 2)})
    found = inspect(path)
    assert [(layer.name, layer.parameters, layer.macs) for layer in found.layers] == [
        ("choice", 0, 0), ("choice.else.out_v", 6, 6), ("choice.then.out_w", 6, 6),
    ]  # fmt: skip


def test_recurrent_layers(tmp_path: Path) -> None:
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)]
    path = save(tmp_path / "m.onnx", nodes, [7, 1, 3], {"w": ones(1, 16, 3), "r": ones(1, 16, 4)})
    found = inspect(path)
    assert found.parameters == 16 * 7
    assert found.layers[0].shape == (7, 1, 1, 4)


class _Random(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: tuple[int, ...]) -> None:
        self._left = [{"x": np.random.default_rng(seed).random(shape, np.float32)} for seed in range(3)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


@pytest.mark.parametrize("form", [quantization.QuantFormat.QDQ, quantization.QuantFormat.QOperator])
def test_quantised_by_onnx_runtime_counts_as_before(tmp_path: Path, form: quantization.QuantFormat) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "net.conv.weight", "b"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    weights = {"net.conv.weight": rng.random((4, 3, 3, 3), np.float32), "b": rng.random(4, np.float32)}
    weights["v"] = rng.random((4 * 36, 5), np.float32)
    plain = save(tmp_path / "plain.onnx", nodes, ["N", 3, 6, 6], weights)
    quantised = tmp_path / "quantised.onnx"
    quantization.quantize_static(plain, quantised, _Random((1, 3, 6, 6)), quant_format=form, per_channel=True)
    before, after = inspect(plain), inspect(quantised)
    assert before.parameters == 4 * 27 + 4 + 720
    assert (after.parameters, after.macs) == (before.parameters, before.macs)
    assert [(layer.macs, layer.precision) for layer in after.layers if layer.macs] == [(4 * 36 * 27, "int8"), (720, "int8")]
    assert {layer.precision for layer in before.layers} == {"fp32"}
    assert not {"QuantizeLinear", "DequantizeLinear"} & {layer.operator for layer in after.layers}


def test_dynamically_quantised_counts_as_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    weights = {"w": rng.random((4, 3, 3, 3), np.float32), "v": rng.random((64, 5), np.float32)}
    plain = save(tmp_path / "plain.onnx", nodes, ["N", 3, 6, 6], weights)
    quantization.quantize_dynamic(plain, tmp_path / "q.onnx", weight_type=quantization.QuantType.QUInt8)
    before, after = inspect(plain), inspect(tmp_path / "q.onnx")
    assert {("ConvInteger", "int8"), ("MatMulInteger", "int8")} <= {(layer.operator, layer.precision) for layer in after.layers}
    assert (after.parameters, after.macs) == (before.parameters, before.macs)


def test_unknown_shapes_and_operators_give_unknown_counts(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Strange", ["x"], ["s"], domain="elsewhere"),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    found = inspect(save(tmp_path / "m.onnx", nodes, ["N", 3], {"w": ones(3, 2)}))
    assert [(layer.operator, layer.shape, layer.macs) for layer in found.layers] == [("Strange", None, 0), ("MatMul", None, None)]
    assert [layer.precision for layer in found.layers] == [None, None]
    free = save(tmp_path / "free.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], ["N", 3, "H", "W"], {"w": ones(2, 3, 3, 3)})
    layer = inspect(free).layers[0]
    assert (layer.parameters, layer.macs) == (54, None)


def test_open_sides_written_as_minus_one_are_open(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    whole = save(tmp_path / "whole.onnx", nodes, [-1, 3, 8, 8], {"w": ones(2, 3, 3, 3)})
    [layer] = inspect(whole).layers
    assert (layer.shape, layer.macs) == (("?", 2, 6, 6), 2 * 27 * 36)
    model = onnx.load(whole)
    for name, sides in ((model.graph.input[0], [-1, 3, -1, -1]), (model.graph.output[0], [-1, 2, -1, -1])):
        name.CopyFrom(helper.make_tensor_value_info(name.name, 1, sides))
    onnx.save(model, whole)
    [layer] = inspect(whole).layers
    assert (layer.shape, layer.macs) == (("?", 2, "?", "?"), None)


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    function = helper.make_function(
        "own", "Dense", ["a", "k"], ["o"], [helper.make_node("MatMul", ["a", "k"], ["o"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(
        [helper.make_node("Dense", ["x", "w"], ["y"], domain="own")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])], [numpy_helper.from_array(ones(3, 2), "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10), tmp_path / "m.onnx")
    found = inspect(tmp_path / "m.onnx")
    assert [(layer.operator, layer.parameters, layer.macs) for layer in found.layers] == [("MatMul", 6, 6)]


@pytest.mark.parametrize("is_transposed", [True, False])
def test_a_product_that_shape_inference_does_not_know_has_a_shape(tmp_path: Path, is_transposed: bool) -> None:
    """Of ONNX Runtime's own operators: 16 numbers an image to 5 scores."""
    scales = {f"s{at}": np.array(0.1, np.float32) for at in range(3)}
    zeros = {f"z{at}": np.array(0, np.uint8) for at in range(3)}
    weights = np.zeros((5, 16) if is_transposed else (16, 5), np.uint8)
    node = helper.make_node(
        "QGemm", ["q", "s0", "z0", "w", "s1", "z1", "", "s2", "z2"], ["y"], domain="com.microsoft", transB=int(is_transposed)
    )
    nodes = [helper.make_node("QuantizeLinear", ["x", "s0", "z0"], ["q"]), node]
    found = inspect(save(tmp_path / "m.onnx", nodes, ["N", 16], {"w": weights, **scales, **zeros}))
    [layer] = [layer for layer in found.layers if layer.operator == "QGemm"]
    assert (layer.shape, layer.macs, layer.parameters) == (("N", 5), 80, 80)
