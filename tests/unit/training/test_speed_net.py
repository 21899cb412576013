"""The speed net, trained and exported."""

from pathlib import Path

import numpy as np
import torch

from export.convert import pipeline
from export.data import datasets
from export.training import recipes
from export.training.inference import predict_logits
from service.model.loading import load_model
from tests.unit.training.conftest import trained


def test_the_speed_net_learns(tmp_path: Path, few: datasets.Dataset) -> None:
    settings = recipes.settings("speed-net:width=32", len(few.training), epochs=6)
    checkpoint = trained(tmp_path, few, settings)
    assert (predict_logits(checkpoint, few.test.pixels).argmax(1) == few.test.labels).mean() > 0.8


def test_an_exported_speed_net_gives_the_same_probabilities(tmp_path: Path, few: datasets.Dataset, known_operators: None) -> None:
    checkpoint = trained(tmp_path / "run", few, recipes.settings("speed-net:width=32", 384, epochs=1))
    path = pipeline.export(checkpoint, few, tmp_path / "models", "fast", calibrate=False).path
    served = load_model(path, "cpu", 1)
    for items in (1, 5):
        found = served.probabilities(few.test.pixels[:items])
        expected = torch.from_numpy(predict_logits(checkpoint, few.test.pixels[:items])).softmax(1)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
