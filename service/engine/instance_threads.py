"""The threads that run a model's batches: one is started when a batch finds none idle, and ends when none has come for a while.

So a server has threads for the models that are busy, not for all that it holds. A batch is handed over only when an instance is
idle, so there are never more threads than instances.
"""

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from service.process.vital_thread import vital_thread

log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""After this a thread without work ends."""

T = TypeVar("T")


class InstanceThreads(Generic[T]):
    """Each thread runs `serve`, which calls `next` for work, and `rest` when it is done with it, until `next` returns None."""

    def __init__(self, name: str, serve: Callable[[], object]) -> None:
        self._name = name
        self._serve = serve
        self._lock = threading.Lock()
        self._inbox: SimpleQueue[T | None] = SimpleQueue()
        self._threads: dict[int, threading.Thread] = {}  # by number, from 1
        self._idle = 0  # threads that wait, less the work in the inbox

    def hand_over(self, work: T) -> bool:
        """Wakes or starts a thread for the work; False if the system has no thread for it."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif not self._start():
                return False
        self._inbox.put(work)
        return True

    def next(self) -> T | None:
        """For a thread: waits for work. None if it is to end."""
        while True:
            try:
                return self._inbox.get(timeout=IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._idle:  # else work is on its way to this thread
                        self._idle -= 1
                        self._threads = {n: each for n, each in self._threads.items() if each is not threading.current_thread()}
                        return None

    def rest(self) -> None:
        """For a thread: it is done with its work."""
        with self._lock:
            self._idle += 1

    def close(self) -> None:
        """Ends the threads, and waits for them. Only when no work comes any more."""
        with self._lock:
            threads = list(self._threads.values())
        for _ in threads:
            self._inbox.put(None)
        for thread in threads:
            thread.join()
        self._serve = _closed  # it refers back to who holds this

    def _start(self) -> bool:
        number = next(number for number in range(1, len(self._threads) + 2) if number not in self._threads)
        thread = vital_thread(self._serve, f"{self._name}-{number}")
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            log.error("no thread %s can be started: %s", thread.name, error)
            return False
        self._threads[number] = thread
        return True


def _closed() -> None:
    raise RuntimeError("work was handed over after the end")
