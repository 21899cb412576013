"""Optimisers, schedules, the moving average and bfloat16."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from export.data import datasets
from export.networks import architectures
from export.training import optimization
from export.training.recipes import Settings
from service.model.input_spec import InputSpec
from tests.unit.training.conftest import SETTINGS, trained, weights


def test_norms_and_biases_are_not_decayed_and_frozen_weights_not_trained() -> None:
    network = architectures.build("speed-net", InputSpec(height=32, width=32, channels=3), 10)
    settings = Settings("speed-net", 1, optimizer="sgd", weight_decay=0.1)
    decayed, others = optimization.optimizer(network, settings).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    convolutions = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert {id(weight) for weight in decayed["params"]} == {id(weight) for weight in convolutions if weight.requires_grad}
    assert all(parameter.ndim == 1 for parameter in others["params"])
    assert len(convolutions) == len(decayed["params"]) + 1  # the whitening is not trained
    assert others["nesterov"]


def test_one_cycle_rises_to_the_rate_and_falls_to_nothing() -> None:
    network = nn.Linear(2, 2)
    rates = []
    settings = Settings("article-cnn", 1, learning_rate=0.5, optimizer="sgd")
    optimizer = optimization.optimizer(network, settings)
    schedule = optimization.schedule(optimizer, settings, 100)
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.5)
    assert 20 <= rates.index(max(rates)) <= 40
    assert rates[-1] < 1e-4
    constant = optimization.optimizer(network, settings)
    flat = optimization.schedule(constant, dataclasses.replace(settings, schedule="constant"), 10)
    for _ in range(10):
        constant.step()
        flat.step()
        assert constant.param_groups[0]["lr"] == 0.5


def test_the_moving_average_is_that_of_the_weights() -> None:
    network = nn.BatchNorm1d(1)
    average = optimization.MovingAverage(network, 0.9)
    expected = 1.0
    for step in range(1, 200):
        with torch.no_grad():
            network.weight.fill_(float(step % 7))
        network.num_batches_tracked.fill_(step)  # type: ignore[union-attr]
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step % 7)
    state = average.network.state_dict()
    assert state["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert state["num_batches_tracked"].item() == 199


def test_autocast_depends_on_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few: datasets.Dataset) -> None:
    cpu = torch.device("cpu")
    for name, able, expected in (("auto", False, False), ("auto", True, True), ("off", True, False), ("bf16", False, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able})
        assert optimization.uses_bfloat16(Settings("article-cnn", 1, autocast=name), cpu) is expected  # type: ignore[arg-type]
    half = trained(tmp_path / "half", few, dataclasses.replace(SETTINGS, epochs=1, autocast="bf16"))
    full = trained(tmp_path / "full", few, dataclasses.replace(SETTINGS, epochs=1, autocast="off"))
    assert weights(half).dtype == torch.float32
    assert not torch.equal(weights(half), weights(full))
    assert (weights(half) - weights(full)).abs().max() < 0.1
