"""Training, on small real work."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from export.cli import options
from export.cli.train import train
from export.data import datasets
from export.data.augmentation import Augmentation
from export.networks import architectures, speed_net
from export.training import checkpoint as checkpoints
from export.training import history, loop, optimization, recipes
from service.errors import UserError
from service.model.contract import InputSpec

SETTINGS = loop.Settings("article-cnn", epochs=3, batch_size=64, learning_rate=3e-3, seed=7, ema_decay=0.9, patience=2)


@pytest.fixture(scope="module")
def few(digits: datasets.Dataset) -> datasets.Dataset:
    """A third of the digits, for trainings of a second."""
    part = digits.training
    return dataclasses.replace(digits, training=dataclasses.replace(part, pixels=part.pixels[:384], labels=part.labels[:384]))


def trained(folder: Path, dataset: datasets.Dataset, settings: loop.Settings, **given: Any) -> loop.Checkpoint:
    folder.mkdir(exist_ok=True)
    return loop.train(dataset, settings, folder, **given)


def weights(checkpoint: loop.Checkpoint) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in checkpoint.network.state_dict().values()])


def metrics(run: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "images_per_second")} for line in lines]


class Interrupt:
    """Presses Ctrl-C at the first step reported after `epochs` epochs."""

    def __init__(self, epochs: int) -> None:
        self._left = epochs

    def on_epoch(self, epoch: loop.Epoch) -> None:
        self._left -= 1

    def on_step(self, step: loop.Step) -> None:
        if self._left <= 0:
            raise KeyboardInterrupt


def interrupted(folder: Path, dataset: datasets.Dataset, settings: loop.Settings, epochs: int) -> None:
    interrupt = Interrupt(epochs)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, dataset, settings, on_step=interrupt.on_step, on_epoch=interrupt.on_epoch)


def test_a_seed_gives_the_same_training_and_the_best_epoch_is_kept(tmp_path: Path, few: datasets.Dataset) -> None:
    history: list[loop.Epoch] = []
    first = trained(tmp_path / "a", few, SETTINGS, on_epoch=history.append)
    second = trained(tmp_path / "b", few, SETTINGS)
    other = trained(tmp_path / "c", few, dataclasses.replace(SETTINGS, seed=8))
    assert torch.equal(weights(first), weights(second))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert not torch.equal(weights(first), weights(other))
    assert first.epoch == min(history, key=lambda epoch: epoch.validation_loss).epoch
    assert [line["validation_loss"] for line in metrics(tmp_path / "a")] == [epoch.validation_loss for epoch in history]
    read = loop.load_checkpoint(tmp_path / "a")
    assert np.array_equal(loop.predict(read, few.test.pixels), loop.predict(first, few.test.pixels))
    assert read.settings == SETTINGS
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"checkpoint.pt", "metrics.jsonl", "curves.png"}
    with Image.open(tmp_path / "a" / "curves.png") as picture:
        assert picture.size == (1560, 480)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "learning_rate": 0.02, "ema_decay": 0.0, "weight_decay": 1e-3},
        {"optimizer": "adamw", "schedule": "constant", "label_smoothing": 0.1},
        {"network": "speed-net:width=32", "optimizer": "sgd", "learning_rate": 0.05},  # norms, whose statistics go on too
    ],
    ids=["adam", "sgd", "adamw", "speed-net"],
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_by_bit(
    tmp_path: Path, few: datasets.Dataset, changes: dict[str, Any]
) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    whole = trained(tmp_path / "whole", few, settings)
    interrupted(tmp_path / "parts", few, settings, epochs=1)
    assert loop.load_checkpoint(tmp_path / "parts").epoch == 1
    resumed = trained(tmp_path / "parts", few, settings, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert resumed.epoch == whole.epoch


def test_resume_refuses_other_settings_or_data_and_a_finished_run(
    tmp_path: Path, few: datasets.Dataset, digits: datasets.Dataset
) -> None:
    run = tmp_path / "run"
    interrupted(run, few, SETTINGS, epochs=1)
    with pytest.raises(UserError, match=r"its --learning-rate is 0\.003, and not 0\.004"):
        trained(run, few, dataclasses.replace(SETTINGS, learning_rate=0.004), resume=True)
    with pytest.raises(UserError, match="its --epochs is 3, and not 4"):
        trained(run, few, dataclasses.replace(SETTINGS, epochs=4), resume=True)
    with pytest.raises(UserError, match="the data are not those"):
        trained(run, digits, SETTINGS, resume=True)
    with pytest.raises(UserError, match="the data are not those"):
        trained(run, dataclasses.replace(few, augmentation=Augmentation(shift_pixels=1)), SETTINGS, resume=True)
    trained(run, few, SETTINGS, resume=True)
    with pytest.raises(UserError, match="is finished: there is nothing to resume"):
        trained(run, few, SETTINGS, resume=True)
    with pytest.raises(UserError, match=r"has no checkpoint\.pt"):
        trained(tmp_path / "none", few, SETTINGS, resume=True)


def test_a_write_that_breaks_off_leaves_the_older_checkpoint_whole(
    tmp_path: Path, few: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, few, SETTINGS, epochs=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    checkpoint = loop.load_checkpoint(tmp_path)
    save = torch.save

    def half(content: object, file: Any) -> None:
        save(content, file)
        file.truncate(1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoints.save(dataclasses.replace(checkpoint, epoch=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_training_that_breaks_off_at_its_very_end_can_be_finished(
    tmp_path: Path, few: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "plot", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, few, SETTINGS)
    epochs: list[loop.Epoch] = []
    whole = trained(tmp_path, few, SETTINGS, resume=True, on_epoch=epochs.append)
    assert (epochs, (tmp_path / "curves.png").exists()) == ([], True), "nothing was left but to draw"
    assert torch.equal(weights(whole), weights(loop.load_checkpoint(tmp_path)))
    with pytest.raises(UserError, match="is finished: there is nothing to resume"):
        trained(tmp_path, few, SETTINGS, resume=True)


def test_a_run_has_one_training_at_a_time(tmp_path: Path) -> None:
    options.hold(tmp_path)
    holding = "import sys; from pathlib import Path; from export.cli import options; options.hold(Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", holding, tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert "another training writes to" in other.stderr
    subprocess.run([sys.executable, "-c", holding, tmp_path / ".."], timeout=60, check=True)


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


def test_mean_and_deviation_of_many_pictures_are_taken_in_parts() -> None:
    images = torch.randint(0, 256, (1000, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 7
    mean, std = loop._mean_and_std(images)
    np.testing.assert_allclose(mean, images.double().mean((0, 2, 3)).numpy(), rtol=1e-9)
    np.testing.assert_allclose(std, [*images.double().std((0, 2, 3))[:2].tolist(), 1.0], rtol=1e-9)
    assert [len(loop._spread(images, most)) for most in (1, 3, 999, 1000, 5000)] == [1, 3, 500, 1000, 1000]


def test_ctrl_c_says_how_to_go_on_and_that_works(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--data", "digits", "--epochs", "6", "--output", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (run / "checkpoint.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    said = next(line for line in output.splitlines() if line.startswith("  convoy train "))
    assert said.endswith("--resume")
    resumed = CliRunner().invoke(train, said.split()[2:])
    assert resumed.exit_code == 0, resumed.output
    assert "epoch 1/6" not in resumed.output
    assert "epoch 6/6" in resumed.output
    assert [line["epoch"] for line in metrics(run)] == list(range(1, 7))


def test_training_stops_early_and_never_before_it_should(tmp_path: Path, few: datasets.Dataset) -> None:
    # At this rate the loss soon jumps about: some epoch is the best for two epochs, long before the hundredth.
    settings = loop.Settings("article-cnn", epochs=100, batch_size=64, learning_rate=0.02, schedule="constant", patience=2)
    kept = trained(tmp_path, few, settings)
    losses = [line["validation_loss"] for line in metrics(tmp_path)]
    assert len(losses) < 100
    assert kept.epoch == len(losses) - 2
    assert min(losses) == losses[kept.epoch - 1]


def test_a_training_that_diverges_says_so_and_keeps_nothing(tmp_path: Path, few: datasets.Dataset) -> None:
    settings = loop.Settings("article-cnn", epochs=3, learning_rate=1e30)
    with pytest.raises(UserError, match="the training diverged in epoch 1"):
        trained(tmp_path, few, settings)
    assert list(tmp_path.iterdir()) == []


def test_logits_and_probabilities_agree(run: Path, digits: datasets.Dataset) -> None:
    checkpoint = loop.load_checkpoint(run)
    logits = loop.logits(checkpoint, digits.test.pixels)
    assert logits.shape == (360, 10)
    assert logits.dtype == np.float32
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loop.predict(checkpoint, digits.test.pixels), expected, atol=1e-6)
    correct, items = loop.test_accuracy(checkpoint, digits.test)
    assert (correct, items) == (int((logits.argmax(1) == digits.test.labels).sum()), 360)


def test_norms_and_biases_are_not_decayed_and_frozen_weights_not_trained() -> None:
    network = architectures.build("speed-net", InputSpec(height=32, width=32, channels=3), 10)
    settings = loop.Settings("speed-net", 1, optimizer="sgd", weight_decay=0.1)
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
    settings = loop.Settings("article-cnn", 1, learning_rate=0.5, optimizer="sgd")
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


def test_recipes_suit_the_network_and_the_number_of_pictures() -> None:
    assert recipes.settings("article-cnn", 55_000, epochs=5) == loop.Settings("article-cnn", 5, 128, 4e-3, label_smoothing=0.1)
    small = recipes.settings("article-cnn:kernel=5", 1_257)
    assert (small.epochs, small.batch_size, small.learning_rate) == (20, 32, 2e-3)
    assert recipes.settings("article-cnn", 55_000, batch_size=512, epochs=None).learning_rate == pytest.approx(8e-3)
    assert recipes.settings("resnet18", 50_000, batch_size=64).learning_rate == pytest.approx(0.05)
    given = recipes.settings("resnet18", 50_000, learning_rate=0.03, batch_size=64, weight_decay=0.0)
    assert (given.learning_rate, given.batch_size, given.weight_decay, given.optimizer) == (0.03, 64, 0.0, "sgd")
    assert recipes.settings("resnet18", 50_000, optimizer="adam").learning_rate == pytest.approx(4e-3)
    assert recipes.settings("article-cnn", 50_000, optimizer="sgd").learning_rate == pytest.approx(0.1)
    for name in recipes.RECIPES:
        assert name in architectures.NETWORKS
        assert name in recipes.describe()


def test_the_speed_net_whitens_and_learns(tmp_path: Path, few: datasets.Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 34, 34, generator=generator), 3, stride=1)  # neighbours are alike
    network = speed_net.SpeedNet(InputSpec(height=32, width=32, channels=3), 10)
    network.whiten(images)
    found = network.whitening(images).permute(1, 0, 2, 3).flatten(1)[:12]  # (12, N), the other twelve are their negatives
    np.testing.assert_allclose((found @ found.T / found.shape[1]).numpy(), np.eye(12), atol=0.05)
    settings = recipes.settings("speed-net:width=32", len(few.training), epochs=6)
    checkpoint = trained(tmp_path, few, settings)
    correct, items = loop.test_accuracy(checkpoint, few.test)
    assert correct / items > 0.8
    with pytest.raises(UserError, match="at least 9x9; the input is 8x32"):
        speed_net.SpeedNet(InputSpec(height=8, width=32, channels=3), 10)


def test_the_speed_net_survives_export(tmp_path: Path, few: datasets.Dataset) -> None:
    from export.convert import pipeline
    from service.model import session

    checkpoint = trained(tmp_path / "run", few, recipes.settings("speed-net:width=32", 384, epochs=1))
    path = pipeline.export(checkpoint, few, tmp_path / "models", "fast", calibrate=False).path
    served = session.load_model(path, "cpu", 1)
    for items in (1, 5):
        found = served.probabilities(few.test.pixels[:items])
        np.testing.assert_allclose(found, loop.predict(checkpoint, few.test.pixels[:items]), atol=1e-4)


def test_autocast_goes_by_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few: datasets.Dataset) -> None:
    cpu = torch.device("cpu")
    for name, able, expected in (("auto", False, False), ("auto", True, True), ("off", True, False), ("bf16", False, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able})
        assert loop.autocasts(loop.Settings("article-cnn", 1, autocast=name), cpu) is expected  # type: ignore[arg-type]
    half = trained(tmp_path / "half", few, dataclasses.replace(SETTINGS, epochs=1, autocast="bf16"))
    full = trained(tmp_path / "full", few, dataclasses.replace(SETTINGS, epochs=1, autocast="off"))
    assert weights(half).dtype == torch.float32
    assert not torch.equal(weights(half), weights(full))
    assert (weights(half) - weights(full)).abs().max() < 0.1


def test_tensorboard_has_the_figures_or_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write = history.tensorboard(tmp_path)
    for number in (1, 2):
        write(loop.Epoch(number, 0.5, 0.8, 0.25 * number, 0.9, 1000.0, 1e-3, 2.0))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/validation")] == [(1, 0.25), (2, 0.5)]
    assert "accuracy/training" in events.Tags()["scalars"]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    with pytest.raises(UserError, match="needs the package tensorboard"):
        history.tensorboard(tmp_path)


def torchrun(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "service.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options,
    )  # fmt: skip


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    command = ["train", "--data", "digits", "--epochs", "2", "--shift", "0", "--batch-size", "100", "--output"]
    alone = CliRunner().invoke(train, [*command[1:], str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    process = torchrun(*command, str(tmp_path / "two"))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("epoch 1/2") == 1, "rank 0 alone prints"
    assert "2 processes" in output
    one, two = loop.load_checkpoint(tmp_path / "one"), loop.load_checkpoint(tmp_path / "two")
    assert one.settings == two.settings
    # The same batches of 100, of which each process saw half: what differs is the order in which floats are added up. How far that
    # takes a single weight depends on the processor; with batches of 50 all of them together differ by a fifth.
    assert (weights(two) - weights(one)).norm() < 0.05 * weights(one).norm()
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert ours["training_loss"] == pytest.approx(theirs["training_loss"], abs=2e-3)
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=2e-3)
        assert ours["learning_rate"] == theirs["learning_rate"], "as many steps"


def test_two_processes_refuse_with_one_line_and_end_together_when_one_dies(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    process = torchrun("train", "--data", "digits", "--output", str(tmp_path / "full"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("nothing is overwritten") == 1

    run = tmp_path / "run"
    process = torchrun("train", "--data", "digits", "--epochs", "1000", "--output", str(run))
    try:
        deadline = time.monotonic() + 60
        while not (run / "checkpoint.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(_rank(process.pid, 1), signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert loop.load_checkpoint(run).epoch >= 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def _rank(parent: int, rank: int) -> int:
    """The process of that rank, among the children of torchrun."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank}")
