"""Which files are those of a version."""

from pathlib import Path

import pytest

from service.engine.version_files import VersionFiles
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
