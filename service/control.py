"""What is asked of one server and acts on the whole of it: of all its workers, where there are several.

Servicers are given a `Control`: the repository itself in a server that is alone; what asks the supervisor, which asks all workers,
in one of several.
"""

from typing import Protocol


class Control(Protocol):
    """Every method blocks until it is done."""

    def load(self, name: str) -> None:
        """See `Repository.load`."""

    def unload(self, name: str) -> None:
        """See `Repository.unload`."""
