"""Threads that a process cannot do without: it ends with them."""

import logging
import threading
from collections.abc import Callable

from service.process.process_exit import exit_at_once

log = logging.getLogger(__name__)


def vital_thread(run: Callable[[], object], name: str, *, daemon: bool = True) -> threading.Thread:
    """A thread without which the process would seem healthy and not answer: if `run` raises, the process exits with code 1.

    Whoever started the process replaces it: a supervisor, the kubelet, systemd.
    """

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody else would notice
            exit_at_once(1, _log_death, name, error)

    return threading.Thread(target=guarded, name=name, daemon=daemon)


def _log_death(name: str, error: BaseException) -> None:
    log.critical("the thread %s has ended, exiting at once: %s", name, type(error).__name__, exc_info=error)
