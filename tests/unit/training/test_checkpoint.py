"""The checkpoint file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from export.data import datasets
from export.training.checkpoint import load_checkpoint, save_checkpoint
from service.errors import UserError
from tests.conftest import full_disk
from tests.unit.training.conftest import SETTINGS, trained


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
