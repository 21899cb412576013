"""The walkthrough of a model: every layer's output for one image, which pixels mattered, and, for a run, one gradient step."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from export.inspection.activations import QUANTISATION, WEIGHTED, Activations, LayerActivation
from export.inspection.folded_norms import why
from export.progress import OnProgress, ignore_progress
from export.walkthrough import feature_maps
from export.walkthrough.feature_maps import SHOWN_MAPS
from export.walkthrough.head_layers import HeadLayer, by_head
from export.walkthrough.layer_steps import layer_step
from export.walkthrough.layer_text import describe_sigmoid
from export.walkthrough.network_sections import learning_section, pixels_section
from export.walkthrough.number_format import percent
from export.walkthrough.subject import Subject, SubjectSession
from export.walkthrough.web_page import Bar, Figure, Page, Step
from service.errors import UserError
from service.model.contract import PROBABILITIES_NAME
from service.model.cpus import cpu_budget

_SHOWN_ANSWERS = 5


def build_page(
    subject: Subject,
    pixels: NDArray[np.generic],
    photo: NDArray[np.uint8],
    image_name: str,
    label: int | None = None,
    rate: float = 0.01,
    on_progress: OnProgress = ignore_progress,
) -> Page:
    """Runs a model on an image and shows all that happens.

    Args:
        subject: the model.
        pixels: the image as the model takes it, [H,W,C].
        photo: the original image, uint8[h,w,3].
        image_name: name of the image.
        label: for a run, the class that the step of learning takes as right; the network's own answer if not given.
        rate: learning rate of that step.
        on_progress: called with each step.

    Raises:
        UserError: the model is no classifier, or the number of labels is not that of its scores.
        InvalidModel, LoadError: ONNX Runtime cannot load or run it.
    """
    on_progress("running the model", 0, 0)
    session = SubjectSession(subject)
    probabilities = session.probabilities(pixels)  # (K,)
    classes = len(probabilities)
    labels = subject.labels or (subject.file_labels if len(subject.file_labels) == classes else ())
    labels = labels or tuple(f"class {index}" for index in range(classes))
    if len(labels) != classes:
        raise UserError(f"{subject.name}: the model gives {classes} scores, but there are {len(labels)} labels")
    top = int(probabilities.argmax())
    on_progress("computing every layer", 0, 0)
    activations = Activations(subject.model, subject.has_contract, subject.feed(pixels[np.newaxis]), cpu_budget())
    layers = by_head(activations, subject.heads)
    steps = [_picture_step(subject, pixels), *_layer_steps(subject, layers, labels, on_progress)]
    sections = [
        pixels_section(
            subject, activations, session, pixels, top, labels, partial(on_progress, "hiding parts of the picture")
        )
    ]  # fmt: skip
    if subject.checkpoint is not None:
        on_progress("taking a step of learning", 0, 0)
        photo_pixels = pixels.astype(np.uint8)  # as they are: a run's input is uint8
        sections.append(learning_section(subject, photo_pixels, top if label is None else label, label is not None, rate))
    return Page(
        title=f"What {subject.name} sees in {image_name}",
        lead=f"The answer is “{labels[top]}”, with a probability of {percent(float(probabilities[top]))}. This page shows how the "
        "network gets there, layer by layer.",
        picture=Figure("00 picture", feature_maps.picture(photo), f"{image_name}, {photo.shape[1]} x {photo.shape[0]} pixels"),
        steps=steps,
        facts={**subject.facts, **_weights(subject, activations)},
        answers=_answers(probabilities, labels),
        sections=sections,
        notes=[*_head_note(subject, activations, layers), *_notes(subject, activations, probabilities)],
    )


def _weights(subject: Subject, activations: Activations) -> dict[str, str]:
    """The number of weights that were trained, of those in the file, and why they differ."""
    shown, trained = sum(layer.parameters for layer in activations.layers), subject.trained_parameters
    if trained is None:
        return {"weights": f"{shown:,}"}
    if subject.checkpoint is None:
        exported, norms = shown, sum(layer.folds_norm for layer in activations.layers)
    else:
        foldable = [layer for layer in activations.layers if _can_be_folded(activations, layer)]
        exported, norms = shown - sum(_folded_away(activations, layer) for layer in foldable), len(foldable)
    reason = why(trained, exported, norms)
    return {"trained weights": f"{trained:,}"} | ({"in an exported file": f"{exported:,}: {reason}"} if reason else {})


def _before(activations: Activations, layer: LayerActivation) -> onnx.NodeProto | None:
    return activations.source(layer.last.input[0])


def _can_be_folded(activations: Activations, layer: LayerActivation) -> bool:
    """Whether the export will fold this layer, of a run, into the one before."""
    before = _before(activations, layer)
    return layer.last.op_type == "BatchNormalization" and before is not None and before.op_type in WEIGHTED


def _folded_away(activations: Activations, layer: LayerActivation) -> int:
    """How many weights that makes fewer: a scale and a shift for each channel, less the bias that the layer before gets."""
    before = _before(activations, layer)
    has_bias = before is not None and len(before.input) > 2
    channels: int = layer.value.shape[1]
    return 2 * channels if has_bias else channels


def _picture_step(subject: Subject, pixels: NDArray[np.generic]) -> Step:
    spec = subject.spec
    colour = "gray" if spec.channels == 1 else "red, green and blue"
    values = "a whole number" if spec.dtype == "uint8" else "a number, whole or not,"
    text = f"Decoded, {spec.fitting}, to {spec.height}x{spec.width} pixels of {colour}, each {values} from 0 to 255."
    figure = Figure("01 input", feature_maps.picture(pixels), "The input of the network.")
    value: NDArray[np.generic] = pixels[np.newaxis]
    return Step("The picture", "", "", text, value, [figure])


def _layer_steps(subject: Subject, layers: Sequence[HeadLayer], labels: tuple[str, ...], on_progress: OnProgress) -> list[Step]:
    steps = []
    operators = set()
    for done, (layer, head) in enumerate(layers, start=1):
        on_progress("drawing the layers", done, len(layers))
        step = layer_step(layer, done + 1, layer.last.op_type not in operators, labels if head is None else head.labels or labels)
        steps.append(step if head is None else replace(step, title=f"{step.title} (head {head.name})"))
        if subject.activation == "sigmoid" and layer.last.op_type == "Softmax" and PROBABILITIES_NAME in layer.last.output:
            steps[-1] = replace(steps[-1], title="Sigmoid", text=describe_sigmoid(layer))
        operators.add(layer.last.op_type)
    return steps


def _head_note(subject: Subject, activations: Activations, layers: Sequence[HeadLayer]) -> list[str]:
    names = list(dict.fromkeys(head.name for _, head in layers if head is not None))
    if not names:
        return []
    shown = subject.scores_name(activations.outputs)
    answer = next(head.name for head in subject.heads if shown in head.outputs)
    return [
        f"The network gives several answers: {', '.join(names)}. The answer above is that of {answer}. Steps that are of one head "
        "alone have its name."
    ]


def _answers(probabilities: NDArray[np.float64], labels: tuple[str, ...]) -> list[Bar]:
    best = np.argsort(-probabilities, kind="stable")[:_SHOWN_ANSWERS]
    found = [Bar(labels[index], float(probabilities[index]), percent(float(probabilities[index]))) for index in best.tolist()]
    return [replace(found[0], strong=True), *found[1:]]


def _rounded_up(value: float) -> str:
    """A bound in print, of one digit: what is rounded down bounds nothing."""
    bound = max(value, 1e-9)
    power = 10.0 ** math.floor(math.log10(bound))
    return f"{math.ceil(bound / power) * power:.0e}"


def _notes(subject: Subject, activations: Activations, probabilities: NDArray[np.float64]) -> list[str]:
    difference = float(np.abs(subject.probabilities(activations.outputs)[0] - probabilities).max())
    notes = [
        "Shapes are (pictures, channels, rows, columns). Every number of a layer was computed by ONNX Runtime on the network's own "
        f"graph; reading all layers changed no probability by more than {_rounded_up(difference)}. Of each layer the first "
        f"{SHOWN_MAPS} maps are shown, on one scale. The pictures are also beside this page as PNG files."
    ]
    if subject.assumed:
        notes.insert(0, f"{subject.assumed[0].upper()}{subject.assumed[1:]}.")
    if any(node.op_type in QUANTISATION for node in subject.model.graph.node):
        notes.append(
            "Between the layers of this network values are rounded to integers of few bits; the page shows each output before it "
            "is rounded. Where a ReLU seems to be missing, the rounding does its work: it cuts off negative values."
        )
    return notes
