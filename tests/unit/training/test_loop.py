"""A training run, on small real data."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export.data import datasets
from export.data.augmentation import Augmentation
from export.training import loop, optimization
from export.training.checkpoint import load_checkpoint
from export.training.history import EpochMetrics, best_epoch
from export.training.inference import predict_logits
from export.training.recipes import Settings
from service.errors import UserError
from tests.unit.training.conftest import SETTINGS, metrics, trained, weights


class Interrupt:
    """Presses Ctrl-C at the first step reported after `epochs` epochs."""

    def __init__(self, epochs: int) -> None:
        self._left = epochs

    def on_epoch(self, epoch: EpochMetrics) -> None:
        self._left -= 1

    def on_step(self, step: loop.TrainingProgress) -> None:
        if self._left <= 0:
            raise KeyboardInterrupt


def interrupted(folder: Path, dataset: datasets.Dataset, settings: Settings, epochs: int) -> None:
    interrupt = Interrupt(epochs)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, dataset, settings, on_step=interrupt.on_step, on_epoch=interrupt.on_epoch)


def test_a_seed_gives_the_same_training_and_the_best_epoch_is_kept(tmp_path: Path, few: datasets.Dataset) -> None:
    history: list[EpochMetrics] = []
    first = trained(tmp_path / "a", few, SETTINGS, on_epoch=history.append)
    second = trained(tmp_path / "b", few, SETTINGS)
    other = trained(tmp_path / "c", few, dataclasses.replace(SETTINGS, seed=8))
    assert torch.equal(weights(first), weights(second))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert not torch.equal(weights(first), weights(other))
    assert first.epoch == best_epoch(history).epoch
    assert [line["validation_loss"] for line in metrics(tmp_path / "a")] == [epoch.validation_loss for epoch in history]
    read = load_checkpoint(tmp_path / "a")
    assert np.array_equal(predict_logits(read, few.test.pixels), predict_logits(first, few.test.pixels))
    assert read.settings == SETTINGS
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"checkpoint.pt", "metrics.jsonl", "curves.png"}
    with Image.open(tmp_path / "a" / "curves.png") as picture:
        assert picture.size == (1560, 480)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "learning_rate": 0.02, "ema_decay": 0.0, "weight_decay": 1e-3, "balanced_sampling": True},
        {
            "optimizer": "adamw", "schedule": "constant", "label_smoothing": 0.1, "freeze": ("conv1",), "head_learning_rate": 1e-3,
            "mean": (0.5,), "class_weights": (3.0, *[1.0] * 9),
        },
        {"network": "speed-net:width=32", "optimizer": "sgd", "learning_rate": 0.05},  # norms, whose statistics go on too
    ],
    ids=["adam", "sgd", "adamw", "speed-net"],
)  # fmt: skip
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, few: datasets.Dataset, changes: dict[str, Any]
) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    whole = trained(tmp_path / "whole", few, settings)
    interrupted(tmp_path / "parts", few, settings, epochs=1)
    assert load_checkpoint(tmp_path / "parts").epoch == 1
    resumed = trained(tmp_path / "parts", few, settings, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert resumed.epoch == whole.epoch


def test_resume_refuses_other_settings_or_data_and_a_finished_run(
    tmp_path: Path, few: datasets.Dataset, digits: datasets.Dataset
) -> None:
    run = tmp_path / "run"
    interrupted(run, few, SETTINGS, epochs=1)
    with pytest.raises(UserError, match=r"its --learning-rate is 0\.003, not 0\.004"):
        trained(run, few, dataclasses.replace(SETTINGS, learning_rate=0.004), resume=True)
    with pytest.raises(UserError, match="its --epochs is 3, not 4"):
        trained(run, few, dataclasses.replace(SETTINGS, epochs=4), resume=True)
    with pytest.raises(UserError, match="it was started with other data"):
        trained(run, digits, SETTINGS, resume=True)
    with pytest.raises(UserError, match="it was started with other data"):
        trained(run, dataclasses.replace(few, augmentation=Augmentation(shift_pixels=1)), SETTINGS, resume=True)
    trained(run, few, SETTINGS, resume=True)
    with pytest.raises(UserError, match="is finished: there is nothing to resume"):
        trained(run, few, SETTINGS, resume=True)
    with pytest.raises(UserError, match=r"has no checkpoint\.pt"):
        trained(tmp_path / "none", few, SETTINGS, resume=True)


def test_a_training_interrupted_at_its_end_can_be_resumed(
    tmp_path: Path, few: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "plot_curves", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, few, SETTINGS)
    epochs: list[EpochMetrics] = []
    whole = trained(tmp_path, few, SETTINGS, resume=True, on_epoch=epochs.append)
    assert (epochs, (tmp_path / "curves.png").exists()) == ([], True), "nothing was left but to draw"
    assert torch.equal(weights(whole), weights(load_checkpoint(tmp_path)))
    with pytest.raises(UserError, match="is finished: there is nothing to resume"):
        trained(tmp_path, few, SETTINGS, resume=True)


def test_the_learning_rate_of_an_epoch_is_that_of_its_last_step(tmp_path: Path, few: datasets.Dataset) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=2)
    batches = -(-len(few.training) // settings.batch_size)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], settings.learning_rate)
    schedule = optimization.schedule(optimizer, settings, 2 * batches)
    rates = []
    for _ in range(2 * batches):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    trained(tmp_path, few, settings)
    assert [line["learning_rate"] for line in metrics(tmp_path)] == pytest.approx([rates[batches - 1], rates[-1]])


def test_training_stops_after_its_patience(tmp_path: Path, few: datasets.Dataset) -> None:
    # At this rate the loss soon jumps about: some epoch is the best for two epochs, long before the hundredth.
    settings = Settings("article-cnn", epochs=100, batch_size=64, learning_rate=0.02, schedule="constant", patience=2)
    kept = trained(tmp_path, few, settings)
    losses = [line["validation_loss"] for line in metrics(tmp_path)]
    assert len(losses) < 100
    assert kept.epoch == len(losses) - 2
    assert min(losses) == losses[kept.epoch - 1]


def test_few_validation_pictures_choose_neither_the_epoch_nor_the_end(tmp_path: Path, few: datasets.Dataset) -> None:
    part = few.validation
    handful = dataclasses.replace(few, validation=dataclasses.replace(part, pixels=part.pixels[:3], labels=part.labels[:3]))
    with pytest.raises(UserError, match="--patience 2: 3 validation pictures are too few to say when to stop; with 50 or more"):
        trained(tmp_path / "none", handful, SETTINGS)
    settings = dataclasses.replace(SETTINGS, patience=0, learning_rate=0.02, schedule="constant", epochs=4)
    whole = trained(tmp_path / "whole", handful, settings)
    losses = [line["validation_loss"] for line in metrics(tmp_path / "whole")]
    assert (whole.epoch, min(losses) < losses[-1]) == (4, True), "the last, though another did better on three pictures"
    interrupted(tmp_path / "parts", handful, settings, epochs=2)
    assert load_checkpoint(tmp_path / "parts").epoch == 2
    assert torch.equal(weights(trained(tmp_path / "parts", handful, settings, resume=True)), weights(whole))


def test_divergence_is_an_error_and_nothing_is_kept(tmp_path: Path, few: datasets.Dataset) -> None:
    settings = Settings("article-cnn", epochs=3, learning_rate=1e30)
    with pytest.raises(UserError, match="the training diverged in epoch 1"):
        trained(tmp_path, few, settings)
    assert list(tmp_path.iterdir()) == []
