"""Fine-tuning: what is frozen stays as it was, statistics of norms too, and the last layer has a learning rate of its own."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from export.data import datasets
from export.networks import architectures
from export.training import optimization
from export.training.checkpoint import load_checkpoint
from export.training.fine_tuning import freeze, last_layer
from export.training.pretrained import Loaded, read_weights
from export.training.recipes import IMAGENET_MEAN, Settings, settings
from service.errors import UserError
from tests.unit.networks.shapes import COLOR32, GRAY28
from tests.unit.training.conftest import SETTINGS, trained, weights

NET = """
from torch import nn

def net(in_channels, classes):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 5, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(576, classes))
"""


def test_weights_are_loaded_and_frozen_and_the_run_is_the_same_again(tmp_path: Path, few: datasets.Dataset) -> None:
    (tmp_path / "net.py").write_text(NET)
    code = architectures.code(f"{tmp_path}/net.py:net")
    assert code is not None
    plain = dataclasses.replace(SETTINGS, network=code.network, epochs=1, learning_rate=1e-2)
    first = trained(tmp_path / "first", few, plain)
    source = read_weights(tmp_path / "first" / "checkpoint.pt")
    tuned = dataclasses.replace(plain, weights=str(source), freeze=("0.", "1."), head_learning_rate=1e-3, mean=(0.5,), std=(0.25,))
    seen: list[Loaded] = []
    second = trained(tmp_path / "second", few, tuned, weights=source, on_weights=seen.append)
    before, after = first.network.state_dict(), second.network.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == [name for name in before if name[0] in "01"]
    assert (seen[0].loaded, seen[0].fresh) == (tuple(name for name in before if "num" not in name), ())
    assert (second.mean, second.std) == ((127.5,), (63.75,))
    read = load_checkpoint(tmp_path / "second")
    assert (read.settings, read.code) == (tuned, code)
    assert torch.equal(weights(read), weights(second))


def test_a_prefix_must_name_weights_and_leave_some_to_train() -> None:
    network = architectures.build("resnet18", COLOR32, 10)
    norms = freeze(network, ("conv", "norm", "stage1"))
    assert len(norms) == 5
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained[0] == "stage2_block1.conv1.weight"
    with pytest.raises(UserError, match=r"--freeze layer1: no weight .* starts so; they start with conv, norm, stage1_"):
        freeze(network, ("conv", "layer1"))
    with pytest.raises(UserError, match="--freeze conv --freeze : nothing is left to train"):
        freeze(network, ("conv", ""))


def test_the_last_layer_has_a_learning_rate_of_its_own() -> None:
    network = architectures.build("article-cnn:head=sigmoid", GRAY28, 2)
    head = last_layer(network, torch.zeros(1, 1, 28, 28))
    assert isinstance(head, nn.Linear)
    assert head.out_features == 1
    chosen = Settings("article-cnn", 1, optimizer="sgd", learning_rate=0.01, head_learning_rate=0.1, weight_decay=1e-3)
    optimizer = optimization.optimizer(network, chosen, head)
    optimization.schedule(optimizer, chosen, 10)
    groups = optimizer.param_groups
    assert [(group["max_lr"], group["weight_decay"]) for group in groups] == [(0.01, 1e-3), (0.01, 0), (0.1, 1e-3), (0.1, 0)]
    assert [len(group["params"]) for group in groups] == [4, 4, 1, 1]
    assert groups[2]["params"][0] is head.weight


def test_a_last_layer_that_is_frozen_has_no_learning_rate() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    freeze(network, ("2.",))
    with pytest.raises(UserError, match="--head-learning-rate: the last layer is frozen by --freeze"):
        last_layer(network, torch.zeros(1, 1, 2, 2))


def test_weights_from_a_file_are_trained_more_slowly_by_default() -> None:
    plain, tuned = settings("resnet18", 50_000), settings("resnet18", 50_000, weights="resnet18.pth")
    assert (plain.learning_rate, plain.head_learning_rate) == (0.1, 0.0)
    assert (tuned.learning_rate, tuned.head_learning_rate) == (0.01, 0.1)
    given = settings("resnet18", 50_000, weights="resnet18.pth", learning_rate=0.2, mean=IMAGENET_MEAN)
    assert (given.learning_rate, given.head_learning_rate) == (0.2, 0.0)
    assert {"weights", "mean"} <= set(given.given())
    assert not {"freeze", "std", "weights"} & set(plain.given())
