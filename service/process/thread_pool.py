"""A pool of threads in which every job has one outcome: `submit` takes it, and it runs once; or raises, and it never runs.

`concurrent.futures.ThreadPoolExecutor` queues a job before it starts a thread for it. Where the system has no thread, its `submit`
raises, and another of its threads runs the job all the same: whoever submitted it would answer a request twice.
"""

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from service.errors import Unavailable
from service.process.vital_thread import vital_thread

log = logging.getLogger(__name__)

T = TypeVar("T")


class ThreadPool:
    """At most so many threads, started as they are needed. Thread-safe."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], object]] | None] = SimpleQueue()  # None ends a thread
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False
        self._lacks_threads = False

    def submit(self, job: Callable[[], T], then: Callable[[T], object] = lambda _: None) -> None:
        """Has a thread run a job, after those before it, and give what it returns to `then`. What either raises is logged.

        While `then` runs, its thread counts as free: a job that comes of it waits for that thread, and starts no other.

        Raises Unavailable if the pool is closed, or the system has no thread for it.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("the server is stopping")
            if self._unfinished >= len(self._threads) < self._most:
                self._start_thread()
            self._jobs.put((job, then))
            self._unfinished += 1

    def close(self, timeout: float | None = None) -> None:
        """Takes no more jobs. Waits until the jobs before have run, at most so long in all, in seconds."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _start_thread(self) -> None:
        """Raises Unavailable if there is no thread at all; else the job waits for one of those that there are."""
        try:
            thread = vital_thread(self._run, f"{self._name}-{len(self._threads) + 1}")
            thread.start()
        except (RuntimeError, MemoryError) as error:
            if not self._lacks_threads:  # and not again for each request
                reason = str(error) or type(error).__name__
                log.error("no thread %s-%d can be started: %s", self._name, len(self._threads) + 1, reason)
            self._lacks_threads = True
            if not self._threads:
                raise Unavailable("the server can start no thread for the request") from None
        else:
            self._lacks_threads = False
            self._threads.append(thread)

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            self._do(*work)
            del work  # it holds a request

    def _do(self, job: Callable[[], Any], then: Callable[[Any], object]) -> None:
        try:
            try:
                result = job()
            finally:
                with self._lock:
                    self._unfinished -= 1
            then(result)
        except Exception:
            log.exception("a job of the threads %s failed", self._name)
