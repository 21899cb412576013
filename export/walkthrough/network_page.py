"""A model's walkthrough: what every layer makes of one picture, which pixels mattered, and, of a run, one step of learning."""

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from export.progress import OnProgress, ignore_progress
from export.walkthrough import attribution, feature_maps
from export.walkthrough.activations import QUANTISATION, Probe, Stop
from export.walkthrough.attribution import Occlusion
from export.walkthrough.feature_maps import SHOWN_MAPS, Scale
from export.walkthrough.layer_text import attributes, explain, title
from export.walkthrough.subject import Answers, Subject
from export.walkthrough.web_page import Bar, Example, Figure, Page, Section, Step, curve, number, percent, sum_of_products
from service.errors import UserError
from service.model.contract import LOGITS_NAME
from service.model.cpus import cpu_budget

_SHOWN_ANSWERS = 5
_NAMED_BARS = 25
_EXAMPLE_PRODUCTS = 27
_COLOURS = ("red", "green", "blue")
_OVERLAY = "Laid over the picture: red spoke for the answer, blue against it."


def page(
    subject: Subject,
    pixels: NDArray[np.uint8],
    photo: NDArray[np.uint8],
    image_name: str,
    label: int | None = None,
    rate: float = 0.01,
    on_progress: OnProgress = ignore_progress,
) -> Page:
    """Goes through a model with a picture.

    Args:
        subject: the model.
        pixels: the picture as the model takes it, uint8[H,W,C].
        photo: the picture as it was given, uint8[h,w,3].
        image_name: what to call the picture.
        label: the class that a step of learning aims at; the network's own answer if not given. Of a run alone.
        rate: the step's learning rate.
        on_progress: called with each step.

    Raises:
        UserError: it is no classifier, or has other labels than it gives scores.
        InvalidModel, LoadError: ONNX Runtime cannot load or run it.
    """
    on_progress("asking the model", 0, 0)
    answers = Answers(subject)
    logits = next(answers.logits(pixels[np.newaxis]))[0]  # (K,)
    labels = subject.labels or tuple(f"class {index}" for index in range(len(logits)))
    if len(labels) != len(logits):
        raise UserError(f"{subject.name}: it gives {len(logits)} scores, and there are {len(labels)} labels")
    probabilities = _softmax(logits)
    top = int(logits.argmax())
    on_progress("looking into every layer", 0, 0)
    probe = Probe(subject.model, subject.ours, subject.feed(pixels[np.newaxis]), cpu_budget())
    steps = [_taken(subject, pixels)]
    kinds = set()
    for stop in probe.stops:
        on_progress("drawing the layers", len(steps), len(probe.stops) + 1)
        steps.append(_step(stop, len(steps), stop.last.op_type not in kinds, labels))
        kinds.add(stop.last.op_type)
    sections = [_mattered(subject, probe, answers, pixels, top, labels, on_progress)]
    facts = dict(subject.facts)
    if subject.checkpoint is not None:
        on_progress("taking a step of learning", 0, 0)
        sections.append(_learned(subject, pixels, top if label is None else label, label is not None, rate))
    difference = float(np.abs(_softmax(subject.logits(probe.outputs)[0]) - probabilities).max())
    notes = [
        "Shapes are (pictures, channels, rows, columns). Every number of a layer was computed by ONNX Runtime on the network's own "
        f"graph; that all layers were watched changed no probability by more than {max(difference, 1e-9):.0e}. Of each layer the "
        f"first {SHOWN_MAPS} maps are shown, on one scale. The pictures lie beside this page as PNG files."
    ]
    if any(node.op_type in QUANTISATION for node in subject.model.graph.node):
        notes.append(
            "Between the layers of this network values are rounded to integers of few bits; what a layer is shown to give is what "
            "it gave before. Where a ReLU would be and none is shown, the rounding does its work: it cuts off what is below zero."
        )
    facts["weights"] = f"{sum(step.parameters for step in steps):,}"
    return Page(
        title=f"What {subject.name} sees in {image_name}",
        lead=f"The answer is “{labels[top]}”, with a probability of {percent(float(probabilities[top]))}. This is the way to it, "
        "layer by layer.",
        picture=Figure("00 picture", feature_maps.picture(photo), f"{image_name}, {photo.shape[1]} x {photo.shape[0]} pixels"),
        steps=steps,
        facts=facts,
        answers=_answers(probabilities, labels),
        sections=sections,
        notes=notes,
    )


def _taken(subject: Subject, pixels: NDArray[np.uint8]) -> Step:
    spec = subject.spec
    how = {"stretch": "stretched", "crop": "cropped", "pad": "padded"}[spec.fit]
    colour = "gray" if spec.channels == 1 else "red, green and blue"
    value: NDArray[np.generic] = pixels[np.newaxis]
    text = f"Decoded, {how} to {spec.height}x{spec.width} pixels of {colour}, each a whole number from 0 to 255."
    return Step(
        "The picture", "", "", text, value, [Figure("01 input", feature_maps.picture(pixels), "What the network is given.")]
    )


