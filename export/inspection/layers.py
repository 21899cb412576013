"""The layers of an ONNX graph, each with its output shape, parameters, multiply-accumulates and precision.

Shapes come from ONNX's shape inference, run twice: on the graph as it is, for the shapes shown, and with the batch set to one
image, for the counts. A node that depends on constants alone is no layer; it is part of the layer that uses it: int8 weights
behind a DequantizeLinear, or transposed weights, count as weights of their matrix product. A QuantizeLinear or DequantizeLinear of
activations is no layer either: it sets the precision of the layer between them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from export.inspection.layer_names import has_folded_norm, layer_name

Shape = tuple[int | str, ...]

# The normalisation constants of an exported network (`convert.onnx_conversion`): measured, not learned, so no parameters.
_NORMALISATION = ("mean", "std")
IMPORT_PREFIX = "convoy_"
"""Of all names around an imported network (`importing.wrapping`): its normalisation, and constants of its scores."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# Indices of the inputs of a quantised operator that are weights; the others are scales, zero points and activations.
_QUANTISED_WEIGHTS = {
    "QLinearConv": (3, 8), "ConvInteger": (1,), "QLinearMatMul": (0, 3), "MatMulInteger": (0, 1), "QGemm": (3, 6),
    "DynamicQuantizeMatMul": (1, 4), "MatMulIntegerToFloat": (1, 6), "QuantizeLinear": (0,), "DequantizeLinear": (0,),
}  # fmt: skip
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
# Indices of the two factors among the inputs.
_CONVOLUTIONS = {"Conv": (0, 1), "ConvTranspose": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_PRODUCTS = {
    "Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), "QGemm": (0, 3),
    "DynamicQuantizeMatMul": (0, 1), "MatMulIntegerToFloat": (0, 1),
}  # fmt: skip
_RECURRENT = ("LSTM", "GRU", "RNN")
_INVENTED = "unk__"
"""So shape inference calls a free dimension that has no name in the file."""


@dataclass(frozen=True)
class Layer:
    """One node of the graph.

    Attributes:
        name: as `layer_names.layer_name` gives it; within a branch or loop body, after the name of that node.
        operator: ONNX operator.
        precision: what it computes in: `fp32`, `fp16`, `int8` and so on; None if unknown.
        shape: of the first output, None if unknown. A free dimension is its name in the graph, `?` if it has none.
        parameters: elements of its weights that no earlier layer has.
        statistics: how many of them are running means and variances.
        macs: multiply-accumulates for one image, None if they depend on an unknown shape.
        output: name of the first output in the graph.
        folds_norm: whether a batch norm is folded into its weights.
    """

    name: str
    operator: str
    precision: str | None
    shape: Shape | None
    parameters: int
    statistics: int
    macs: int | None
    output: str
    folds_norm: bool = False


def layer_table(model: onnx.ModelProto, has_contract: bool) -> list[Layer]:
    """The layers of a model without local functions (see `onnx.inliner`).

    Args:
        model: the model.
        has_contract: whether Convoy wrote it; then the constants of its normalisation are no parameters.
    """
    model = _without_negative_sides(model)
    single, batch = _with_one_image(model)
    shown, counted = onnx.shape_inference.infer_shapes(model), onnx.shape_inference.infer_shapes(single, data_prop=True)
    return list(_LayerWalk(batch, has_contract).layers(shown.graph, counted.graph))


def subgraphs(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    """The graphs inside a node, with their names: the branches of an If, the body of a Loop."""
    found: list[tuple[str, onnx.GraphProto]] = []
    for attribute in node.attribute:
        bodies = [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]
        for index, body in enumerate(bodies):
            name = f"{attribute.name}{f'.{index}' if attribute.graphs else ''}".removesuffix("_branch")
            found.append((name, body))
    return found


def _without_negative_sides(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with free dimensions that are written as -1, as Paddle and Keras do, written as ONNX has them: without a value."""
    if not any(dimension.dim_value < 0 for dimension in _sides(model)):
        return model
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for dimension in _sides(opened):
        if dimension.dim_value < 0:
            dimension.ClearField("dim_value")
    return opened


def _sides(model: onnx.ModelProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    graph = model.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        yield from value.type.tensor_type.shape.dim


def _with_one_image(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model with every free first dimension of its inputs set to 1, and the number of images in its batch.

    The batch is 1 unless the file fixes another size. Inner and output shapes that the file states are dropped: they still have
    the free dimension.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    weights = {tensor.name for tensor in bound.graph.initializer}
    batch = 1
    inputs = [value.type.tensor_type.shape for value in bound.graph.input if value.name not in weights]
    for index, shape in enumerate(inputs):
        if not shape.dim:
            continue
        if shape.dim[0].dim_value:
            batch = shape.dim[0].dim_value if index == 0 else batch
        else:
            shape.dim[0].dim_value = 1
    del bound.graph.value_info[:]
    for output in bound.graph.output:
        output.type.tensor_type.ClearField("shape")
    return bound, batch


class _LayerWalk:
    """Walks a graph and its subgraphs, and counts every weight once."""

    def __init__(self, batch: int, has_contract: bool) -> None:
        self._batch = batch
        self._has_contract = has_contract
        self._shapes: dict[str, Shape | None] = {}
        self._single_shapes: dict[str, Shape | None] = {}  # for a batch of one image
        self._tensors: dict[str, TensorProto] = {}
        self._roots: dict[str, tuple[str, ...]] = {}  # of each value that depends on constants alone: its weights
        self._counted: set[str] = set()
        self._types: dict[str, int] = {}
        self._dequantised: set[str] = set()  # outputs of DequantizeLinear
        self._quantised: set[str] = set()  # values that only QuantizeLinear reads

    def layers(self, graph: onnx.GraphProto, single: onnx.GraphProto, within: str = "") -> Iterator[Layer]:
        """The layers of a graph.

        Args:
            graph: with the shapes that are shown.
            single: the same graph for a batch of one image.
            within: prefix of the names.
        """
        self._add_values(graph, single)
        for node, same in zip(graph.node, single.node, strict=True):
            if node.op_type == "Constant":
                self._add_constant(node.output[0], next((a.t for a in node.attribute if a.name == "value"), TensorProto()))
                continue
            weights = tuple(root for name in self._weights(node) for root in self._roots.get(name, ()))
            if self._is_constant(node):
                self._roots.update(dict.fromkeys(node.output, weights))
                continue
            if node.op_type in _ROUNDING:
                continue
            self._complete(node)
            layer = self._layer(node, weights, within)
            yield layer
            for (name, body), (_, other) in zip(subgraphs(node), subgraphs(same), strict=True):
                yield from self.layers(body, other, f"{layer.name}.{name}.")

    def _add_values(self, graph: onnx.GraphProto, single: onnx.GraphProto) -> None:
        """Notes shapes, types and constants of a graph, and which of its values are quantised."""
        for source, shapes in ((graph, self._shapes), (single, self._single_shapes)):
            shapes.update({value.name: _shape(value) for value in (*source.input, *source.value_info, *source.output)})
        self._types.update(
            {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
        )
        self._dequantised.update(name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output)
        self._quantised.update(name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1])
        self._quantised.difference_update(name for node in graph.node if node.op_type != "QuantizeLinear" for name in node.input)
        for tensor in graph.initializer:
            self._add_constant(tensor.name, tensor)

    def _add_constant(self, name: str, tensor: TensorProto) -> None:
        self._tensors[name] = tensor
        self._shapes[name] = self._single_shapes[name] = tuple(tensor.dims)
        self._roots[name] = (name,)

    def _complete(self, node: onnx.NodeProto) -> None:
        """Notes the output's shape of a product of two matrices, where shape inference has none: it knows ONNX's own operators."""
        places = _PRODUCTS.get(node.op_type)
        for shapes in (self._shapes, self._single_shapes):
            if places is None or shapes.get(node.output[0]) is not None:
                continue
            left, right = (shapes.get(node.input[place]) for place in places)
            if left is not None and right is not None and len(left) == len(right) == 2:
                rows, columns = left[_transposes(node, "transA")], right[1 - _transposes(node, "transB")]
                shapes[node.output[0]] = (rows, columns)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        inputs = [name for name in node.input if name]
        return bool(inputs) and all(name in self._roots for name in inputs) and not subgraphs(node)

    def _layer(self, node: onnx.NodeProto, weights: tuple[str, ...], within: str) -> Layer:
        own = [root for root in dict.fromkeys(weights) if root not in self._counted]
        self._counted.update(own)
        statistics = [name for name in node.input[3:5] if name in own] if node.op_type == "BatchNormalization" else []
        output = next(filter(None, node.output), "")
        return Layer(
            name=within + layer_name(node, weights),
            operator=node.op_type,
            precision=self._precision(node),
            shape=self._shapes.get(output),
            parameters=sum(math.prod(self._tensors[root].dims) for root in own),
            statistics=sum(math.prod(self._tensors[root].dims) for root in statistics),
            macs=self._macs(node),
            output=output,
            folds_norm=bool(weights) and has_folded_norm(node),
        )

    def _weights(self, node: onnx.NodeProto) -> Iterator[str]:
        """The inputs that are weights: no scalars, no integers (shapes, axes), no scales or zero points of quantised operators."""
        places = _QUANTISED_WEIGHTS.get(node.op_type)
        for place, name in enumerate(node.input):
            tensor = self._tensors.get(name)
            if tensor is None:
                if places is None or place in places:
                    yield name  # it may be computed from weights
            elif not tensor.dims or (self._has_contract and (name in _NORMALISATION or name.startswith(IMPORT_PREFIX))):
                continue
            elif place in places if places is not None else tensor.data_type in _FLOATS and not node.op_type.startswith("QLinear"):
                yield name

    def _precision(self, node: onnx.NodeProto) -> str | None:
        """int8 for a layer between DequantizeLinear and QuantizeLinear, and for a product of two dequantised factors."""
        operator = node.op_type
        if operator in _QUANTISED_WEIGHTS or operator.startswith("QLinear"):
            return "int8"
        output = next(filter(None, node.output), "")
        factors = [node.input[place] for place in _CONVOLUTIONS.get(operator) or _PRODUCTS.get(operator) or ()]
        activations = [name for name in node.input if name and name not in self._roots]
        between = output in self._quantised and bool(activations) and self._dequantised.issuperset(activations)
        if self._dequantised.issuperset(factors) if factors else between:
            return "int8"
        kind = TensorProto.DataType.Name(self._types.get(output, TensorProto.UNDEFINED)).lower()
        return None if kind == "undefined" else _PRECISIONS.get(kind, kind)

    def _macs(self, node: onnx.NodeProto) -> int | None:
        """Multiply-accumulates of convolutions, matrix products and recurrent layers; 0 for others, None if unknown."""
        operator = node.op_type
        if operator in _RECURRENT:
            values, *weights = (self._elements(name) for name in node.input[:3])  # (steps, items, features), W, R
            shape = self._single_shapes.get(node.input[0])
            if values is None or None in weights or not shape or not isinstance(shape[-1], int):
                return None
            return values // shape[-1] * sum(elements or 0 for elements in weights) // self._batch
        places = _CONVOLUTIONS.get(operator) or _PRODUCTS.get(operator)
        if places is None:
            return 0
        left, right = (self._single_shapes.get(node.input[place]) for place in places)
        # A transposed convolution takes each input to a kernel of outputs; all others make each output from `length` inputs.
        elements = self._elements(node.input[0] if operator == "ConvTranspose" else node.output[0])
        if left is None or right is None or elements is None:
            return None
        # Of a convolution's weights (filters, channels / groups, height, width), or what a product sums over.
        length = right[1:] if operator in _CONVOLUTIONS else (left[-2 if _transposes(node, "transA") else -1],)
        if not all(isinstance(side, int) for side in length):
            return None
        return elements * math.prod(side for side in length if isinstance(side, int)) // self._batch

    def _elements(self, name: str) -> int | None:
        shape = self._single_shapes.get(name)
        if shape is None or not all(isinstance(side, int) for side in shape):
            return None
        return math.prod(side for side in shape if isinstance(side, int))


def _transposes(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dimension.dim_value if dimension.HasField("dim_value") else _name(dimension.dim_param)
        for dimension in value.type.tensor_type.shape.dim
    )


def _name(parameter: str) -> str:
    return "?" if not parameter or parameter.startswith(_INVENTED) else parameter
