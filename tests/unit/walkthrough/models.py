"""Models to walk through: untrained networks, int8 files, and files without a contract."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from export.convert.onnx_conversion import to_onnx
from export.networks import architectures
from export.training.checkpoint import Checkpoint
from export.training.recipes import Settings
from export.walkthrough import (
    subject,
    web_page,
)
from service.model.input_spec import InputSpec

GRAY, COLOUR = InputSpec(height=28, width=28, channels=1), InputSpec(height=32, width=32, channels=3)


MAX_PIXELS = 1 << 24


def untrained(text: str, spec: InputSpec, classes: int) -> Checkpoint:
    """An untrained network of real shape, with statistics that are not those of a fresh one."""
    torch.manual_seed(1)
    network = architectures.build(text, spec, classes)
    network.train()
    network(torch.randn(8, spec.channels, spec.height, spec.width))
    with torch.no_grad():  # equal weights, such as the shifts of fresh norms, would be stored once
        for weights in network.parameters():
            weights.add_(0.01 * torch.randn_like(weights))
    labels = tuple(f"kind {index}" for index in range(classes))
    means, stds = (100.0, 110.0, 120.0)[: spec.channels], (50.0, 60.0, 70.0)[: spec.channels]
    return Checkpoint(network.eval(), spec, labels, "pictures", means, stds, Settings(text, 1), 1)


def subject_of(checkpoint: Checkpoint, temperature: float = 1.0) -> subject.Subject:
    """The subject that a file of this checkpoint gives."""
    return subject.Subject(
        "pictures", to_onnx(checkpoint, temperature), checkpoint.input, checkpoint.labels, {},
        activation=architectures.activation(checkpoint.network),
    )  # fmt: skip


def normalised(checkpoint: Checkpoint, pixels: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (checkpoint.mean, checkpoint.std))
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() - mean) / std


def qdq(model: onnx.ModelProto, pictures: np.ndarray, folder: Path) -> onnx.ModelProto:
    """The model in int8, as QuantizeLinear and DequantizeLinear pairs, calibrated on these pictures."""
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(model, source)

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {"image": row[np.newaxis]}

    quantization.quantize_static(
        source, target, Calibration(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm"],
    )  # fmt: skip
    return onnx.load(target)


def without_contract(path: Path, layout: str, kind: int = TensorProto.FLOAT, shape: list[Any] | None = None) -> Path:
    """A classifier as others may write one: a convolution, global average pooling and a product, logits and nothing else."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32), "dense": random.normal(size=(8, 5)).astype(np.float32),
        "axes": np.array([2, 3]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        *([helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []),
        helper.make_node("Conv", ["nchw" if layout == "NHWC" else "float", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "dense"], ["scores"]),
    ]
    sides = shape or (["N", 3, 40, 48] if layout == "NCHW" else ["N", 40, 48, 3])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, sides)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [sides[0], 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def added_up(example: web_page.Example) -> str:
    """What a reader gets who adds up the numbers that are printed, in the decimals of the result."""
    before, result = re.fullmatch(r"(.*)= (.*)", example.result, re.DOTALL).groups()  # type: ignore[union-attr]
    products = [[np.array(table, float) for _, table in line] for line in example.lines]
    total = sum(float((one * other).sum()) for one, other in products) + sum(map(float, before.split()[-1:]))
    return f"{before}= {total:.{len(result.partition('.')[2])}f}"


def equations(text: str) -> list[str]:
    """The equations in a text: from the first number, sign or function before an equals sign to the number after it."""
    found: list[str] = re.findall(r"(?:-?(?:ln|[\d.]|1 / )[^=“”:;?!A-Z]*?) = -?[\d.]+(?:e[-+]\d+)?", text)
    return [each.rstrip(".") for each in found]


def is_true(equation: str) -> bool:
    """Whether a calculator that is given the left side shows the right side, in the digits that it is printed with."""
    left, _, right = equation.rpartition(" = ")
    for word, meaning in (("-ln(", "-log("), ("²", "**2"), (" x ", " * ")):
        left = left.replace(word, meaning)
    left = re.sub(r"-ln ([-+.\de]+)", r"-log(\1)", left)
    assert re.fullmatch(r"[-+*/(). \de]*(log|exp)?[-+*/(). \de]*", left), equation
    mantissa, _, power = right.partition("e")
    unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    value: float = eval(left, {"log": math.log, "exp": math.exp})
    return abs(value - float(right)) <= 0.5001 * unit + 1e-15
