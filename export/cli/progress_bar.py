"""A progress bar for work that reports through `export.progress.OnProgress`."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from export.progress import OnProgress


@contextlib.contextmanager
def progress_bar(console: Console | None = None) -> Iterator[OnProgress]:
    """Gives the callback, and shows the current step until the block ends. Shows nothing where the console is not a terminal.

    The default console is stderr, so that a program can read what is printed to stdout.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown: dict[str, TaskID] = {}  # the current step alone: each has its own clock for the time remaining

        def on_progress(step: str, done: int, total: int) -> None:
            if step not in shown:
                for task in shown.values():
                    bar.remove_task(task)
                shown.clear()
                shown[step] = bar.add_task(step, total=None)
            bar.update(shown[step], completed=done, total=total or None)

        yield on_progress
