"""The program `convoy` in this process, for what it says and the code that it ends with. `conftest.convoy` runs it as a process."""

import gc
import io
import subprocess
import sys
from pathlib import Path

import pytest

from service import cli


def convoy_here(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end. Not for `convoy serve`, past its arguments: that changes and forks its process."""
    printed, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    command, threshold = ["convoy", *map(str, arguments)], gc.get_threshold()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "stdout", printed)
        patch.setattr(sys, "stderr", errors)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            gc.set_threshold(*threshold)
    code = ended.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(command, code, _text(printed), _text(errors))


def one_line(result: "subprocess.CompletedProcess[str]") -> str:
    """The error of a command that must fail as every user error does: exit code 2 and one line on stderr."""
    assert result.returncode == 2, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("convoy: ")
    return lines[0]


def _text(written: io.TextIOWrapper) -> str:
    assert isinstance(written.buffer, io.BytesIO)
    return written.buffer.getvalue().decode()
