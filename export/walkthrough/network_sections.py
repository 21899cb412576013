"""The sections after the layers: which pixels mattered for the answer, and, for a run, one gradient step."""

import numpy as np
from numpy.typing import NDArray

from export.inspection.activations import Activations
from export.progress import OnCount
from export.walkthrough import attribution, equations, feature_maps
from export.walkthrough.attribution import Occlusion
from export.walkthrough.feature_maps import Scale
from export.walkthrough.number_format import number, percent
from export.walkthrough.subject import Subject, SubjectSession
from export.walkthrough.web_page import Bar, Curve, Figure, Section
from service.model.contract import PROBABILITIES_NAME
from service.model.overlay import overlay

_OVERLAY = "Laid over the picture: red raised the score of the answer, blue lowered it."


def pixels_section(
    subject: Subject, activations: Activations, session: SubjectSession, pixels: NDArray[np.generic], top: int,
    labels: tuple[str, ...], on_count: OnCount,
) -> Section:  # fmt: skip
    """Which pixels mattered for class `top`: its class activation map if the network has one, else an occlusion map."""
    heat = attribution.class_activation(activations, subject.scores_name(activations.outputs), top)
    if heat is None and subject.has_contract:  # where the logits are computed from the probabilities
        heat = attribution.class_activation(activations, PROBABILITIES_NAME, top)
    heading = f"Which pixels mattered for “{labels[top]}”"
    if heat is not None:
        return Section("pixels", heading, [_activation_text(heat)], _activation_figures(heat, pixels))
    hidden = attribution.occlusion(session.logits, pixels, top, on_count, is_multilabel=subject.activation == "multilabel")
    return Section("pixels", heading, [_occlusion_text(hidden)], _occlusion_figures(hidden, pixels, top, labels, session))


def learning_section(subject: Subject, pixels: NDArray[np.uint8], label: int, is_given: bool, rate: float) -> Section:
    """One step of gradient descent on one image.

    Args:
        subject: of a run.
        pixels: the image, uint8[H,W,C].
        label: the right class.
        is_given: whether the user named it; otherwise it is the network's own answer.
        rate: the learning rate.
    """
    from export.walkthrough import backpropagation

    if subject.checkpoint is None:
        raise ValueError("a gradient step needs a checkpoint")
    step = backpropagation.gradient_step(subject.checkpoint, pixels, label, rate)
    name = subject.labels[label]
    aim = f"“{name}” is the right answer" if is_given else f"its own answer, “{name}”, is right (--label says otherwise)"
    before, after = float(step.before[label]), float(step.after[label])
    loss = equations.negative_logarithm(before, float(np.delete(step.before, label).sum()))
    estimate = equations.linear_estimate(step.loss_before, rate, step.norm)
    largest = max(layer.gradient for layer in step.layers) or 1.0
    too_long = not (step.losses <= step.loss_before).all()
    warning = " Too long ones make it worse." if too_long else " What they do to other pictures it does not show."
    return Section(
        "learning", "One step of learning",
        [
            f"Suppose that {aim}. The loss is the negative natural logarithm of its probability: {loss}. "
            "Backpropagation computes the gradient of the loss for every weight, from the last layer "
            "back to the first. A step of gradient descent moves each weight against its gradient, times a learning rate of "
            f"{rate:g}.",
            f"Loss: {number(step.loss_before)} before, {number(step.loss_after)} after; the probability of “{name}” goes from "
            f"{percent(before)} to {percent(after)}. The gradient's norm is {number(step.norm)}: if the loss were a straight line, "
            f"it would now be {estimate}. The curve shows where steps of other lengths end.{warning}",
        ],
        curve=Curve.of_losses(step.rates, step.losses, rate, step.loss_before, step.loss_after),
        bars_title="The gradient's norm, layer by layer",
        bars=[Bar(layer.name, layer.gradient / largest, number(layer.gradient)) for layer in step.layers],
    )  # fmt: skip


def _activation_text(heat: NDArray[np.float32]) -> str:
    return (
        "The network ends in global average pooling and a linear layer, so the score of a class is the mean of a map: the last "
        "feature maps, each times its weight for the class. This class activation map shows how much each place contributed to "
        f"the answer. It is as coarse as those maps: {heat.shape[0]}x{heat.shape[1]}."
    )


def _activation_figures(heat: NDArray[np.float32], pixels: NDArray[np.generic]) -> list[Figure]:
    scale = Scale.of(heat)
    return [
        Figure("pixels map", feature_maps.maps(heat[np.newaxis], scale), "The class activation map.", scale),
        Figure("pixels overlay", overlay(pixels, heat - max(float(heat.min()), 0.0), optimize=True), _OVERLAY),
    ]


def _occlusion_text(hidden: Occlusion) -> str:
    return (
        f"A patch of {hidden.patch}x{hidden.patch} pixels in the picture's mean colour was put on {hidden.tried} places, and the "
        "network was run each time. Where the answer grew weaker, the hidden pixels had raised its score; where it grew "
        "stronger, they had lowered it."
    )


def _occlusion_figures(
    hidden: Occlusion, pixels: NDArray[np.generic], top: int, labels: tuple[str, ...], session: SubjectSession
) -> list[Figure]:
    scale = Scale.of(hidden.heat)
    probabilities = session.probabilities(hidden.worst)
    answer = int(probabilities.argmax())
    left = f"“{labels[top]}” has {percent(float(probabilities[top]))} left"
    left += "" if answer == top else f", and the answer is “{labels[answer]}”"
    return [
        Figure(
            "pixels map", feature_maps.maps(hidden.heat[np.newaxis], scale),
            "How much the log-odds of the answer fell, on average, when the pixel was hidden.", scale,
        ),
        Figure("pixels overlay", overlay(pixels, hidden.heat, optimize=True), _OVERLAY),
        Figure("pixels hidden", feature_maps.picture(hidden.worst), f"The patch where the answer fell most: {left}."),
    ]  # fmt: skip
