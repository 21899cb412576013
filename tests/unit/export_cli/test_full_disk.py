"""Commands whose files cannot be written: a limit on the size of files (RLIMIT_FSIZE) stands for a full disk."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from export.convert import pipeline
from export.data import datasets
from export.training import loop
from export.training.checkpoint import Checkpoint, load_checkpoint, load_interrupted, save_checkpoint
from service.errors import UserError
from tests.conftest import full_disk
from tests.program import convoy_here, one_line


def test_a_disk_that_fills_up_while_training_is_one_line_and_the_run_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def saved(checkpoint: Checkpoint, run: Path, state: Any) -> None:
        with full_disk(1000) if len(state["history"]) == 2 else contextlib.nullcontext():
            save_checkpoint(checkpoint, run, state)

    monkeypatch.setattr(loop, "save_checkpoint", saved)
    result = convoy_here("train", "--data", "digits", "--network", "twelve-filters", "--epochs", "9", "--output", run)
    assert (result.returncode, result.stderr) == (2, f"convoy: cannot write {run / 'checkpoint.pt'}: File too large\n")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]
    _, state = load_interrupted(run)
    assert len(state["history"]) == len((run / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, model_file: Path, digits: datasets.Dataset) -> None:
    image = tmp_path / "digit.png"
    image.write_bytes(digits.test.encoded(0))
    with full_disk(20_000):
        evaluated = convoy_here("evaluate", model_file, "--data", "digits", "--output", tmp_path / "output")
    with full_disk(1000):
        toured = convoy_here("walkthrough", image, "--output", tmp_path / "tour")
    assert one_line(evaluated) == f"convoy: cannot write {tmp_path / 'output' / 'confusion.png'}: File too large"
    assert one_line(toured) == f"convoy: cannot write to '{tmp_path / 'tour'}': File too large"


def test_an_export_to_a_full_disk_names_the_folder(tmp_path: Path, run: Path, digits: datasets.Dataset) -> None:
    advice = ": File too large; TMPDIR in the environment chooses another"
    with full_disk(), pytest.raises(UserError, match=f"^cannot write to the temporary folder .*{advice}$"):
        pipeline.export(load_checkpoint(run), digits, tmp_path / "models", "digits")
    assert not (tmp_path / "models").exists()


def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path, model_file: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "inspect", str(model_file)]
    with Path("/dev/full").open("w") as file:
        result = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (2, "convoy: cannot write the output: No space left on device\n")
    with full_disk(), (tmp_path / "out.txt").open("w") as file:
        result = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (2, "convoy: cannot write the output: File too large\n")
