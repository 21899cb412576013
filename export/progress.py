"""The callbacks by which long work reports its progress. What shows them is in cli/."""

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Called with the step, how much of it is done, and how much there is; 0 if that is not known."""

OnCount = Callable[[int, int], None]
"""Progress within one step, done and total: `partial(on_progress, step)`."""


def ignore_progress(*_: object) -> None:
    """The default of both: does nothing."""
