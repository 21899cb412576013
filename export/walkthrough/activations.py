"""What every layer of an ONNX graph makes of one picture: the graph is run once more, with each layer's value as an output.

Nodes become stops of a tour. Quantisation and casts are no layers, only other ways to write a number down: they are passed over.
What only prepares a value for the next node (a change of layout, a constant subtracted before another divides) is one stop with it.
"""

import copy
from collections import Counter
from collections.abc import Iterator
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
_PLUMBING = ("Transpose", "Squeeze", "Unsqueeze")
_UNCHANGED = (*QUANTISATION, "Cast", "Identity", "Dropout")


@dataclass(frozen=True)
class Stop:
    """A layer, or a few that belong together, and what it made of the picture.

    Attributes:
        name: as `convoy inspect` has it.
        nodes: in order; the last gives the value.
        value: float32 of any shape, the first dimension that of the batch: 1.
        inputs: values of the computed inputs of the last node, likewise.
        weights: of the last node, if it is a convolution or a product with constant weights.
        bias: likewise.
        parameters: how many weights the stop has that no stop before it has.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    value: NDArray[np.float32]
    inputs: tuple[NDArray[np.float32], ...]
    weights: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    parameters: int

    @property
    def operator(self) -> str:
        """The ONNX operators, in order."""
        return " + ".join(node.op_type for node in self.nodes)

    @property
    def last(self) -> onnx.NodeProto:
        """The node that gives the value."""
        return self.nodes[-1]


class Probe:
    """A graph and all its values for one picture.

    Attributes:
        stops: in the order of computation.
        outputs: the graph's own outputs, by name.
    """

    def __init__(self, model: onnx.ModelProto, has_contract: bool, image: NDArray[np.generic], threads: int) -> None:
        """Runs `model` on `image` [1, ...], of the graph's own input type. Raises InvalidModel or LoadError if that fails."""
        self._model = inliner.inline_local_functions(model)
        graph = self._model.graph
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        every = layer_table(self._model, has_contract)
        self._layers = {layer.output: layer for layer in every if layer.output in self._producers}
        self._computed = {name for output in self._layers for name in self._producers[output].output}
        self._computed |= {value.name for value in graph.input if value.name not in self._weights}
        self._values = self._run(image, threads)
        self.outputs = {output.name: self._values[output.name] for output in graph.output}
        self.stops = list(self._stops())

    def source(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value from what is computed, quantisation and casts passed over; None for input and constants."""
        name = self._plain(name)
        return self._producers.get(name) if name in self._computed else None

    def value(self, name: str) -> NDArray[np.float32]:
        """The value of any name in the graph, as float32, computed or constant."""
        if name in self._values:
            return _as_float(self._values[name])
        return _as_float(numpy_helper.to_array(self._weights[name]))

    def computed(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that depend on the picture."""
        return [name for name in node.input if name in self._computed]

    def constant(self, name: str) -> NDArray[np.float32] | None:
        """The value of what does not depend on the picture, None if it does or if there is none."""
        return None if not name or name in self._computed else self.value(name)

    def _run(self, image: NDArray[np.generic], threads: int) -> dict[str, NDArray[np.generic]]:
        probed = copy.deepcopy(self._model)
        given = {output.name for output in probed.graph.output}
        wanted = [name for name in self._computed if name in self._producers]
        # Weights that are computed from others, as int8 ones are: only those of the layers that show them.
        for output in self._layers:
            node = self._producers[output]
            if node.op_type in WEIGHTED:
                wanted += [name for name in node.input[1:] if name in self._producers and name not in self._computed]
        probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(wanted) if name not in given)
        values = OpenGraph(probed.SerializeToString(), threads).run(image)
        return {probed.graph.input[0].name: image, **values}

    def _plain(self, name: str) -> str:
        """The value that a name stands for before it was quantised, cast or passed on."""
        while name in self._producers and name in self._computed:
            node = self._producers[name]
            if node.op_type not in _UNCHANGED:
                break
            name = node.input[0]
        return name

    def _stops(self) -> Iterator[Stop]:
        nodes = [self._producers[output] for output, layer in self._layers.items() if layer.operator not in _UNCHANGED]
        final = {self._plain(output.name) for output in self._model.graph.output}
        consumers = Counter(name for node in nodes for name in set(self._takes(node)))
        pending: list[onnx.NodeProto] = []
        for node, following in zip(nodes, [*nodes[1:], None], strict=True):
            pending.append(node)
            alone = consumers[node.output[0]] == 1 and node.output[0] not in final
            if self._minor(node) and alone and following and self._minor(following) and self._takes(following) == [node.output[0]]:
                continue
            raw = self._values[node.output[0]]
            # What computes shapes is no layer; integers of eight bits are numbers that were quantised.
            shown = np.issubdtype(raw.dtype, np.floating) or raw.dtype.itemsize == 1 or node.op_type in _INTEGER_PRODUCTS
            if shown and raw.dtype != np.bool_ and raw.size:
                yield self._stop(tuple(pending))
            pending = []

    def _takes(self, node: onnx.NodeProto) -> list[str]:
        return [self._plain(name) for name in self.computed(node)]

    def _minor(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _PLUMBING or (node.op_type in _ARITHMETIC and len(self.computed(node)) == 1)

    def _stop(self, nodes: tuple[onnx.NodeProto, ...]) -> Stop:
        last = nodes[-1]
        layers = [self._layers[node.output[0]] for node in nodes]
        weighted = last.op_type in WEIGHTED
        return Stop(
            name=layers[-1].name,
            nodes=nodes,
            value=self.value(last.output[0]),
            inputs=tuple(self.value(name) for name in self._takes(last)),
            weights=self.constant(last.input[1]) if weighted else None,
            bias=self.constant(last.input[2]) if weighted and len(last.input) > 2 else None,
            parameters=sum(layer.parameters for layer in layers),
        )


def _as_float(value: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(value).astype(np.float32)
