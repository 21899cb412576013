"""A system that has no more threads, as at a limit of processes (`pids.max`, `RLIMIT_NPROC`)."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_more_threads(*names: str) -> Iterator[list[str]]:
    """Has no thread whose name begins with one of these started, no thread at all without any. Collects their names."""
    refused: list[str] = []
    start: Callable[[threading.Thread], None] = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        name = "timer" if isinstance(thread, threading.Timer) else thread.name
        if names and not name.startswith(names):
            start(thread)
            return
        refused.append(name)
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        yield refused
