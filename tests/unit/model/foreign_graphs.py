"""Small ONNX classifiers as other programs write them, each awkward in one way."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.unit.model.graphs import node

FLOAT, UINT8, INT64, BF16 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64, TensorProto.BFLOAT16
FEATURES = [node("ReduceMean", "x axes", "features", keepdims=0)]
"""The mean of each channel of a picture [N,3,H,W] as float32[N,3]."""

_RANDOM = np.random.default_rng(0)
WEIGHTS: dict[str, NDArray[Any]] = {
    "five": _RANDOM.normal(size=(3, 5)).astype(np.float32),
    "two": _RANDOM.normal(size=(3, 2)).astype(np.float32),
    "one": _RANDOM.normal(size=(3, 1)).astype(np.float32),
    "axes": np.array([2, 3]),
    "k": np.array([2]),
    "first": np.array([0]),
}

Shape = Sequence[int | str]


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: Mapping[str, int],
    *,
    kind: int = FLOAT,
    shape: Shape = ("N", 3, 8, 8),
    metadata: Mapping[str, str] | None = None,
    listed_weights: bool = False,
    shapes: Mapping[str, Shape] | None = None,
) -> Path:
    """A graph that takes `x` and gives `outputs`, types by name. With `listed_weights` it has its weights among its inputs."""
    needed = {name for each in nodes for name in each.input} & WEIGHTS.keys()
    weights = [numpy_helper.from_array(WEIGHTS[name], name) for name in sorted(needed)]
    listed = [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in weights] if listed_weights else []
    graph = helper.make_graph(
        nodes, "foreign", [*listed, helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, of, (shapes or {}).get(name)) for name, of in outputs.items()], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=3 if listed_weights else 10)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def save_picture_file_classifier(path: Path, *, row: bool = True) -> Path:
    """A graph that takes a PNG, and reads of it the width and the height, below 256: two scores, in proportion to them."""
    nodes = [
        node("Constant", "", "places", value_ints=[19, 23]), node("Constant", "", "zero", value_ints=[0]),
        node("Gather", "x places", "sides"), node("Cast", "sides", "floats", to=FLOAT), node("ReduceSum", "floats", "sum"),
        node("Div", "floats sum", "shares"), node("Unsqueeze" if row else "Identity", "shares zero" if row else "shares", "scores"),
    ]  # fmt: skip
    return save(path, nodes, {"scores": FLOAT}, kind=UINT8, shape=("bytes",))


def probabilities(weight: str, output: str) -> list[onnx.NodeProto]:
    return [node("MatMul", f"features {weight}", f"{output}_z"), node("Softmax", f"{output}_z", output, axis=1)]


def features_first(path: Path) -> Path:
    return save(path, [*FEATURES, *probabilities("five", "p")], {"features": FLOAT, "p": FLOAT})


def top_k(path: Path) -> Path:
    nodes = [*FEATURES, *probabilities("five", "p"), node("TopK", "p k", "values indices", axis=1)]
    return save(path, nodes, {"values": FLOAT, "indices": INT64})


def two_heads(path: Path) -> Path:
    return save(
        path, [*FEATURES, *probabilities("five", "color"), *probabilities("two", "shape")], {"color": FLOAT, "shape": FLOAT}
    )


def sigmoid_unit(path: Path) -> Path:
    return save(path, [*FEATURES, node("MatMul", "features one", "z"), node("Sigmoid", "z", "p")], {"p": FLOAT})


def unit_logit(path: Path) -> Path:
    return save(path, [*FEATURES, node("MatMul", "features one", "z")], {"z": FLOAT})


def without_batch(path: Path) -> Path:
    nodes = [node("Unsqueeze", "x first", "batch"), node("ReduceMean", "batch axes", "features", keepdims=0)]
    nodes += [node("MatMul", "features five", "z"), node("Squeeze", "z first", "y")]
    return save(path, nodes, {"y": FLOAT}, shape=(3, 8, 8), shapes={"y": (5,)})


def old_ir(path: Path) -> Path:
    """IR 3, which lists weights among the inputs."""
    return save(path, [*FEATURES, *probabilities("five", "p")], {"p": FLOAT}, listed_weights=True)


def uint8_logits(path: Path, names: str = "{0: 'cat', 1: 'dog', 2: 'cow', 3: 'ant', 4: 'bee'}") -> Path:
    """Raw scores of pixels uint8[N,8,8,3], with the names of the classes in the file."""
    nodes = [node("Cast", "x", "f", to=FLOAT), node("Transpose", "f", "t", perm=[0, 3, 1, 2])]
    nodes += [node("ReduceMean", "t axes", "features", keepdims=0), node("MatMul", "features five", "scores")]
    return save(path, nodes, {"scores": FLOAT}, kind=UINT8, shape=("N", 8, 8, 3), metadata={"names": names})


def named_like_ours(path: Path) -> Path:
    path = uint8_logits(path)
    model = onnx.load(path)
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    model.graph.output[0].name = model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(node("Softmax", "logits", "probabilities", axis=1))
    model.graph.output.insert(0, helper.make_tensor_value_info("probabilities", FLOAT, None))
    onnx.save(model, path)
    return path
