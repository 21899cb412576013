"""Loading a data set for a command: a progress bar meanwhile, a summary afterwards."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from export.cli.progress_bar import progress_bar
from export.progress import OnProgress
from export.text import first_of

if TYPE_CHECKING:
    from export.data.datasets import Dataset

_SHOWN_SKIPPED = 5
_SHOWN_LABELS = 10


def load_with_progress(console: Console, load: "Callable[[OnProgress], Dataset]", *, to_train: bool = False) -> "Dataset":
    """Calls `load` with a progress callback, and prints a summary of the data set to the console."""
    with progress_bar(console) as on_progress:
        dataset = load(on_progress)
    console.print(_summary(dataset, to_train=to_train), soft_wrap=True, markup=False)
    return dataset


def _summary(dataset: "Dataset", *, to_train: bool) -> str:
    """The sizes, the input and the files left out; for training also the augmentation and the classes."""
    spec = dataset.input
    colours = "gray" if spec.channels == 1 else "colour"
    lines = [
        f"{dataset.name}: {len(dataset.training)} training, {len(dataset.validation)} validation, {len(dataset.test)} test "
        f"images, {len(dataset.labels)} classes, {'x'.join(map(str, spec.shape))}",
        f"images are {dataset.original_format}; resized to {spec.height}x{spec.width}, {colours}, {spec.fitting}"
        f"{f'; in training {dataset.augmentation}' if to_train else ''}",
    ]
    if to_train:
        more = ", ..." if len(dataset.labels) > _SHOWN_LABELS else ""
        lines.append(f"classes: {', '.join(dataset.labels[:_SHOWN_LABELS])}{more}")
    if dataset.skipped:
        lines.append(f"left out: {len(dataset.skipped)} files and folders")
        reasons = _by_reason(dataset.skipped)
        lines += [f"  {line}" for line in reasons[:_SHOWN_SKIPPED]]
        if len(reasons) > _SHOWN_SKIPPED:
            lines.append(f"  and {len(reasons) - _SHOWN_SKIPPED} more reasons")
    return "\n".join(lines)


def _by_reason(skipped: Sequence[str]) -> list[str]:
    """A line for each reason: `path: reason`, or of several files `path and N more: reason`."""
    paths: dict[str, list[str]] = {}
    for line in skipped:
        path, _, reason = line.partition(": ")
        paths.setdefault(reason, []).append(path)
    return [f"{first_of(found, 1)}: {reason}" for reason, found in paths.items()]
