"""The activations of an ONNX graph: the output of every layer for one image.

The graph is run with the value of every layer as an additional output. Quantisation and casts only change how a number is stored,
so they are no layers. Nodes that only prepare the input of the next node (a change of layout, a constant that is subtracted before
a division) form one layer with it.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner, numpy_helper

from export.inspection.layers import layer_table
from service.model.session import OpenGraph

QUANTISATION = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

_INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_LAYOUT = ("Transpose", "Squeeze", "Unsqueeze")
_UNCHANGED = (*QUANTISATION, "Cast", "Identity", "Dropout")


@dataclass(frozen=True)
class LayerActivation:
    """The output of a layer for one image.

    Attributes:
        name: as in `convoy inspect`.
        nodes: the layer's nodes in order; the last one gives the output.
        value: the output, float32 of any shape; the first dimension is the batch, 1.
        inputs: the computed inputs of the last node, likewise.
        weights: of the last node, if it is a convolution or a matrix product with constant weights.
        bias: likewise.
        parameters: elements of its weights that no earlier layer has, without running means and variances, which are measured.
        folds_norm: whether a batch norm is folded into the weights.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    value: NDArray[np.float32]
    inputs: tuple[NDArray[np.float32], ...]
    weights: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    parameters: int
    folds_norm: bool = False

    @property
    def operator(self) -> str:
        """The ONNX operators, in order."""
        return " + ".join(node.op_type for node in self.nodes)

    @property
    def last(self) -> onnx.NodeProto:
        """The node that gives the output."""
        return self.nodes[-1]


class Activations:
    """A graph and all its values for one image.

    Attributes:
        layers: in the order of computation.
        outputs: the graph's own outputs, by name.
    """

    def __init__(self, model: onnx.ModelProto, has_contract: bool, image: NDArray[np.generic], threads: int) -> None:
        """Runs `model` on `image` [1, ...] of the graph's input type. Raises InvalidModel or LoadError if that fails."""
        self._model = inliner.inline_local_functions(model)
        graph = self._model.graph
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        table = layer_table(self._model, has_contract)
        self._table = {layer.output: layer for layer in table if layer.output in self._producers}
        self._computed = {name for output in self._table for name in self._producers[output].output}
        self._computed |= {value.name for value in graph.input if value.name not in self._weights}
        for node in graph.node:  # which are in order; the table has no layers of them
            if node.op_type in QUANTISATION and node.input[0] in self._computed:
                self._computed |= set(node.output)
        self._values = self._run(image, threads)
        self.outputs = {output.name: self._values[output.name] for output in graph.output}
        self.layers = list(self._layers())

    def source(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a value, before quantisation and casts; None for the input and for constants."""
        name = self._before_casts(name)
        return self._producers.get(name) if name in self._computed else None

    def value(self, name: str) -> NDArray[np.float32]:
        """Any value of the graph as float32, computed or constant."""
        if name in self._values:
            return _as_float(self._values[name])
        return _as_float(numpy_helper.to_array(self._weights[name]))

    def sources(self, names: Iterable[str]) -> set[str]:
        """These values, and all that they are computed from."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name and name not in found:
                found.add(name)
                waiting += self._producers[name].input if name in self._producers else ()
        return found

    def computed_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that depend on the image."""
        return [name for name in node.input if name in self._computed]

    def constant(self, name: str) -> NDArray[np.float32] | None:
        """A value that does not depend on the image; None if it does, or for an empty name."""
        return None if not name or name in self._computed else self.value(name)

    def _run(self, image: NDArray[np.generic], threads: int) -> dict[str, NDArray[np.generic]]:
        extended = copy.deepcopy(self._model)
        existing = {output.name for output in extended.graph.output}
        wanted = [name for name in self._computed if name in self._producers]
        # Weights computed from others, such as dequantised ones, of the layers that show their weights, and constant factors.
        for output in self._table:
            node = self._producers[output]
            if node.op_type in (*WEIGHTED, "Mul", "Div"):
                constants = node.input[1:] if node.op_type in WEIGHTED else node.input
                wanted += [name for name in constants if name in self._producers and name not in self._computed]
        extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(wanted) if name not in existing)
        values = OpenGraph(extended.SerializeToString(), threads).run(image)
        return {extended.graph.input[0].name: image, **values}

    def _before_casts(self, name: str) -> str:
        """The name of a value before it was quantised, cast or passed on."""
        while name in self._producers and name in self._computed:
            node = self._producers[name]
            if node.op_type not in _UNCHANGED:
                break
            name = node.input[0]
        return name

    def _layers(self) -> Iterator[LayerActivation]:
        nodes = [self._producers[output] for output, layer in self._table.items() if layer.operator not in _UNCHANGED]
        outputs = {self._before_casts(output.name) for output in self._model.graph.output}
        readers = Counter(name for node in nodes for name in set(self._inputs(node)))
        group: list[onnx.NodeProto] = []
        for node, following in zip(nodes, [*nodes[1:], None], strict=True):
            group.append(node)
            value = node.output[0]
            is_read_once = readers[value] == 1 and value not in outputs
            if is_read_once and following and self._inputs(following) == [value] and self._prepare(node, following):
                continue
            if self._is_shown(node):
                yield self._layer(tuple(group))
            group = []

    def _is_shown(self, node: onnx.NodeProto) -> bool:
        """Whether a value is an activation. Other integers are shapes; 8-bit ones are quantised numbers."""
        value = self._values[node.output[0]]
        is_number = np.issubdtype(value.dtype, np.floating) or value.dtype.itemsize == 1 or node.op_type in _INTEGER_PRODUCTS
        return is_number and value.dtype != np.bool_ and value.size > 0

    def _inputs(self, node: onnx.NodeProto) -> list[str]:
        return [self._before_casts(name) for name in self.computed_inputs(node)]

    def _prepare(self, *nodes: onnx.NodeProto) -> bool:
        """Whether the nodes only change the layout, or compute with a constant."""
        return all(
            node.op_type in _LAYOUT or (node.op_type in _ARITHMETIC and len(self.computed_inputs(node)) == 1) for node in nodes
        )

    def _layer(self, nodes: tuple[onnx.NodeProto, ...]) -> LayerActivation:
        last = nodes[-1]
        rows = [self._table[node.output[0]] for node in nodes]
        has_weights = last.op_type in WEIGHTED
        return LayerActivation(
            name=rows[-1].name,
            nodes=nodes,
            value=self.value(last.output[0]),
            inputs=tuple(self.value(name) for name in self._inputs(last)),
            weights=self.constant(last.input[1]) if has_weights else None,
            bias=self.constant(last.input[2]) if has_weights and len(last.input) > 2 else None,
            parameters=sum(row.parameters - row.statistics for row in rows),
            folds_norm=rows[-1].folds_norm,
        )


def _as_float(value: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(value).astype(np.float32)
