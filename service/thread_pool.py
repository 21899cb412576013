"""A pool of threads in which every job has one outcome: `submit` takes it, and it runs once; or raises, and it never runs.

`concurrent.futures.ThreadPoolExecutor` queues a job before it starts a thread for it. Where the system has no thread, its `submit`
raises, and another of its threads runs the job all the same: whoever submitted it would answer a request twice.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from service.errors import Unavailable
from service.vital_thread import vital_thread

log = logging.getLogger(__name__)


class ThreadPool:
    """At most so many threads, started as they are needed. Thread-safe."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()  # None ends a thread
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False
        self._lacks_threads = False

    def submit(self, job: Callable[[], object]) -> None:
        """Has a thread run a job, after those before it. What it raises is logged.

        Raises Unavailable if the pool is closed, or the system has no thread for it.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("the server is stopping")
            if self._unfinished >= len(self._threads) < self._most:
                self._start_thread()
            self._jobs.put(job)
            self._unfinished += 1

    def close(self, timeout: float | None = None) -> None:
        """Takes no more jobs. Waits for each thread at most for so long, in seconds, until the jobs before have run."""
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _start_thread(self) -> None:
        """Raises Unavailable if there is no thread at all; else the job waits for one of those that there are."""
        try:
            thread = vital_thread(self._run, f"{self._name}-{len(self._threads) + 1}")
            thread.start()
        except (RuntimeError, MemoryError) as error:
            if not self._lacks_threads:  # and not again for each request
                log.error("no thread %s-%d can be started: %s", self._name, len(self._threads) + 1, error)
            self._lacks_threads = True
            if not self._threads:
                raise Unavailable("the server can start no thread for the request") from None
        else:
            self._lacks_threads = False
            self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job of the threads %s failed", self._name)
            del job  # it holds a request
            with self._lock:
                self._unfinished -= 1
