"""Exits of the process that run no `finally`: what must not be left behind is taken away first.

A second signal, a thread that has died and a stop that hangs end the process by `os._exit`, which waits for no thread.
"""

import _thread
import logging
import os
import time
from collections.abc import Callable
from typing import NoReturn

_LOG_SECONDS = 1.0
"""How long the log may take: where nobody reads the pipe that it goes to, it never ends."""

_before_exit: list[Callable[[], None]] = []


def before_exit(call: Callable[[], None]) -> None:
    """Has `exit_at_once` call it first: from any thread or a signal handler, so it must not wait for a lock that others hold."""
    _before_exit.append(call)


def exit_at_once(code: int, log_reason: Callable[..., None] | None = None, *arguments: object) -> NoReturn:
    """Exits without waiting for threads: an ordinary exit waits for a model that computes, or aborts.

    `log_reason(*arguments)` writes a last line to the log.
    """
    logged: list[bool] = []

    def log() -> None:
        try:
            if log_reason is not None:
                log_reason(*arguments)
            logging.shutdown()
        finally:
            logged.append(True)

    try:
        for call in _before_exit:
            call()
        try:
            # No threading.Thread: its start takes a lock, which the code that a signal handler interrupts may hold.
            _thread.start_new_thread(log, ())
        except (RuntimeError, MemoryError):  # no thread can be started, which may be why the process exits
            log()
        deadline = time.monotonic() + _LOG_SECONDS
        while not logged and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        os._exit(code)
