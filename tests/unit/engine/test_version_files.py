"""Which files are those of a version, and when settings are no longer being written."""

import os
import time
from pathlib import Path

import pytest

from service.engine import version_files
from service.engine.version_files import SettingsFiles, VersionFiles
from service.model.files import file_state


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with others beside it."""
    (tmp_path / "deeper").mkdir()
    for name in ("model.onnx", "a.bin", "deeper/b.bin"):
        (tmp_path / name).write_text(name)
    return tmp_path / "model.onnx"


def test_the_files_of_a_whole_folder_are_all_in_and_below_it(model: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    files = (model, tmp_path / "a.bin", tmp_path / "deeper" / "b.bin")
    assert VersionFiles(whole_folders=True).states(model) == tuple(map(file_state, files))


@pytest.mark.parametrize("place", ["link", "deeper/link"])
@pytest.mark.parametrize("target", ["x" * 300, "nowhere", "link"], ids=["too long", "broken", "to itself"])
def test_a_link_that_cannot_be_followed_is_a_file_that_is_missing(model: Path, tmp_path: Path, target: str, place: str) -> None:
    (tmp_path / place).symlink_to(target)
    states = VersionFiles(whole_folders=True).states(model)
    assert len(states) == 4
    assert states.count(None) == 1


def test_a_folder_that_is_gone_has_no_files(tmp_path: Path) -> None:
    assert VersionFiles(whole_folders=True).states(tmp_path / "1" / "model.onnx") == (None,)


@pytest.mark.parametrize("change", ["written", "written with a time to come", "deleted"])
def test_settings_that_change_in_place_are_not_taken_at_once(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serving.toml"
    path.write_text("max_batch_size = 8")
    os.utime(path, (1, 1))
    files = SettingsFiles()
    files.states([path])
    assert files.are_settled(), "as old as its time says"
    if change == "deleted":
        path.unlink()
    else:
        path.write_text("max_batch_size = 9")
    if "to come" in change:
        os.utime(path, (time.time() + 3600,) * 2)
    files.states([path])
    assert not files.are_settled()
    monkeypatch.setattr(version_files, "SETTINGS_SETTLE_SECONDS", 0.0)
    files.states([path])
    assert files.are_settled()


def test_settings_moved_into_place_are_whole(tmp_path: Path) -> None:
    path, new = tmp_path / "serving.toml", tmp_path / "new"
    path.write_text("max_batch_size = 8")
    files = SettingsFiles()
    files.states([path])
    new.write_text("max_batch_size = 9")
    os.utime(new, (1, 1))
    new.rename(path)
    files.states([path])
    assert files.are_settled()
