"""What the tests of training share: small data, a short training, and how two of them are compared."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from export.data import datasets
from export.training import loop
from export.training.checkpoint import Checkpoint
from export.training.recipes import Settings

SETTINGS = Settings("article-cnn", epochs=3, batch_size=64, learning_rate=3e-3, seed=7, ema_decay=0.9, patience=2)


@pytest.fixture(scope="module")
def few(digits: datasets.Dataset) -> datasets.Dataset:
    """A third of the digits, for trainings of a second."""
    part = digits.training
    return dataclasses.replace(digits, training=dataclasses.replace(part, pixels=part.pixels[:384], labels=part.labels[:384]))


def trained(folder: Path, dataset: datasets.Dataset, settings: Settings, **given: Any) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    return loop.train(dataset, settings, folder, **given)


def weights(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in checkpoint.network.state_dict().values()])


def metrics(run: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "images_per_second")} for line in lines]
