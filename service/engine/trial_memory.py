"""The memory of all trials that run side by side: what is free has to be enough for them together."""

import contextlib
import threading
from collections.abc import Callable, Iterator

SHARE_OF_FREE = 0.9

_LOOK_SECONDS = 0.5


class TrialMemory:
    """Trials take their limit of memory from it before they begin, and wait until there is room. Thread-safe.

    What they use already is no longer free and counts twice, so rather fewer of them run side by side than could. One alone always
    has room: a limit that is set by hand may be more than is free. Who waits is passed by those that need less.
    """

    def __init__(self, free_bytes: Callable[[], int]) -> None:
        """`free_bytes` says how much memory is free now."""
        self._free_bytes = free_bytes
        self._given_back = threading.Condition()
        self._taken = 0

    @contextlib.contextmanager
    def taken(self, size: int, check: Callable[[], None]) -> Iterator[None]:
        """Waits for room for so many bytes, and holds them. Raises what `check` does, which is called now and then meanwhile."""
        with self._given_back:
            while self._taken and self._taken + size > SHARE_OF_FREE * self._free_bytes():
                self._given_back.wait(_LOOK_SECONDS)
                check()
            self._taken += size
        try:
            yield
        finally:
            with self._given_back:
                self._taken -= size
                self._given_back.notify_all()