def _step(stop: Stop, before: int, first: bool, labels: tuple[str, ...]) -> Step:
    name = f"{before + 1:02} {stop.name}"
    figures = []
    filters = first and stop.weights is not None and stop.weights.ndim == 4
    if filters and stop.weights is not None:
        count, channels = stop.weights.shape[:2]
        told = {1: "red adds, blue subtracts, white does nothing", 3: "gray does nothing"}.get(channels, "means over the channels")
        which = f"The first {SHOWN_MAPS} of its {count}" if count > SHOWN_MAPS else f"Its {count}"
        figures.append(Figure(f"{name} filters", feature_maps.filters(stop.weights), f"{which} filters: {told}."))
    bars = _bars(stop.value, labels)
    if not bars:
        figures.append(_figure(stop.value, name))
    example = _worked_out(stop) if filters else None
    return Step(title(stop), stop.name, stop.operator, explain(stop, first), stop.value, figures, stop.parameters, example, bars)


def _bars(value: NDArray[np.float32], labels: tuple[str, ...]) -> list[Bar]:
    """A bar for each class, if there is a value for each and they are few; else none."""
    if value.size != len(labels) or len(labels) > _NAMED_BARS:
        return []
    values = np.nan_to_num(value.reshape(-1).astype(np.float64))
    largest, top = float(np.abs(values).max()) or 1.0, int(values.argmax())
    return [
        Bar(label, each / largest, number(each), index == top)
        for index, (label, each) in enumerate(zip(labels, values.tolist(), strict=True))
    ]


def _figure(value: NDArray[np.float32], name: str) -> Figure:
    """The picture that suits a value [1, ...] of this shape."""
    scale = Scale.of(value)
    item = value[0] if value.ndim > 1 else value
    item = item.reshape(item.shape[0]) if item.ndim == 3 and item.shape[1:] == (1, 1) else item
    if item.ndim == 3:
        count = len(item)
        many = f"The first {SHOWN_MAPS} of {count} maps." if count > SHOWN_MAPS else f"{count} maps." if count > 1 else ""
        return Figure(name, feature_maps.maps(item, scale), many, scale)
    if item.ndim == 1 and item.size > feature_maps.SHOWN_BARS:
        shown = min(item.size, feature_maps.SHOWN_VALUES)
        which = "All" if shown == item.size else f"The first {shown:,} of"
        return Figure(name, feature_maps.strip(item, scale), f"{which} {item.size:,} values, line by line.", scale)
    if item.ndim < 2:
        below = "; below the line is negative" if (item < 0).any() else ""
        return Figure(name, feature_maps.bars(item.reshape(-1)), f"A bar for each value{below}.")
    return Figure(name, feature_maps.maps(item.reshape(1, item.shape[0], -1), scale), "A row for each of its rows.", scale)


