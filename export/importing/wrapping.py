"""Wraps a foreign graph into one that takes pixels and gives probabilities.

Before the graph: the pixels are cast, their channels ordered, scaled and normalised, and their layout changed. After it: scores
become probabilities and logits. The nodes are of operator versions that old graphs have too, so that a graph is converted to newer
ones only where it must be.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from export.importing import onnx_graph
from export.importing.network_input import NetworkInput
from export.importing.recipe import Recipe
from export.importing.score_head import ScoreHead
from export.inspection.layers import IMPORT_PREFIX
from service.errors import UserError, first_line
from service.model.contract import INPUT_NAME, LOGITS_NAME

PREFIX = IMPORT_PREFIX
"""Of the names of nodes and values around the source's graph."""

_MIN_OPSET = 9
_MIN_IR = 8
NEW_OPSET = 17
QUANTIZED_OPSET = 13
"""From here on a weight can have a scale for each channel."""
_Step = tuple[str, list[str], dict[str, Any]]
"""An operator, its weights, and its attributes."""

_ORDERS = {"rgb": (0, 1, 2), "bgr": (2, 1, 0)}


@dataclass(frozen=True)
class WrappedHead:
    """A head, and the graph's output that will hold its probabilities."""

    head: ScoreHead
    output: str


def raise_versions(model: onnx.ModelProto, opset: int = _MIN_OPSET) -> onnx.ModelProto:
    """The model with a version of ONNX's own operators of at least `opset`, and weights that are no inputs.

    Raises UserError if ONNX cannot convert it.
    """
    own = next((entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if own is None:
        model.opset_import.append(helper.make_opsetid("", NEW_OPSET))
    elif own.version < opset:
        try:
            model = version_converter.convert_version(model, NEW_OPSET)
        except Exception as error:  # noqa: BLE001 - of ONNX's C++ code
            raise UserError(
                f"the graph is of opset {own.version}, and ONNX cannot convert it to {NEW_OPSET} ({first_line(error)}): export it "
                "anew"
            ) from None
    model.ir_version = max(model.ir_version, _MIN_IR)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) < len(model.graph.input):  # up to IR 3, weights were listed as inputs
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    return model


def wrap(
    model: onnx.ModelProto, network: NetworkInput, recipe: Recipe, heads: Sequence[WrappedHead], batch_items: int = 0
) -> onnx.ModelProto:
    """The graph from `image`, [N,H,W,C] of the recipe's dtype, to the heads' probabilities, and `logits` of the first.

    Args:
        model: the source's graph; it is not changed.
        network: what it takes.
        recipe: what happens to pixels.
        heads: the first one's output is `probabilities`.
        batch_items: items of every batch; 0 for any number.
    """
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    graph = wrapped.graph
    taken = {INPUT_NAME, LOGITS_NAME, *(head.output for head in heads)}
    names = {name: f"source__{name}" for name in _value_names(wrapped) if name in taken or name.startswith(PREFIX)}
    onnx_graph.rename_values(wrapped, names)
    nodes = _Nodes(graph)
    source_input = names.get(network.name, network.name)
    into = list(nodes.input_side(network, recipe, source_input))
    after: list[onnx.NodeProto] = []
    for at, head in enumerate(heads):
        value = names.get(head.head.value, head.head.value)
        last = onnx_graph.deciding_node(wrapped, value)
        before = last.input[0] if last is not None and last.op_type == "Sigmoid" else ""
        after += nodes.output_side(value, before, head, with_logits=at == 0)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*into, *kept, *after])

    rows = batch_items or "N"
    outputs = [(head.output, len(head.head.labels)) for head in heads]
    outputs.insert(1, (LOGITS_NAME, outputs[0][1]))
    del graph.input[:], graph.output[:]
    kind = TensorProto.UINT8 if recipe.input.dtype == "uint8" else TensorProto.FLOAT
    graph.input.append(helper.make_tensor_value_info(INPUT_NAME, kind, [rows, *recipe.input.shape]))
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, classes]) for name, classes in outputs)
    onnx_graph.prune(wrapped, [name for name, _ in outputs])
    onnx_graph.name_nodes(wrapped)
    return wrapped


