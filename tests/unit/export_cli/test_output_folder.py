"""The folder of `--output`: which are refused before any work, and why."""

import re
from pathlib import Path

import pytest

from export.cli.output_folder import check_output_folder, create_output_folder
from service.errors import UserError
from tests.conftest import full_disk


def test_a_new_or_empty_folder_is_taken_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "a" / "deep" / "one"):
        check_output_folder(folder)
        assert not folder.exists()
        create_output_folder(folder)
        create_output_folder(folder)
        assert list(folder.iterdir()) == []


def test_what_cannot_be_written_to_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for name, reason in {
        "file": "exists and is not an empty folder: nothing is overwritten, choose another",
        "full": "exists and is not an empty folder: nothing is overwritten, choose another",
        "file/below": f"cannot write to '{tmp_path}/file': Not a directory",
        "broken": f"cannot write to '{tmp_path}/broken': No such file or directory",
        "broken/below": f"cannot write to '{tmp_path}/broken': No such file or directory",
        "/proc/below": "cannot write to '/proc': No such file or directory",
    }.items():
        with pytest.raises(UserError, match=rf"^--output '{tmp_path / name}':? {re.escape(reason)}$"):
            create_output_folder(tmp_path / name)


def test_a_full_disk_is_found_before_the_work(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=rf"^--output '{tmp_path}/new': cannot write to '{tmp_path}': File too large$"):
        check_output_folder(tmp_path / "new")
