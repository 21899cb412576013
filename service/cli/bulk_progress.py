"""How far a run of `convoy classify` is, and what came of it, on stderr."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from service.bulk.pictures import LeftOut
from service.bulk.run import Rows

_LABELS_SHOWN = 10
_UPDATE_SECONDS = 0.1


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} images/s")


@contextlib.contextmanager
def progress(done: int, total: Callable[[], int | None]) -> Iterator[Callable[[], None]]:
    """Gives what to call for each picture; shows a bar until the block ends, if stderr is a terminal. `done` are done already.

    `total` says how many there are in all, or None if that is not known. It runs beside, as it may take long.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, completed=done)
        threading.Thread(target=lambda: bar.update(task, total=total()), name="count-pictures", daemon=True).start()
        count, due = done, 0.0

        def advance() -> None:
            nonlocal count, due
            count += 1
            if time.monotonic() >= due:
                due = time.monotonic() + _UPDATE_SECONDS
                bar.update(task, completed=count)

        yield advance


def summary(rows: Rows, done: int, seconds: float, left_out: LeftOut, where: str) -> None:
    """Prints what came of a run: counts, speed, the most frequent labels, what was left out."""
    count = rows.classified + rows.errors
    text = f"{count:,} picture{'s' if count != 1 else ''} in {seconds:,.1f} s ({count / max(seconds, 1e-9):,.0f} images/s): "
    text += f"{rows.classified:,} classified, {rows.errors:,} error{'' if rows.errors == 1 else 's'}"
    if done:
        text += f"; {done:,} were done before"
    click.echo(f"{text}{where}", err=True)
    if rows.labels:
        shown = ", ".join(f"{label} {times:,}" for label, times in rows.labels.most_common(_LABELS_SHOWN))
        more = len(rows.labels) - _LABELS_SHOWN
        click.echo(f"labels: {shown}{f', and {more:,} more' if more > 0 else ''}", err=True)
    if left_out.counts:
        click.echo(f"left out in folders and archives: {left_out}", err=True)
