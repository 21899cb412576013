"""The progress bar: what a terminal shows, and that nothing else is written to."""

import io

from rich.console import Console

from export.cli.progress_bar import progress_bar


def test_a_terminal_shows_the_current_step_alone() -> None:
    shown = io.StringIO()
    with progress_bar(Console(file=shown, force_terminal=True, width=100)) as on_progress:
        on_progress("converting to ONNX", 0, 0)
        on_progress("comparing", 9, 10)
    first, *_, last = (frame for frame in shown.getvalue().split("\r") if "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in frame)
    assert "converting to ONNX" in first
    assert "%" not in first, "the total is unknown"
    assert "comparing" in last
    assert " 90 %" in last
    assert "converting" not in last


def test_a_file_gets_nothing() -> None:
    written = io.StringIO()
    with progress_bar(Console(file=written)) as on_progress:
        on_progress("reading training", 50, 200)
    assert written.getvalue() == ""
