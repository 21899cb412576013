"""A gradient step: that of torch.optim.SGD."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from export.data import datasets
from export.training.checkpoint import load_checkpoint
from export.walkthrough import (
    backpropagation,
)
from tests.unit.walkthrough.models import COLOUR, normalised, untrained


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
