"""What a layer does, in a sentence or two with its own numbers, for readers who meet it for the first time."""

from typing import Any

import onnx

from export.walkthrough.activations import Stop
from service.model.contract import LOGITS_NAME

_FIXED = {
    "Relu": "Negative values become 0, positive ones stay.",
    "LeakyRelu": "Negative values shrink to a fraction, positive ones stay.",
    "PRelu": "Negative values are scaled by a learned factor, positive ones stay.",
    "Elu": "Negative values bend towards a floor, positive ones stay.",
    "Gelu": "Large values stay, negative ones fade to 0, smoothly in between.",
    "HardSwish": "Large values stay, negative ones fade to 0.",
    "HardSigmoid": "Every value is pressed between 0 and 1, along a straight line.",
    "Sigmoid": "Every value is pressed between 0 and 1.",
    "Tanh": "Every value is pressed between -1 and 1.",
    "Clip": "Values outside a range become its ends.",
    "BatchNormalization": (
        "Every map is shifted and scaled by what training measured and learned for it, so that no map drowns the others."
    ),
    "InstanceNormalization": "Every map is brought to mean 0 and deviation 1, then shifted and scaled by what was learned.",
    "LayerNormalization": "The values are brought to mean 0 and deviation 1, then shifted and scaled by what was learned.",
    "LRN": "Every value is divided by how strong its neighbours in the other maps are.",
    "Softmax": "The exponential of every score, divided by the sum of all: probabilities that add up to 1.",
    "LogSoftmax": "The logarithms of the probabilities.",
    "Concat": "Maps from several layers are put side by side.",
    "Transpose": "The same values in another order.",
    "Pad": "A border of constants is added: no value changes.",
}
_TITLES = {
    "Conv": "Convolution", "QLinearConv": "Convolution", "ConvInteger": "Convolution", "ConvTranspose": "Transposed convolution",
    "Relu": "ReLU", "LeakyRelu": "Leaky ReLU", "MaxPool": "Max pooling", "AveragePool": "Average pooling",
    "GlobalAveragePool": "Global average pooling", "ReduceMean": "Global average pooling", "GlobalMaxPool": "Global max pooling",
    "ReduceMax": "Global max pooling", "Flatten": "Flatten", "Reshape": "Flatten", "Gemm": "Dense layer", "MatMul": "Dense layer",
    "BatchNormalization": "Batch norm", "LRN": "Local response norm", "Add": "Addition", "Concat": "Concatenation",
    "Pad": "Padding", "Mul": "Multiplication", "Div": "Division", "Sub": "Subtraction",
}  # fmt: skip
_ARITHMETIC = {"Add": ("Added", "+"), "Sub": ("Subtracted", "-"), "Mul": ("Multiplied", "x"), "Div": ("Divided", "/")}


def title(stop: Stop) -> str:
    """What the layer is commonly called."""
    operators = {node.op_type for node in stop.nodes}
    if stop.last.op_type == "Div" and LOGITS_NAME in stop.last.output:
        return "Temperature"
    if {"Sub", "Div"} <= operators:
        return "Normalisation"
    if _against_zero(stop):
        return "A score for each class"
    if stop.last.op_type in ("Reshape", "Flatten") and stop.value.ndim != 2:
        return "Another shape"
    if stop.last.op_type in ("ReduceMean", "ReduceMax") and stop.inputs and stop.inputs[0].ndim != 4:
        return stop.last.op_type
    if stop.last.op_type in _ARITHMETIC and len(stop.inputs) == 1:
        return "Scaling" if stop.last.op_type in ("Mul", "Div") else "Shift"
    return _TITLES.get(stop.last.op_type, stop.last.op_type)


