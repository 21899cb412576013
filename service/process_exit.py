"""Exits of the process that run no `finally`: what must not be left behind is taken away first.

A second signal, a thread that has died and a stop that hangs end the process by `os._exit`, which waits for no thread.
"""

import logging
import os
import threading
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

    def log() -> None:
        if log_reason is not None:
            log_reason(*arguments)
        logging.shutdown()

    try:
        for call in _before_exit:
            call()
        logging_thread = threading.Thread(target=log, name="log-exit", daemon=True)
        try:
            logging_thread.start()
        except (RuntimeError, MemoryError):  # no thread can be started, which may be why the process exits
            log()
        else:
            logging_thread.join(_LOG_SECONDS)
    finally:
        os._exit(code)
