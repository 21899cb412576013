"""`convoy train`: its help, one training at a time in a folder, and Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.cli.dataset_loading import _by_reason
from export.cli.output_folder import lock_run
from export.cli.train import train
from export.networks.architectures import NETWORKS
from export.training.checkpoint import load_checkpoint
from export.training.recipes import RECIPES


def test_help_shows_every_option_once_and_the_recipes_and_networks() -> None:
    shown = CliRunner().invoke(train, ["--help"]).output
    for option in train.params:
        assert len(re.findall(rf"^  {option.opts[0]}(?![\w-])", shown, re.MULTILINE)) == 1, option.name
    # `-h` comes from the whole program, which another test may have run before.
    assert re.search(r"^  (?:-h, )?--help(?![\w-])", shown, re.MULTILINE)
    for name in (*RECIPES, *NETWORKS):
        assert f"\n  {name} " in shown


def test_options_that_contradict_each_other_or_the_data_are_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(b"")
    for given, message in {
        "--fit pad --resize stretch": "--fit pad is short for --resize pad: one of the two is accepted",
        "--crop 224": "--crop 224 needs --resize (stretch, pad or cover",
        "--crop-pct 0.9 --fit pad": "--crop-pct says the resize too: it is accepted without --resize",
        "--crop-pct 0.9 --image-size 20x24": "--crop-pct is for a square input, and this one is 20x24",
        "--crop-pct 2": "2.0 is not in the range 0.01<=x<=1",
        "--network nowhere.py:Net": "--network nowhere.py:Net: no such file: ",
        f"--weights {tmp_path}/other.pth": "not weights that can be read",
        "--mean imagenet": "--mean: 3 numbers for an input of 1 channels, gray; --channels changes it",
        "--channels rgb --std 0.5": "--std: 1 numbers for an input of 3 channels, colour; --channels changes it",
        "--mean 123.7,116.3,103.5": "each from 0 to 1, for pixels of 0 to 1.",
        "--std 0": "each from 0 (not itself) to 1, for pixels of 0 to 1.",
        "--class-weights auto --balanced-sampling": "both make up for classes that are rare: one of them is accepted",
        f"--class-weights {tmp_path}/none.csv": "No such file or directory",
        "--network article-cnn:head=sigmoid": "article-cnn: head=sigmoid is for two classes, and these data have 10",
        f"--init-from {tmp_path} --weights {tmp_path}/other.pth": "--init-from and --weights both say what to start from",
        f"--init-from {tmp_path}": "has no checkpoint.pt: it is not a run of `convoy train`",
        "--freeze layer1": "--freeze layer1: no weight has a name that starts so; they start with conv1, ",
    }.items():
        output = tmp_path / "run"
        done = CliRunner().invoke(train, ["--data", "digits", "--output", str(output), *given.split()])
        said = done.output + str(done.exception)
        assert done.exit_code, given
        assert message in " ".join(said.split()), given
        assert not output.exists(), given


def test_a_head_for_other_classes_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    for label in ("cat", "dog", "owl"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "1.png").write_bytes(b"not a picture: reading it would be another error")
    (tmp_path / "pets" / "empty").mkdir()
    given = ["--data", str(tmp_path / "pets"), "--network", "article-cnn:head=sigmoid", "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(train, given)
    assert str(done.exception) == "article-cnn: head=sigmoid is for two classes, and these data have 3"


def test_what_is_left_out_is_said_by_reason() -> None:
    skipped = [f"pets/{number}.heic: a HEIC image, which is not decoded here" for number in range(40)]
    assert _by_reason([*skipped, "pets/a.txt: not named like an image"]) == [
        "pets/0.heic and 39 more: a HEIC image, which is not decoded here",
        "pets/a.txt: not named like an image",
    ]


def test_a_finished_run_is_trained_on(tmp_path: Path, run: Path) -> None:
    begun = load_checkpoint(run)
    given = ["--data", "digits", "--init-from", str(run), "--epochs", "1", "--lr", "1e-4", "--output"]
    done = CliRunner().invoke(train, [*given, str(tmp_path / "on")])
    assert done.exit_code == 0, done.output
    assert re.search(r"checkpoint\.pt: (\d+) of the network's \1 tensors loaded; 0 of the file not used", done.output)
    [line] = map(json.loads, (tmp_path / "on" / "metrics.jsonl").read_text().splitlines())
    assert line["training_accuracy"] > 0.9, "of its first epoch"
    after = load_checkpoint(tmp_path / "on")
    assert after.input == begun.input
    assert (*after.mean, *after.std) == pytest.approx((*begun.mean, *begun.std))
    assert (after.settings.learning_rate, after.settings.head_learning_rate) == (1e-4, 0.0)
    assert after.settings.network == begun.settings.network
    assert "checkpoint.pt (sha256 " in after.settings.weights
    refused = CliRunner().invoke(train, [*given, str(tmp_path / "on"), "--resume"])
    assert "is finished: there is nothing to resume" in str(refused.exception)


def test_a_run_has_one_training_at_a_time(tmp_path: Path) -> None:
    lock_run(tmp_path)
    holding = "import sys; from pathlib import Path; from export.cli.output_folder import lock_run; lock_run(Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", holding, tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert "another training writes to" in other.stderr
    subprocess.run([sys.executable, "-c", holding, tmp_path / ".."], timeout=60, check=True)


def test_ctrl_c_leaves_a_checkpoint_and_prints_a_command_that_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--data", "digits", "--epochs", "6", "--output", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoint.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "holds the epoch kept so far" in output
    assert errors.split("\n") == ["", "convoy: interrupted", ""]  # the first ends the line that ^C was typed on
    assert load_checkpoint(run).epoch >= 1
    said = next(line for line in output.splitlines() if line.startswith("  convoy train "))
    assert said.endswith("--resume")
    resumed = CliRunner().invoke(train, said.split()[2:])
    assert resumed.exit_code == 0, resumed.output
    assert "epoch 1/6" not in resumed.output
    assert "epoch 6/6" in resumed.output
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(1, 7))


def test_one_flag_trains_with_the_settings_of_the_articles(tmp_path: Path) -> None:
    arguments = ["--data", "digits", "--network", "twelve-filters", "--recipe", "article", "--epochs", "1"]
    done = CliRunner().invoke(train, [*arguments, "--output", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    found = load_checkpoint(tmp_path / "run")
    assert (found.settings.schedule, found.settings.learning_rate, found.settings.batch_size) == ("constant", 1e-3, 64)
    assert (found.mean, found.std, found.augmentation) == ((0.0,), (255.0,), "not shifted, not mirrored")
    refused = CliRunner().invoke(train, [*arguments, "--output", str(tmp_path / "other"), "--recipe", "own"])
    assert refused.exit_code == 2
    assert "'own' is not 'article'" in refused.output
