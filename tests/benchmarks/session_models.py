"""The files that `session_options` measures: networks with random weights, in float32 and in several kinds of int8."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from export.convert import quantization
from export.convert.onnx_conversion import to_onnx
from export.networks import architectures
from export.training.checkpoint import Checkpoint
from export.training.recipes import Settings
from service.model.input_spec import InputSpec
from tests.benchmarks import small_cnn

CLASSES = 10
CALIBRATION_ITEMS = 16

NETWORKS = {
    "small": ("article-cnn", 28, 1),
    "speed-net": ("speed-net", 32, 3),
    "r18": ("resnet18", 32, 3),
    "r18-224": ("resnet18:stem=imagenet", 224, 3),
}
"""Name of the network, side and channels of its pictures."""

KINDS = {
    "int8 U8S8, 8 bits": (QuantType.QUInt8, QuantType.QInt8),
    "int8 U8U8": (QuantType.QUInt8, QuantType.QUInt8),
    "int8 S8S8": (QuantType.QInt8, QuantType.QInt8),
}
"""Types of activations and weights, beside `int8`, which is what `convoy export` makes."""


def write(folder: Path, name: str) -> dict[str, Path]:
    """Writes the files of a network, unless they are there: `fp32`, `int8` and those of `KINDS`; of `small` also `denormal`."""
    names = ("fp32", "int8", *KINDS, *(("denormal",) if name == "small" else ()))
    files = {kind: folder / f"{name}-{kind.replace(' ', '-').replace(',', '')}.onnx" for kind in names}
    if all(path.exists() for path in files.values()):
        return files
    network, side, channels = NETWORKS[name]
    if name == "small":
        small_cnn.write(files["fp32"])
        graph = onnx.load(files["fp32"])
        for node in graph.graph.node:  # as PyTorch's exporter does; the quantiser goes by these names
            node.name = node.output[0]
        onnx.save_model(with_decayed_filters(graph), files["denormal"])
    else:
        graph = exported(network, side, channels)
        onnx.save_model(graph, files["fp32"])
    pixels = np.random.default_rng(1).integers(0, 256, (CALIBRATION_ITEMS, side, side, channels), np.uint8)
    nodes = list(quantization._layers(graph))
    ranges = quantization._ranges(graph, quantization.METHODS["extremes"], pixels)
    onnx.save_model(quantization._quantized(graph, ranges, nodes), files["int8"])
    for kind, types in KINDS.items():
        onnx.save_model(quantized(graph, ranges, *types), files[kind])
    return files


def exported(network: str, side: int, channels: int) -> onnx.ModelProto:
    """A network as `convoy export` converts it."""
    torch.manual_seed(0)
    spec = InputSpec(height=side, width=side, channels=channels)
    module = architectures.build(network, spec, CLASSES).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)  # at first some are 0, so that a block gives what it is given
    labels = tuple(map(str, range(CLASSES)))
    checkpoint = Checkpoint(
        module, spec, labels, "none", (120.0,) * channels, (70.0,) * channels, Settings(network, epochs=0), epoch=0
    )
    return to_onnx(checkpoint)


def quantized(graph: onnx.ModelProto, ranges: Any, activations: QuantType, weights: QuantType) -> onnx.ModelProto:
    """As the quantiser of `convoy export`, with other types and all 8 bits of the weights."""
    quantizer = QDQQuantizer(
        graph, per_channel=True, reduce_range=False, weight_qType=weights, activation_qType=activations, tensors_range=ranges,
        nodes_to_quantize=[], nodes_to_exclude=[], op_types_to_quantize=[*quantization._LAYERS, *quantization._FOLLOWERS],
        extra_options={"OpTypesToExcludeOutputQuantization": list(quantization._FLOAT_OUTPUT)},
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    return result


def with_decayed_filters(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The weights of every second filter are denormal, as weight decay leaves those of filters that nothing needs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    for tensor in changed.graph.initializer:
        if tensor.name.startswith("conv") and tensor.name.endswith("weight"):
            value = numpy_helper.to_array(tensor).copy()
            value[::2] = np.sign(value[::2]) * np.float32(1e-40)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return changed
