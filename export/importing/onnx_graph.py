"""Operations on ONNX graphs that several steps of an import need: producers, names, what is reachable, and constants."""

from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import helper

_NO_CHANGE = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that computes each value of the main graph."""
    return {name: node for node in model.graph.node for name in node.output if name}


def deciding_node(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The node that computes a value, before those that change no number; None for an input or a constant."""
    computed = producers(model)
    node = computed.get(name)
    while node is not None and node.op_type in _NO_CHANGE:
        node = computed.get(node.input[0])
    return node


def attribute(node: onnx.NodeProto, name: str) -> object:
    """The value of a node's attribute; None if it has none of this name."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), None)


def rename_values(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Gives values of the main graph other names, wherever they are used."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in _nodes(graph):
        for values in (node.input, node.output):
            for at, name in enumerate(values):
                values[at] = names.get(name, name)


def prune(model: onnx.ModelProto, outputs: Iterable[str]) -> None:
    """Removes nodes and weights that none of the outputs needs."""
    graph = model.graph
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read_by(node))
    kept_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    values = [value for value in graph.value_info if value.name in needed]
    del graph.node[:]
    graph.node.extend(kept_nodes)
    if len(weights) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(weights)
    if len(values) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(values)


def name_nodes(model: onnx.ModelProto) -> None:
    """Gives every node of the main graph a name of its own: layers are chosen and shown by it."""
    seen: set[str] = set()
    for at, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{at}"
            while node.name in seen:
                node.name += "_"
        seen.add(node.name)


def constants_as_weights(model: onnx.ModelProto) -> None:
    """Turns nodes `Constant` into initializers, which the quantiser takes for weights."""
    graph = model.graph
    kept = []
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto):
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for found in node.attribute:
            for inner in (*([found.g] if found.HasField("g") else []), *found.graphs):
                yield from _nodes(inner)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, in subgraphs too."""
    yield from node.input
    for found in node.attribute:
        for inner in (*([found.g] if found.HasField("g") else []), *found.graphs):
            yield from (value.name for value in inner.output)
            for deeper in inner.node:
                yield from _read_by(deeper)
