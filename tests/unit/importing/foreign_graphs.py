"""Small ONNX graphs as other programs write them, each awkward in one way. Their weights are random; their answers are exact."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], taken: onnx.ValueInfoProto, outputs: Sequence[tuple[str, int, list[Any]]],
    constants: dict[str, np.ndarray], *, opset: int = 13, ir: int = 8, metadata: dict[str, str] | None = None,
    weights_are_inputs: bool = False,
) -> Path:  # fmt: skip
    """Writes a checked graph."""
    listed = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes, "foreign", [*(listed if weights_are_inputs else []), taken],
        [helper.make_tensor_value_info(*output) for output in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=ir
    )
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def features(taken: str, layout: str = "nchw") -> list[onnx.NodeProto]:
    """A convolution, a Relu and the mean over the image: the value `feat`, [N,8]."""
    nodes = []
    if layout == "nhwc":
        nodes, taken = [helper.make_node("Transpose", [taken], ["nchw"], perm=[0, 3, 1, 2])], "nchw"
    return [
        *nodes,
        helper.make_node("Conv", [taken, "cw"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["a"]),
        helper.make_node("ReduceMean", ["a"], ["feat"], axes=[2, 3], keepdims=0),
    ]


def classifier(
    path: Path, *, taken: str = "x", shape: Sequence[Any] = ("n", 3, 32, 32), layout: str = "nchw", end: str = "Softmax",
    classes: int = CLASSES, output: str = "scores", channels: int = 3, **saved: Any,
) -> Path:  # fmt: skip
    """A graph with one output, which the operator `end` gives; the logits themselves if it is empty."""
    nodes = [*features(taken, layout), helper.make_node("MatMul", ["feat", "w"], ["z" if end else output])]
    if end in ("Softmax", "LogSoftmax"):
        nodes.append(helper.make_node(end, ["z"], [output], axis=1))
    elif end:
        nodes.append(helper.make_node(end, ["z"], [output]))
    value = helper.make_tensor_value_info(taken, TensorProto.FLOAT, shape)
    constants = {"cw": weights(8, channels, 3, 3), "w": weights(8, classes, seed=1)}
    return save(path, nodes, value, [(output, TensorProto.FLOAT, [shape[0], classes])], constants, **saved)


def with_nodes(
    path: Path, more: Sequence[onnx.NodeProto], outputs: Sequence[tuple[str, int, list[Any]]], *, batch: Any = "n",
    classes: int = CLASSES, **constants: np.ndarray,
) -> Path:  # fmt: skip
    """A graph of `feat` [N,8] and `z` [N,K], then these nodes."""
    nodes = [*features("x"), helper.make_node("MatMul", ["feat", "w"], ["z"]), *more]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])
    return save(path, nodes, value, outputs, {"cw": weights(8, 3, 3, 3), "w": weights(8, classes, seed=1), **constants})


def two_heads(path: Path) -> Path:
    """`color` of five classes and `shape` of three."""
    more = [
        helper.make_node("Softmax", ["z"], ["color"], axis=1),
        helper.make_node("MatMul", ["feat", "v"], ["y"]),
        helper.make_node("Softmax", ["y"], ["shape"], axis=1),
    ]
    outputs = [("color", TensorProto.FLOAT, ["n", 5]), ("shape", TensorProto.FLOAT, ["n", 3])]
    return with_nodes(path, more, outputs, v=weights(8, 3, seed=2))


def top_k(path: Path) -> Path:
    """The best three of five classes: values and indices."""
    more = [
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
        helper.make_node("TopK", ["p", "k"], ["values", "indices"], axis=1),
    ]
    outputs = [("values", TensorProto.FLOAT, ["n", 3]), ("indices", TensorProto.INT64, ["n", 3])]
    return with_nodes(path, more, outputs, k=np.array([3]))


def features_first(path: Path) -> Path:
    """Features and probabilities: either may be the scores."""
    more = [helper.make_node("Softmax", ["z"], ["probs"], axis=1)]
    return with_nodes(path, more, [("feat", TensorProto.FLOAT, ["n", 8]), ("probs", TensorProto.FLOAT, ["n", 5])])


def dropout_left_on(path: Path) -> Path:
    """Dropout that is in training mode."""
    more = [helper.make_node("Dropout", ["z", "ratio", "training"], ["scores"])]
    ratio, training = np.array(0.5, np.float32), np.array(True)
    return with_nodes(path, more, [("scores", TensorProto.FLOAT, ["n", 5])], ratio=ratio, training=training)


def items_change_each_other(path: Path) -> Path:
    """Scores less their mean over the batch, as batch normalisation in training mode makes them."""
    more = [
        helper.make_node("ReduceMean", ["z"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["z", "mean"], ["scores"]),
    ]
    return with_nodes(path, more, [("scores", TensorProto.FLOAT, ["n", 5])])


def fixed_batch(path: Path) -> Path:
    """A batch of exactly one, which a Reshape has in its shape."""
    more = [helper.make_node("Reshape", ["z", "rows"], ["scores"])]
    return with_nodes(path, more, [("scores", TensorProto.FLOAT, [1, 5])], batch=1, rows=np.array([1, 5]))


def never_more_than_one(path: Path) -> Path:
    """A batch of exactly one, whose dimension is given away."""
    more = [
        helper.make_node("Squeeze", ["z", "first"], ["row"]),
        helper.make_node("Unsqueeze", ["row", "first"], ["scores"]),
    ]
    return with_nodes(path, more, [("scores", TensorProto.FLOAT, [1, 5])], batch=1, first=np.array([0]))


Builder = Callable[[Path], Path]
