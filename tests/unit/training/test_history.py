"""The figures of a run by epoch."""

import sys
from pathlib import Path

import pytest

from export.training import history
from export.training.history import EpochMetrics
from service.errors import UserError


def test_tensorboard_has_the_figures_and_its_absence_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write = history.tensorboard_writer(tmp_path)
    for number in (1, 2):
        write(EpochMetrics(number, 0.5, 0.8, 0.25 * number, 0.9, 1000.0, 1e-3, 2.0))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/validation")] == [(1, 0.25), (2, 0.5)]
    assert "accuracy/training" in events.Tags()["scalars"]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    with pytest.raises(UserError, match="needs the package tensorboard"):
        history.tensorboard_writer(tmp_path)
