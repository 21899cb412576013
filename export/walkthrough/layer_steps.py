"""A layer as a step of the page: its texts, its output as an image or bars, and one value worked out."""

import math

import numpy as np
from numpy.typing import NDArray

from export.inspection.activations import LayerActivation
from export.walkthrough import feature_maps
from export.walkthrough.feature_maps import SHOWN_MAPS, Scale
from export.walkthrough.layer_text import attributes, describe_layer, layer_title
from export.walkthrough.number_format import number
from export.walkthrough.web_page import Bar, Example, Figure, Step

_NAMED_BARS = 25
_EXAMPLE_PRODUCTS = 27
_COLOURS = ("red", "green", "blue")


def layer_step(layer: LayerActivation, number_of_step: int, is_first: bool, labels: tuple[str, ...]) -> Step:
    """A layer as a step of the page.

    Args:
        layer: the layer.
        number_of_step: its place on the page, from 1.
        is_first: whether it is the first of its kind: then its filters are shown, and the text says what it is good for.
        labels: names of the K classes; an output of K values is shown as bars.
    """
    name = f"{number_of_step:02} {layer.name}"
    figures = []
    example = None
    if is_first and layer.weights is not None and layer.weights.ndim == 4:
        figures.append(_filters(layer.weights, name))
        example = _worked_example(layer, layer.weights)
    bars = _class_bars(layer.value, labels)
    if not bars:
        figures.append(_value_figure(layer.value, name))
    return Step(
        layer_title(layer), layer.name, layer.operator, describe_layer(layer, is_first), layer.value, figures, layer.parameters,
        example, bars,
    )  # fmt: skip


def _filters(weights: NDArray[np.float32], name: str) -> Figure:
    count, channels = weights.shape[:2]
    colours = {1: "red adds, blue subtracts, white does nothing", 3: "gray does nothing"}.get(channels, "means over the channels")
    which = f"The first {SHOWN_MAPS} of its {count}" if count > SHOWN_MAPS else f"Its {count}"
    return Figure(f"{name} filters", feature_maps.filters(weights), f"{which} filters: {colours}.")


def _class_bars(value: NDArray[np.float32], labels: tuple[str, ...]) -> list[Bar]:
    """A bar for each class; none if there are not as many values as classes, or too many."""
    if value.size != len(labels) or len(labels) > _NAMED_BARS:
        return []
    values = np.nan_to_num(value.reshape(-1).astype(np.float64))
    largest, top = float(np.abs(values).max()) or 1.0, int(values.argmax())
    return [
        Bar(label, each / largest, number(each), index == top)
        for index, (label, each) in enumerate(zip(labels, values.tolist(), strict=True))
    ]


def _value_figure(value: NDArray[np.float32], name: str) -> Figure:
    """The image of an output [1, ...] that suits its shape: maps, a strip, bars or rows."""
    scale = Scale.of(value)
    item = value[0] if value.ndim > 1 else value
    item = item.reshape(item.shape[0]) if item.ndim == 3 and item.shape[1:] == (1, 1) else item
    if item.ndim == 3:
        count = len(item)
        caption = f"The first {SHOWN_MAPS} of {count} maps." if count > SHOWN_MAPS else f"{count} maps." if count > 1 else ""
        return Figure(name, feature_maps.maps(item, scale), caption, scale)
    if item.ndim == 1 and item.size > feature_maps.SHOWN_BARS:
        shown = min(item.size, feature_maps.SHOWN_VALUES)
        which = "All" if shown == item.size else f"The first {shown:,} of"
        return Figure(name, feature_maps.strip(item, scale), f"{which} {item.size:,} values, line by line.", scale)
    if item.ndim < 2:
        below = "; below the line is negative" if (item < 0).any() else ""
        return Figure(name, feature_maps.bars(item.reshape(-1)), f"A bar for each value{below}.")
    return Figure(name, feature_maps.maps(item.reshape(1, item.shape[0], -1), scale), "A row for each of its rows.", scale)


def _worked_example(layer: LayerActivation, weights: NDArray[np.float32]) -> Example | None:
    """The value of a convolution furthest from 0, from its inputs; None for too large kernels, and for unusual convolutions."""
    inputs = layer.inputs[0] if layer.inputs else None
    if inputs is None or weights[0].size > _EXAMPLE_PRODUCTS or inputs.shape[1] != weights.shape[1]:
        return None
    found = attributes(layer.last)
    stride, pads = found.get("strides", [1, 1]), found.get("pads", [0] * 4)
    is_usual = found.get("auto_pad", b"NOTSET") == b"NOTSET" and max(found.get("dilations", [1])) == 1
    if layer.last.op_type != "Conv" or not is_usual:
        return None
    padded = np.pad(inputs[0], ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    which, row, column = (int(place) for place in np.unravel_index(np.abs(layer.value[0]).argmax(), layer.value[0].shape))
    height, width = weights.shape[2:]
    top, left = row * stride[0], column * stride[1]
    patch = padded[:, top : top + height, left : left + width]
    bias = 0.0 if layer.bias is None else float(layer.bias[which])
    result = float((patch * weights[which]).sum()) + bias
    if not math.isfinite(result) or not np.isclose(result, layer.value[0, which, row, column], rtol=1e-2, atol=1e-2):
        return None
    colours = _COLOURS if len(patch) == 3 else ("",) * len(patch)
    return Example.sum_of_products(
        f"The value furthest from 0: filter {which}, row {row}, column {column}, all counted from 0. The inputs there, times the "
        "filter, added up.",
        [
            (f"{'+ ' if at else ''}{colour}", values, weights[which, at])
            for at, (colour, values) in enumerate(zip(colours, patch, strict=True))
        ],
        bias,
    )
