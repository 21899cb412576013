"""What is asked of one server and acts on the whole of it: of all its workers, where there are several.

Servicers are given a `Control`: the repository itself in a server that is alone; what asks the supervisor, which asks all workers,
in one of several.
"""

from collections.abc import Sequence
from typing import Protocol


class Control(Protocol):
    """Every method blocks until it is done, and is known here by its name and arguments of text."""

    def load(self, name: str) -> None:
        """See `Repository.load`."""

    def unload(self, name: str) -> None:
        """See `Repository.unload`."""


Call = tuple[str, ...]
"""The name of a method of Control, and its arguments."""

UNDOES = {"load": "unload"}
"""Which method leads back to where a worker begins, and from what."""


def remember(calls: Sequence[Call], call: Call) -> list[Call]:
    """What a worker that starts after `calls` and then `call` has to do to be as the others: nothing of what has been undone."""
    method, *about = call
    undone = UNDOES.get(method)
    kept = [old for old in calls if old != call and old != (undone, *about)]
    return kept if undone is not None else [*kept, call]