def explain(stop: Stop, first: bool) -> str:
    """What the layer does, in words; for an operator that has none here, its name and where ONNX describes it.

    `first` says that no layer before was of this kind: then it is also said what that is good for.
    """
    node, operator = stop.last, stop.last.op_type
    if operator == "Div" and LOGITS_NAME in node.output:
        return (
            "Every score is divided by the temperature that was fitted after training, so that the network is as sure of an answer "
            "as it is right."
        )
    if operator in ("Conv", "QLinearConv", "ConvInteger", "ConvTranspose") and stop.weights is not None and stop.weights.ndim == 4:
        return _convolution(stop, first)
    if operator in ("Gemm", "MatMul") and stop.weights is not None:
        return _product(stop)
    if operator in ("MaxPool", "AveragePool") and "kernel_shape" in (found := attributes(node)):
        sides = "x".join(map(str, found["kernel_shape"]))
        kept = "The largest value" if operator == "MaxPool" else "The mean"
        before, after = (stop.inputs[0].size if stop.inputs else 0), stop.value.size
        share = f": {after:,} values are left of {before:,}" if before else ""
        why = " A thing that moves by a pixel hardly changes what comes out." if first else ""
        return f"{kept} of every {sides} window stays{share}.{why}"
    if operator in ("GlobalAveragePool", "ReduceMean", "GlobalMaxPool", "ReduceMax"):
        what = "mean" if operator in ("GlobalAveragePool", "ReduceMean") else "largest value"
        if not stop.inputs or stop.inputs[0].ndim != 4:
            return f"The {what} along some of the axes."
        return f"Of every map only its {what} stays: how much there is of a thing counts, and no longer where it is."
    if operator in ("Flatten", "Reshape"):
        return f"The same {stop.value.size:,} values, laid out in another shape. Nothing is computed."
    if _against_zero(stop):
        return (
            "The network gives one score, z. It becomes the second class's, and the first gets 0: the softmax of the two gives the "
            "second class 1 / (1 + exp(-z)), the sigmoid of z."
        )
    if operator in _ARITHMETIC:
        return _arithmetic(stop)
    if operator == "Relu" and stop.inputs:
        negative = float((stop.inputs[0] < 0).mean())
        why = " Without this step all layers together would be one linear map." if first else ""
        return f"{_FIXED['Relu']} Here {negative:.0%} were negative.{why}"
    return _FIXED.get(operator, f"The ONNX operator {operator} (onnx.ai/onnx/operators).")


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _against_zero(stop: Stop) -> bool:
    """Whether the step makes two scores of a sigmoid's one."""
    return stop.last.op_type == "Pad" and stop.value.shape[1:] == (2,) and bool(stop.inputs) and stop.inputs[0].shape[1:] == (1,)


def _convolution(stop: Stop, first: bool) -> str:
    if stop.weights is None:
        raise ValueError("a convolution without weights")
    found = attributes(stop.last)
    filters, channels, height, width = stop.weights.shape
    steps = found.get("strides", [1, 1])
    stride = f", in steps of {steps[0]}" if max(steps) > 1 else ""
    bias = " and a bias" if stop.bias is not None else ""
    plural = "s slide" if filters > 1 else " slides"
    if found.get("group", 1) > 1:
        return (
            f"{filters} filter{plural} over the maps{stride}, {found['group']} groups of them apart from each other: each value is "
            f"a sum of {channels * height * width:,} products{bias}."
        )
    return (
        f"{filters} filter{plural} of {height}x{width} over the {_maps(channels)} before{stride}: each value that comes out is a "
        f"sum of {channels * height * width:,} products{bias}{', large where the picture looks like the filter' if first else ''}."
    )


def _product(stop: Stop) -> str:
    if stop.weights is None:
        raise ValueError("a product without weights")
    outputs = stop.value.shape[-1]
    inputs = stop.weights.size // outputs
    bias = " and a bias" if stop.bias is not None else ""
    each = f"Each of the {outputs:,} values" if outputs > 1 else "The one value"
    return f"{each} that come{'' if outputs > 1 else 's'} out weighs all {inputs:,} that come in: {inputs:,} products{bias}."


def _arithmetic(stop: Stop) -> str:
    operators = [node.op_type for node in stop.nodes]
    if len(stop.inputs) > 1:
        if stop.last.op_type == "Add":
            return "What took the short cut round the last layers is added to what came through them."
        return f"{_ARITHMETIC[stop.last.op_type][0]} value by value: two layers meet."
    if {"Sub", "Div"} <= set(operators):
        return (
            "The mean of the training pictures is subtracted, and the rest divided by their standard deviation, so that over all "
            "of them the values lie around 0, with a deviation of 1."
        )
    words = " and ".join(_ARITHMETIC[operator][0].lower() for operator in operators if operator in _ARITHMETIC)
    with_what = {"added": "to", "subtracted": "from", "multiplied": "with", "divided": "by"}
    preposition = with_what[_ARITHMETIC[operators[-1]][0].lower()]
    if preposition in ("with", "by"):
        return f"Every value is {words} {preposition} a constant."
    return f"A constant is {words} {preposition} every value."


def _maps(count: int) -> str:
    return "one map" if count == 1 else f"{count} maps"
