"""A gradient step: that of torch.optim.SGD."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from export.data import datasets
from export.training.checkpoint import load_checkpoint
from export.walkthrough import (
    backpropagation,
    network_sections,
    subject,
)
from tests.unit.walkthrough.models import COLOUR, equations, is_true, normalised, untrained


def test_a_step_is_gradient_descent(run: Path, digits: datasets.Dataset) -> None:
    loaded = load_checkpoint(run)
    before = {name: value.clone() for name, value in loaded.network.state_dict().items()}
    pixels, label = digits.test.pixels[0], 3
    step = backpropagation.gradient_step(loaded, pixels, label, 0.02)
    network = load_checkpoint(run).network
    x, target = normalised(loaded, pixels), torch.tensor([label])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    loss = functional.cross_entropy(network(x), target)
    loss.backward()  # type: ignore[no-untyped-call]
    norms = {}
    for name, layer in network.named_children():
        gradients = [value.grad.flatten() for value in layer.parameters() if value.grad is not None]
        if gradients:
            norms[name] = torch.cat(gradients).norm().item()
    optimizer.step()
    after = functional.cross_entropy(network(x), target).item()
    assert step.loss_before == pytest.approx(loss.item(), rel=1e-4)
    assert step.loss_before == pytest.approx(-np.log(step.before[label]), rel=1e-4)
    assert step.loss_after == pytest.approx(after, rel=1e-3)
    assert step.loss_after < step.loss_before
    assert {layer.name: pytest.approx(layer.gradient, rel=1e-3) for layer in step.layers} == norms
    assert sum(layer.parameters for layer in step.layers) == 93_322
    assert step.losses[0] == pytest.approx(step.loss_before, rel=0.05)  # the least of steps changes next to nothing
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_untrained_weights_have_no_gradient(photo: np.ndarray) -> None:
    names = [layer.name for layer in backpropagation.gradient_step(untrained("speed-net", COLOUR, 10), photo, 1, 0.1).layers]
    assert "whitening" not in names
    assert names[0] == "groups.0.widen"
    assert names[-1] == "linear"


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0, 1000.0])
def test_the_equations_of_a_step_are_true_however_sure_the_network_is(photo: np.ndarray, scale: float) -> None:
    found = untrained("twelve-filters", COLOUR, 10)
    with torch.no_grad():
        found.network.output.weight.mul_(scale)  # type: ignore[union-attr, operator]
    run = subject.Subject("pictures", onnx.ModelProto(), found.input, found.labels, {}, checkpoint=found)
    top = int(found.network(normalised(found, photo)).argmax())
    for label in (top, (top + 1) % 10):
        step = backpropagation.gradient_step(found, photo, label, 0.01)
        assert step.before.sum() == pytest.approx(1, abs=1e-12)
        text = " ".join(network_sections.learning_section(run, photo, label, True, 0.01).paragraphs)
        shown = equations(text)
        assert shown, text
        assert all(is_true(each) for each in shown), shown
