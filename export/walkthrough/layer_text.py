"""A layer in words: its common name, and what it does in a sentence or two with its own numbers, for beginners."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.inspection.activations import LayerActivation
from export.walkthrough import equations
from service.model.contract import LOGITS_NAME

_DESCRIPTIONS = {
    "Relu": "Negative values become 0, positive ones stay.",
    "LeakyRelu": "Negative values are scaled down to a fraction, positive ones stay.",
    "PRelu": "Negative values are scaled by a learned factor, positive ones stay.",
    "Elu": "Negative values bend towards a floor, positive ones stay.",
    "Gelu": "Large values stay, negative ones fade to 0, smoothly in between.",
    "HardSwish": "Large values stay, negative ones fade to 0.",
    "HardSigmoid": "Every value is mapped between 0 and 1, along a straight line.",
    "Sigmoid": "Every value is mapped between 0 and 1.",
    "Tanh": "Every value is mapped between -1 and 1.",
    "Clip": "Values outside a range are replaced by its ends.",
    "BatchNormalization": (
        "Of every map its running mean is subtracted, and the result divided by its running deviation, both measured in training; "
        "then it is scaled and shifted by two learned values. So all maps have a similar range."
    ),
    "InstanceNormalization": "Every map is brought to mean 0 and deviation 1, then shifted and scaled by learned values.",
    "LayerNormalization": "The values are brought to mean 0 and deviation 1, then shifted and scaled by learned values.",
    "LRN": "Every value is divided by the strength of its neighbours in the other maps.",
    "Softmax": "The exponential of every score, divided by the sum of all: probabilities that add up to 1.",
    "LogSoftmax": "The logarithms of the probabilities.",
    "Concat": "Maps from several layers are put side by side.",
    "Transpose": "The same values in another order.",
    "Pad": "A border of constants is added; the values do not change.",
}
_TITLES = {
    "Conv": "Convolution", "QLinearConv": "Convolution", "ConvInteger": "Convolution", "ConvTranspose": "Transposed convolution",
    "Relu": "ReLU", "LeakyRelu": "Leaky ReLU", "MaxPool": "Max pooling", "AveragePool": "Average pooling",
    "GlobalAveragePool": "Global average pooling", "ReduceMean": "Global average pooling", "GlobalMaxPool": "Global max pooling",
    "ReduceMax": "Global max pooling", "Flatten": "Flatten", "Reshape": "Flatten", "Gemm": "Dense layer", "MatMul": "Dense layer",
    "BatchNormalization": "Batch norm", "LRN": "Local response norm", "Add": "Addition", "Concat": "Concatenation",
    "Pad": "Padding", "Mul": "Multiplication", "Div": "Division", "Sub": "Subtraction",
}  # fmt: skip
_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger", "ConvTranspose")
_GLOBAL_POOLING = {
    "GlobalAveragePool": "mean",
    "ReduceMean": "mean",
    "GlobalMaxPool": "largest value",
    "ReduceMax": "largest value",
}
# What is done with a constant, and the preposition before what it is done to or with.
_ARITHMETIC = {
    "Add": ("added", "to"), "Sub": ("subtracted", "from"), "Mul": ("multiplied", "by"), "Div": ("divided", "by"),
}  # fmt: skip


def layer_title(layer: LayerActivation) -> str:
    """The common name of the layer."""
    operator = layer.last.op_type
    if _is_temperature(layer):
        return "Temperature"
    if _is_normalisation(layer):
        return "Normalisation"
    if _pairs_with_zero(layer):
        return "A score for each class"
    if operator in ("Reshape", "Flatten") and layer.value.ndim != 2:
        return "Another shape"
    if operator in ("ReduceMean", "ReduceMax") and layer.inputs and layer.inputs[0].ndim != 4:
        return operator
    if operator in _ARITHMETIC and len(layer.inputs) == 1:
        return "Scaling" if operator in ("Mul", "Div") else "Shift"
    return _TITLES.get(operator, operator)


def describe_layer(layer: LayerActivation, is_first: bool) -> str:
    """What the layer does; for an operator without a description, its name and where ONNX describes it.

    With `is_first`, the first layer of its kind, the text also says what it is good for.
    """
    operator = layer.last.op_type
    if _is_temperature(layer):
        return (
            "Every score is divided by the temperature that was fitted after training, so that the confidence of an answer matches "
            "how often such answers are right."
        )
    if operator in _CONVOLUTIONS and layer.weights is not None and layer.weights.ndim == 4:
        return _convolution(layer, layer.weights, is_first)
    if operator in ("Gemm", "MatMul") and layer.weights is not None:
        return _product(layer, layer.weights)
    if operator in ("MaxPool", "AveragePool") and "kernel_shape" in attributes(layer.last):
        return _pooling(layer, is_first)
    if operator in _GLOBAL_POOLING:
        return _global_pooling(layer)
    if operator in ("Flatten", "Reshape"):
        return f"The same {layer.value.size:,} values in another shape. Nothing is computed."
    if _pairs_with_zero(layer):
        return (
            "The network gives one score, z. It is the score of the second class; the first class gets 0. So the file gives a "
            "score for each class, as for more than two."
        )
    if operator in _ARITHMETIC:
        return _arithmetic(layer)
    if operator == "Relu" and layer.inputs:
        negative = float((layer.inputs[0] < 0).mean())
        why = " Without this step all layers together would be one linear function." if is_first else ""
        return f"{_DESCRIPTIONS['Relu']} Here {negative:.0%} were negative.{why}"
    return _DESCRIPTIONS.get(operator, f"The ONNX operator {operator} (onnx.ai/onnx/operators).")


def describe_sigmoid(layer: LayerActivation) -> str:
    """The last layer of a network of one score z, which computes the softmax of 0 and z."""
    [first, second] = layer.inputs[0].reshape(-1).astype(np.float64).tolist()
    return (
        f"The sigmoid of the score z is the probability of the second class: {equations.sigmoid(second - first)}. The first class "
        "has the rest to 1. The file computes it as the softmax of 0 and z, which is the same."
    )


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_temperature(layer: LayerActivation) -> bool:
    return layer.last.op_type == "Div" and LOGITS_NAME in layer.last.output


def _is_normalisation(layer: LayerActivation) -> bool:
    return {"Sub", "Div"} <= {node.op_type for node in layer.nodes}


def _pairs_with_zero(layer: LayerActivation) -> bool:
    """Whether the layer makes two scores, [0, z], from the one score z of a sigmoid head."""
    if layer.last.op_type != "Pad" or not layer.inputs:
        return False
    return layer.value.shape[1:] == (2,) and layer.inputs[0].shape[1:] == (1,)


def _convolution(layer: LayerActivation, weights: NDArray[np.float32], is_first: bool) -> str:
    found = attributes(layer.last)
    filters, channels, height, width = weights.shape
    steps = found.get("strides", [1, 1])
    stride = f", in steps of {steps[0]}" if max(steps) > 1 else ""
    products = f"{channels * height * width:,} products{_and_bias(layer)}"
    which = f"{filters} filter{'s' if filters > 1 else ''} of {height}x{width} slide{'' if filters > 1 else 's'}"
    if (groups := found.get("group", 1)) > 1:
        return f"{which} over the maps before{stride}, in {groups} separate groups: each output is a sum of {products}."
    maps = "one map" if channels == 1 else f"{channels} maps"
    why = ", large where the picture looks like the filter" if is_first else ""
    return f"{which} over the {maps} before{stride}: each output is a sum of {products}{why}."


def _product(layer: LayerActivation, weights: NDArray[np.float32]) -> str:
    outputs = layer.value.shape[-1]
    inputs = weights.size // outputs
    each = f"Each of the {outputs:,} outputs" if outputs > 1 else "The one output"
    return f"{each} weighs all {inputs:,} inputs: {inputs:,} products{_and_bias(layer)}."


def _and_bias(layer: LayerActivation) -> str:
    if layer.bias is None:
        return ""
    return " and a bias, the export having folded the batch norm that follows into both" if layer.folds_norm else " and a bias"


def _pooling(layer: LayerActivation, is_first: bool) -> str:
    sides = "x".join(map(str, attributes(layer.last)["kernel_shape"]))
    kept = "The largest value" if layer.last.op_type == "MaxPool" else "The mean"
    left = f": {layer.value.size:,} of {layer.inputs[0].size:,} values are left" if layer.inputs else ""
    why = " If something moves by a pixel, the output hardly changes." if is_first else ""
    return f"{kept} of every {sides} window stays{left}.{why}"


def _global_pooling(layer: LayerActivation) -> str:
    what = _GLOBAL_POOLING[layer.last.op_type]
    if not layer.inputs or layer.inputs[0].ndim != 4:
        return f"The {what} along some of the axes."
    return f"Each map is reduced to its {what}: how strong a feature is still counts, its place does not."


def _arithmetic(layer: LayerActivation) -> str:
    if len(layer.inputs) > 1:
        if layer.last.op_type == "Add":
            return "A skip connection: the input of the last layers is added to their output."
        return f"The outputs of two layers are {_ARITHMETIC[layer.last.op_type][0]}, value by value."
    if _is_normalisation(layer):
        return (
            "The mean of the training pictures is subtracted, and the result divided by their standard deviation: over all of them "
            "the values have mean 0 and deviation 1."
        )
    words = " and ".join(_ARITHMETIC[node.op_type][0] for node in layer.nodes if node.op_type in _ARITHMETIC)
    preposition = _ARITHMETIC[layer.last.op_type][1]
    if preposition == "by":
        return f"Every value is {words} by a constant."
    return f"A constant is {words} {preposition} every value."
