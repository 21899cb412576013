"""A model that tells red, green and blue, and folders of pictures of one colour: its answers are known beforehand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from service.model.contract import METADATA_KEY, Contract, Head, Origin, Training
from service.model.input_spec import InputSpec

RGB = ("red", "green", "blue")
_SHADES = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "yellow": (200, 200, 20)}


def color_model(
    path: Path,
    labels: Sequence[str] = RGB,
    training: Training | None = None,
    further: Sequence[Head] = (),
    threshold: float | None = None,
) -> Path:
    """Writes a model whose logits are a picture's red, green and blue, by 50. Further heads answer by red and green alone.

    With a threshold it is multilabel.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "sides"], ["color"], keepdims=0),
        helper.make_node("Mul", ["color", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        *(helper.make_node("Softmax", ["pair"], [head.output], axis=1) for head in further),
    ]
    if further:
        nodes.append(helper.make_node("Slice", ["logits", "zero", "two", "one"], ["pair"]))
        nodes.sort(key=lambda node: (node.op_type == "Softmax", node.output[0] != "probabilities"))
    constants: dict[str, np.ndarray] = {
        "sides": np.array([1, 2], np.int64), "scale": np.array(1 / 50, np.float32),
        "zero": np.array([0], np.int64), "two": np.array([2], np.int64), "one": np.array([1], np.int64),
    }  # fmt: skip
    outputs = [("probabilities", 3), ("logits", 3), *((head.output, 2) for head in further)]
    graph = helper.make_graph(
        nodes, "colors",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes]) for name, classes in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    activation: Literal["softmax", "multilabel"] = "softmax" if threshold is None else "multilabel"
    first = Head(name="probabilities", output="probabilities", labels=tuple(labels), activation=activation, threshold=threshold)
    contract = Contract(
        name="colors", input=InputSpec(height=4, width=4, channels=3), heads=(first, *further), precision="fp32", golden=(),
        training=training, origin=None if training else Origin(source="colors.pt", digest="0" * 64),
    )  # fmt: skip
    model.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path)
    return path


def foreign(model: Path) -> Path:
    """Takes the contract out of a model file."""
    content = onnx.load(model)
    del content.metadata_props[:]
    onnx.save_model(content, model)
    return model


def paint(path: Path, color: str, shade: int = 0) -> Path:
    """Writes a picture of one colour, of any size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6 + shade, 5), tuple(value + shade for value in _SHADES[color])).save(path)
    return path


def painted(root: Path, counts: Mapping[str, int]) -> Path:
    """A folder with so many pictures in a folder of each colour."""
    for color, count in counts.items():
        for number in range(count):
            paint(root / color / f"{number:03}.png", color, number % 30)
    return root
