"""Training in two processes, as torchrun starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from export.cli.train import train
from export.training.checkpoint import load_checkpoint
from tests.unit.training.conftest import metrics, weights

pytestmark = pytest.mark.system  # seven programs that import PyTorch


def torchrun(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "service.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options,
    )  # fmt: skip


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    command = ["train", "--data", "digits", "--epochs", "2", "--shift", "0", "--batch-size", "100", "--autocast", "off", "--output"]
    alone = CliRunner().invoke(train, [*command[1:], str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    process = torchrun(*command, str(tmp_path / "two"))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("epoch 1/2") == 1, "rank 0 alone prints"
    assert "2 processes" in output
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    assert one.settings == two.settings
    # The same batches of 100, of which each process saw half: what differs is the order in which floats are added up. How far that
    # takes a single weight depends on the processor; with batches of 50 all of them together differ by a fifth.
    assert (weights(two) - weights(one)).norm() < 0.05 * weights(one).norm()
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert ours["training_loss"] == pytest.approx(theirs["training_loss"], abs=2e-3)
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=2e-3)
        assert ours["learning_rate"] == theirs["learning_rate"], "as many steps"


def test_two_processes_show_one_error_and_exit_together(tmp_path: Path) -> None:
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
    assert load_checkpoint(run).epoch >= 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def _rank(parent: int, rank: int) -> int:
    """The process of that rank, among the children of torchrun."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank}")
