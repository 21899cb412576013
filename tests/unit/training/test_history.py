"""The figures of a run by epoch."""

import sys
from pathlib import Path

import pytest

from export.training import history
from export.training.history import EpochMetrics
from service.errors import UserError
from tests.conftest import full_disk

EPOCHS = [EpochMetrics(number, 0.5, 0.8, 0.25 * number, 0.9, 1000.0, 1e-3, 2.0) for number in (1, 2)]


def test_figures_that_cannot_be_written_are_an_error_and_those_before_are_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    curves, board = tmp_path / "curves.png", tmp_path / "tensorboard"
    write = history.tensorboard_writer(board)
    write(EPOCHS[0])
    history.write_metrics(EPOCHS[:1], tmp_path)
    history.plot_curves(EPOCHS[:1], curves)
    before = (tmp_path / "metrics.jsonl").read_bytes(), curves.read_bytes()
    with full_disk():
        with pytest.raises(UserError, match=rf"^cannot write {tmp_path}/metrics.jsonl: File too large$"):
            history.write_metrics(EPOCHS, tmp_path)
        with pytest.raises(UserError, match=rf"^cannot write {curves}: File too large$"):
            history.plot_curves(EPOCHS, curves)
        with pytest.raises(UserError, match=rf"^cannot write {board}: File too large$"):
            write(EPOCHS[1])
    assert ((tmp_path / "metrics.jsonl").read_bytes(), curves.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl", "tensorboard"]
    assert capfd.readouterr().err == ""


def test_tensorboard_has_the_figures_and_its_absence_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write = history.tensorboard_writer(tmp_path)
    for epoch in EPOCHS:
        write(epoch)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/validation")] == [(1, 0.25), (2, 0.5)]
    assert "accuracy/training" in events.Tags()["scalars"]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    with pytest.raises(UserError, match="needs the package tensorboard"):
        history.tensorboard_writer(tmp_path)
