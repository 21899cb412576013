"""The checkpoint file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from export.data import datasets
from export.networks import architectures
from export.training.checkpoint import load_checkpoint, save_checkpoint
from service.errors import UserError
from tests.conftest import full_disk
from tests.unit.training.conftest import SETTINGS, trained, weights


def test_a_failed_write_keeps_the_checkpoint_before(tmp_path: Path, few: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, few, dataclasses.replace(SETTINGS, epochs=1))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    checkpoint = load_checkpoint(tmp_path)
    save = torch.save

    def half(content: object, file: Any) -> None:
        save(content, file)
        file.truncate(1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(dataclasses.replace(checkpoint, epoch=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_named_and_keeps_the_checkpoint_before(tmp_path: Path, few: datasets.Dataset) -> None:
    trained(tmp_path, few, dataclasses.replace(SETTINGS, epochs=1))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    checkpoint = load_checkpoint(tmp_path)
    with full_disk(), pytest.raises(UserError, match=rf"^cannot write {tmp_path}/checkpoint.pt: File too large$"):
        save_checkpoint(dataclasses.replace(checkpoint, epoch=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_checkpoint_of_another_format_is_refused_by_its_format(tmp_path: Path, few: datasets.Dataset) -> None:
    trained(tmp_path, few, dataclasses.replace(SETTINGS, epochs=1))
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(content | {"format": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="a checkpoint of format 1; this version reads format 2"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_before_weights_and_own_networks_is_read(tmp_path: Path, few: datasets.Dataset) -> None:
    best = trained(tmp_path, few, dataclasses.replace(SETTINGS, epochs=1))
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name in ("weights", "freeze", "head_learning_rate", "mean", "std"):
        del content["best"]["settings"][name]
    del content["best"]["code"]
    content["best"]["input"] = {"height": 28, "width": 28, "channels": 1, "resize": "bilinear", "fit": "crop"}
    torch.save(content, tmp_path / "checkpoint.pt")
    read = load_checkpoint(tmp_path)
    assert read.settings == best.settings
    assert read.input == best.input.model_copy(update={"resize": "cover"})
    assert torch.equal(weights(read), weights(best))


def test_the_code_of_an_own_network_is_found_again_and_refused_if_it_is_missing_or_another(
    tmp_path: Path, few: datasets.Dataset
) -> None:
    code = "from torch import nn\ndef net(classes): return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))\n"
    file, moved = tmp_path / "net.py", tmp_path / "moved.py"
    file.write_text(code)
    found = architectures.code(f"{file}:net")
    assert found is not None
    settings, run = dataclasses.replace(SETTINGS, network=found.network, epochs=1), tmp_path / "run"
    best = trained(run, few, settings)
    assert torch.equal(weights(load_checkpoint(run)), weights(best))
    file.write_text("raise AssertionError('this must not run')")
    with pytest.raises(UserError, match=r"net\.py has changed since the training \(SHA-256 [0-9a-f]{16}, then [0-9a-f]{16}\): put"):
        load_checkpoint(run)
    file.unlink()
    with pytest.raises(UserError, match=r"then in .*net\.py, cannot be used: .*no such file: .*; if it has moved, give"):
        load_checkpoint(run)
    with pytest.raises(UserError, match=r"--network resnet18: the network of this run is .*net; accepted is FILE\.py:NAME or"):
        load_checkpoint(run, "resnet18")
    moved.write_text(code)
    assert torch.equal(weights(load_checkpoint(run, f"{moved}:net")), weights(best))


def test_code_is_not_run_for_a_checkpoint_that_does_not_say_what_was_in_it(tmp_path: Path, few: datasets.Dataset) -> None:
    trained(tmp_path, few, dataclasses.replace(SETTINGS, epochs=1))
    (tmp_path / "trap.py").write_text("raise AssertionError('this must not run')")
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["best"]["settings"]["network"] = f"{tmp_path}/trap.py:net"
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="nothing says what was in that file"):
        load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="which has not moved"):
        load_checkpoint(trained_run(tmp_path / "own", few), "net.py:net")


def trained_run(run: Path, dataset: datasets.Dataset) -> Path:
    trained(run, dataset, dataclasses.replace(SETTINGS, epochs=1))
    return run
