"""Commands whose files cannot be written: a limit on the size of files (RLIMIT_FSIZE) stands for a full disk."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from export.convert import pipeline
from export.data import datasets
from export.training.checkpoint import load_checkpoint, load_interrupted
from service.errors import UserError
from tests.conftest import full_disk

TRAIN = """
import resource
from export.training import loop
from service.cli import main

save = loop.save_checkpoint

def saved(checkpoint, run, state):
    if len(state["history"]) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    save(checkpoint, run, state)

loop.save_checkpoint = saved
main()
"""


def limited(most_bytes: int, *command: str | Path) -> tuple[int, str]:
    """The exit code, and the last line of stderr, of a command that can write no file larger than this."""
    result = subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, command)],
        capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr.splitlines()[-1]


def test_a_disk_that_fills_up_while_training_is_one_line_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--data", "digits", "--network", "article-cnn", "--epochs", "9", "--output", str(run)]
    result = subprocess.run([sys.executable, "-c", TRAIN, *command], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (2, f"convoy: cannot write {run / 'checkpoint.pt'}: File too large\n")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]
    _, state = load_interrupted(run)
    assert len(state["history"]) == len((run / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, model_file: Path, digits: datasets.Dataset) -> None:
    image = tmp_path / "digit.png"
    image.write_bytes(digits.test.encoded(0))
    evaluate = ("evaluate", model_file, "--data", "digits", "--output", tmp_path / "output")
    assert limited(20_000, *evaluate) == (2, f"convoy: cannot write {tmp_path / 'output' / 'confusion.png'}: File too large")
    walkthrough = ("walkthrough", image, "--output", tmp_path / "tour")
    assert limited(1000, *walkthrough) == (2, f"convoy: cannot write to '{tmp_path / 'tour'}': File too large")


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
