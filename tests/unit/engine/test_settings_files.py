"""Settings are taken when their files are no longer being written, and as they were at one moment."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from service.engine import settings_files
from service.engine.settings_files import SettingsFiles
from service.errors import UserError
from service.triton.settings import read_settings


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A `serving.toml` that was written long ago."""
    path = tmp_path / "pets" / "serving.toml"
    path.parent.mkdir()
    path.write_text("max_batch_size = 8")
    os.utime(path, (1, 1))
    return path


@pytest.fixture
def files(policy: Path) -> SettingsFiles:
    return SettingsFiles(policy.parents[1], "pets", None)


def batch_size(files: SettingsFiles, *, wait: bool) -> int | None:
    settings = files.read(wait=wait)
    return None if settings is None else settings.policy.max_batch_size


@pytest.mark.parametrize("change", ["written", "written with a time to come", "deleted"])
def test_a_change_in_place_is_not_taken_at_once(
    files: SettingsFiles, policy: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batch_size(files, wait=True) == 8, "as old as its time says"
    if change == "deleted":
        policy.unlink()
    else:
        policy.write_text("max_batch_size = 9")
    if "to come" in change:
        os.utime(policy, (time.time() + 3600,) * 2)
    assert batch_size(files, wait=True) is None
    changed = 64 if change == "deleted" else 9
    assert batch_size(files, wait=False) == changed, "who asks for it says that the files are complete"
    monkeypatch.setattr(settings_files, "SETTLE_SECONDS", 0.0)
    assert batch_size(files, wait=True) == changed


def test_what_is_moved_into_place_is_whole(files: SettingsFiles, policy: Path) -> None:
    assert batch_size(files, wait=True) == 8
    new = policy.with_name("new")
    new.write_text("max_batch_size = 9")
    os.utime(new, (1, 1))
    new.rename(policy)
    assert batch_size(files, wait=True) == 9


@pytest.mark.parametrize("torn", ["max_batch_size = 8\naliases = {stable = 1}", "max_batch_size = "])
def test_what_changes_while_it_is_read_is_read_again(
    files: SettingsFiles, policy: Path, torn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = ["max_batch_size = 9\naliases = {stable = 1}", None]

    def read_as_it_is_written(*place: Any) -> Any:
        text = after.pop(0) if after else None
        if text is None:
            return read_settings(*place)
        policy.write_text(torn)
        try:
            return read_settings(*place)
        finally:
            policy.write_text(text)

    monkeypatch.setattr(settings_files, "read_settings", read_as_it_is_written)
    settings = files.read(wait=False)
    assert settings is not None
    assert (settings.policy.max_batch_size, settings.policy.aliases) == (9, {"stable": 1})


def test_what_is_wrong_and_stays_so_is_an_error(files: SettingsFiles, policy: Path) -> None:
    policy.write_text("max_batch_size = 0")
    with pytest.raises(UserError, match=r"pets/serving\.toml: max_batch_size"):
        files.read(wait=False)
