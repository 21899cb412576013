"""Progress bars: of work that reports through `export.progress.OnProgress`, and of a training run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from export.progress import OnProgress

if TYPE_CHECKING:
    from export.training.loop import TrainingProgress


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


@contextlib.contextmanager
def training_bar(console: Console) -> Iterator["Callable[[TrainingProgress], None]"]:
    """Gives the callback, and shows the steps, loss, accuracy and speed of a training run until the block ends."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("accuracy {task.fields[accuracy]:6.2%}"), TextColumn("{task.fields[speed]:,.0f} images/s"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=None, loss=float("nan"), accuracy=0.0, speed=0.0)

        def on_step(step: "TrainingProgress") -> None:
            bar.update(
                task, completed=step.done, total=step.total, loss=step.loss, accuracy=step.accuracy, speed=step.images_per_second
            )

        yield on_step