class _Nodes:
    """Makes nodes, and weights for them in a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._made = 0

    def input_side(self, network: NetworkInput, recipe: Recipe, target: str) -> Iterator[onnx.NodeProto]:
        """From `image` to the value `target`, which the source's graph takes."""
        steps = list(self._input_steps(network, recipe)) or [("Identity", [], {})]
        value = INPUT_NAME
        for at, (operator, more, attributes) in enumerate(steps):
            name = target if at == len(steps) - 1 else self._name(operator)
            yield self._node(operator, [value, *more], name, attributes)
            value = name

    def _input_steps(self, network: NetworkInput, recipe: Recipe) -> Iterator[_Step]:
        nchw, held = network.layout == "nchw", np.dtype(recipe.input.dtype)
        if nchw:
            yield "Transpose", [], {"perm": [0, 3, 1, 2]}
        order = _channel_order(network, recipe)
        if order is not None:
            yield "Gather", [self._weight("channels", np.array(order, np.int64))], {"axis": 1 if nchw else 3}
        if held != np.float32 and not (network.dtype == held and _is_identity(recipe)):
            held = np.dtype(np.float32)
            yield "Cast", [], {"to": TensorProto.FLOAT}
        shape = (-1, 1, 1) if nchw else (-1,)
        if recipe.scale != 1.0:
            yield "Div", [self._weight("scale", np.array(recipe.scale, np.float32))], {}
        if any(recipe.mean):
            yield "Sub", [self._weight("mean", np.array(recipe.mean, np.float32).reshape(shape))], {}
        if any(value != 1.0 for value in recipe.std):
            yield "Div", [self._weight("std", np.array(recipe.std, np.float32).reshape(shape))], {}
        if network.is_flat or not network.has_batch:
            yield "Reshape", [self._weight("shape", np.array(network.tensor_shape, np.int64))], {}
        if network.dtype != held:
            yield "Cast", [], {"to": helper.np_dtype_to_tensor_dtype(network.dtype)}

    def output_side(self, value: str, before: str, wrapped: WrappedHead, with_logits: bool) -> Iterator[onnx.NodeProto]:
        """From a value of the source's graph to the probabilities of a head, and to the logits if they are wanted.

        Args:
            value: the scores.
            before: what the source's sigmoid makes probabilities of; empty if it ends in another operator.
            wrapped: the head.
            with_logits: whether its logits are an output: their softmax, of `multilabel` their sigmoid, is the probabilities.
        """
        head, output = wrapped.head, wrapped.output
        scores = yield from self._rows(value, head.units)
        logits = ""
        if head.form == "probabilities":
            units = scores
            if with_logits and before and head.activation != "softmax":  # exact where a probability is rounded to 1
                logits = yield from self._rows(before, head.units)
        elif head.activation == "softmax":
            units, logits = output, scores
            yield self._node("Softmax", [scores], output, {"axis": 1})
        else:
            units, logits = (output if head.activation == "multilabel" else self._name("Sigmoid")), scores
            yield self._node("Sigmoid", [scores], units)
        if head.activation == "sigmoid":
            first = self._name("Sub")
            yield self._node("Sub", [self._weight("one", np.array(1.0, np.float32)), units], first)
            yield self._node("Concat", [first, units], output, {"axis": 1})
        elif units != output:
            yield self._node("Identity", [units], output)
        if with_logits:
            yield from self._logits(logits, head, output)

    def _rows(self, value: str, units: int) -> Generator[onnx.NodeProto, None, str]:
        """A value as float32[N,units]; returns its name."""
        rows = self._name("Scores")
        yield self._node("Reshape", [value, self._weight("rows", np.array([-1, units], np.int64))], rows)
        scores = self._name("Cast")
        yield self._node("Cast", [rows], scores, {"to": TensorProto.FLOAT})
        return scores

    def _logits(self, logits: str, head: ScoreHead, output: str) -> Iterator[onnx.NodeProto]:
        if logits and head.activation == "sigmoid":  # [0, z]: its softmax is [1 - sigmoid(z), sigmoid(z)]
            zero = self._name("Mul")
            yield self._node("Mul", [logits, self._weight("zero", np.array(0.0, np.float32))], zero)
            yield self._node("Concat", [zero, logits], LOGITS_NAME, {"axis": 1})
        elif logits:
            yield self._node("Identity", [logits], LOGITS_NAME)
        elif head.activation == "multilabel":  # log(p / (1 - p)), each by itself
            complement = self._name("Sub")
            yield self._node("Sub", [self._weight("one", np.array(1.0, np.float32)), output], complement)
            positive = yield from self._log(output, float(np.finfo(np.float32).tiny))
            negative = yield from self._log(complement, float(np.finfo(np.float32).epsneg) / 2)
            yield self._node("Sub", [positive, negative], LOGITS_NAME)
        else:
            positive = yield from self._log(output, float(np.finfo(np.float32).tiny))
            yield self._node("Identity", [positive], LOGITS_NAME)

    def _log(self, value: str, least: float) -> Generator[onnx.NodeProto, None, str]:
        """The logarithm of a value, or of `least` where it is less; returns its name."""
        positive, logarithm = self._name("Max"), self._name("Log")
        yield self._node("Max", [value, self._weight("least", np.array(least, np.float32))], positive)
        yield self._node("Log", [positive], logarithm)
        return logarithm

    def _node(self, operator: str, inputs: list[str], output: str, attributes: dict[str, Any] | None = None) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, [output], name=self._name(operator), **(attributes or {}))

    def _weight(self, name: str, value: NDArray[np.generic]) -> str:
        made = self._name(name)
        self._graph.initializer.append(numpy_helper.from_array(value, made))
        return made

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{PREFIX}{kind.lower()}_{self._made}"


def prepare(pixels: NDArray[np.generic], network: NetworkInput, recipe: Recipe) -> NDArray[np.generic]:
    """What the source's graph takes for pixels [n,H,W,C]: the recipe in numpy, as its framework's own pipeline computes it."""
    order = _channel_order(network, recipe)
    images = pixels if order is None else pixels[..., list(order)]
    if not (network.dtype == np.uint8 and _is_identity(recipe)):
        images = images.astype(np.float32) / np.float32(recipe.scale)
        images = (images - np.array(recipe.mean, np.float32)) / np.array(recipe.std, np.float32)
    return network.arrange(images)


def _is_identity(recipe: Recipe) -> bool:
    return (
        recipe.input.dtype == "uint8" and recipe.scale == 1.0 and not any(recipe.mean) and all(value == 1.0 for value in recipe.std)
    )


def _channel_order(network: NetworkInput, recipe: Recipe) -> tuple[int, ...] | None:
    """Which channels of the picture the network takes; None if those that there are."""
    if network.channels == 3 and recipe.input.channels == 1:
        return 0, 0, 0
    order = _ORDERS[recipe.channel_order]
    return None if network.channels == 1 or order == (0, 1, 2) else order


def _value_names(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    names: set[str] = (
        {value.name for value in graph.input}
        | {tensor.name for tensor in graph.initializer}
        | {tensor.values.name for tensor in graph.sparse_initializer}
    )
    return names | {name for node in graph.node for name in (*node.input, *node.output) if name}