def _worked_out(stop: Stop) -> Example | None:
    """The strongest value of a small convolution over one or three channels, from its pixels."""
    weights, values = stop.weights, stop.inputs[0] if stop.inputs else None
    if weights is None or values is None or weights[0].size > _EXAMPLE_PRODUCTS or values.shape[1] != weights.shape[1]:
        return None
    found = attributes(stop.last)
    stride, pads = found.get("strides", [1, 1]), found.get("pads", [0] * 4)
    usual = found.get("auto_pad", b"NOTSET") == b"NOTSET" and max(found.get("dilations", [1])) == 1
    if stop.last.op_type != "Conv" or not usual:
        return None
    padded = np.pad(values[0], ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    which, row, column = (int(place) for place in np.unravel_index(stop.value[0].argmax(), stop.value[0].shape))
    height, width = weights.shape[2:]
    top, left = row * stride[0], column * stride[1]
    patch = padded[:, top : top + height, left : left + width]
    bias = 0.0 if stop.bias is None else float(stop.bias[which])
    result = float((patch * weights[which]).sum()) + bias
    if not np.isclose(result, stop.value[0, which, row, column], rtol=1e-2, atol=1e-2):
        return None
    colours = _COLOURS if len(patch) == 3 else ("",) * len(patch)
    return sum_of_products(
        f"The strongest value: filter {which}, row {row}, column {column}, all counted from 0. What lies there, times the filter, "
        "added up.",
        [
            (f"{'+ ' if at else ''}{colour}", values, weights[which, at])
            for at, (colour, values) in enumerate(zip(colours, patch, strict=True))
        ],
        bias,
    )


def _mattered(
    subject: Subject, probe: Probe, answers: Answers, pixels: NDArray[np.uint8], top: int, labels: tuple[str, ...],
    on_progress: OnProgress,
) -> Section:  # fmt: skip
    """The section on which pixels mattered for the answer `top`."""
    scores = LOGITS_NAME if subject.ours else next(iter(probe.outputs))
    found = attribution.class_activation(probe, scores, top)
    heading = f"Which pixels mattered for “{labels[top]}”"
    if found is not None:
        scale = Scale.of(found)
        return Section(
            "pixels", heading,
            [
                "The network ends in global average pooling and a linear layer, so the score of a class is the mean of a map: the "
                "last feature maps, each times its weight for the class. This class activation map says how much every place gave "
                f"to the answer. It is as coarse as those maps: {found.shape[0]}x{found.shape[1]}.",
            ],
            [
                Figure("pixels map", feature_maps.maps(found[np.newaxis], scale), "The class activation map.", scale),
                Figure("pixels overlay", feature_maps.overlay(pixels, found - max(float(found.min()), 0.0)), _OVERLAY),
            ],
        )  # fmt: skip
    hidden = attribution.occlusion(answers.logits, pixels, top, partial(on_progress, "hiding parts of the picture"))
    return Section("pixels", heading, [_told(hidden)], _hidden_figures(hidden, pixels, top, labels))


def _told(hidden: Occlusion) -> str:
    return (
        f"A patch of {hidden.patch}x{hidden.patch} pixels in the picture's mean colour was put to {hidden.tried} places, and the "
        "network asked each time. Where the answer grew weaker, what the patch hid had spoken for it; where it grew stronger, "
        "against it."
    )


def _hidden_figures(hidden: Occlusion, pixels: NDArray[np.uint8], top: int, labels: tuple[str, ...]) -> list[Figure]:
    scale = Scale.of(hidden.heat)
    probabilities = _softmax(hidden.worst_logits)
    now = int(probabilities.argmax())
    left = percent(float(probabilities[top]))
    said = f"“{labels[top]}” has {left} left" + ("" if now == top else f", and the answer is “{labels[now]}”")
    return [
        Figure(
            "pixels map", feature_maps.maps(hidden.heat[np.newaxis], scale),
            "How much the log-odds of the answer fell, on average, when the pixel was hidden.", scale,
        ),
        Figure("pixels overlay", feature_maps.overlay(pixels, hidden.heat), _OVERLAY),
        Figure("pixels hidden", feature_maps.picture(hidden.worst), f"The patch where it hurt most: {said}."),
    ]  # fmt: skip


def _learned(subject: Subject, pixels: NDArray[np.uint8], label: int, given: bool, rate: float) -> Section:
    """The section on a step of learning, of a run."""
    from export.walkthrough import backpropagation

    if subject.checkpoint is None:
        raise ValueError("only a run can learn")
    step = backpropagation.learn(subject.checkpoint, pixels, label, rate)
    name = subject.labels[label]
    aim = f"“{name}” is the right answer" if given else f"its own answer, “{name}”, is right (--label says otherwise)"
    before, after = float(step.before[label]), float(step.after[label])
    largest = max(layer.gradient for layer in step.layers) or 1.0
    worse = not (step.losses <= step.loss_before).all()
    longest = " Too long ones make it worse." if worse else " What they do to all other pictures it does not show."
    return Section(
        "learning", "One step of learning",
        [
            f"Suppose that {aim}. The loss is the negative logarithm of its probability: -log {before:.4g} = "
            f"{number(step.loss_before)}. Backpropagation gives the loss's gradient for every weight, from the last layer back to "
            f"the first. A step of gradient descent moves each weight against its gradient, times a learning rate of {rate:g}.",
            f"Loss: {number(step.loss_before)} before, {number(step.loss_after)} after; the probability of “{name}” goes from "
            f"{percent(before)} to {percent(after)}. The gradient's norm is {number(step.norm)}: were the loss a straight line, it "
            f"would now be {number(step.promised)}. It is none: the curve shows where steps of other lengths end.{longest}",
        ],
        curve=curve(step.rates, step.losses, rate, step.loss_before, step.loss_after),
        bars_title="The gradient's norm, layer by layer",
        bars=[Bar(layer.name, layer.gradient / largest, number(layer.gradient)) for layer in step.layers],
    )  # fmt: skip


def _answers(probabilities: NDArray[np.float64], labels: tuple[str, ...]) -> list[Bar]:
    best = np.argsort(-probabilities, kind="stable")[:_SHOWN_ANSWERS]
    found = [Bar(labels[index], float(probabilities[index]), percent(float(probabilities[index]))) for index in best.tolist()]
    return [replace(found[0], strong=True), *found[1:]]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(values / values.sum())
