"""Threads that run the jobs of clients, those of each principal in turn: who has many waits behind nobody but himself."""

import threading
from collections import deque
from collections.abc import Callable

from service.process.thread_pool import ThreadPool
from service.requests.principal import Principal


class FairThreads:
    """A `ThreadPool` with a line for each principal."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPool(threads, name)
        self._lock = threading.Lock()
        self._waiting: dict[Principal, deque[Callable[[], None]]] = {}  # whose turn is next first

    def submit(self, principal: Principal, job: Callable[[], None]) -> None:
        """Has a thread run a job in its principal's turn. Raises as `ThreadPool.submit`."""
        with self._lock:  # which a thread waits for before it looks for the job
            self._threads.submit(self._run_next)
            self._waiting.setdefault(principal, deque()).append(job)

    def close(self) -> None:
        """Waits until every job has run."""
        self._threads.close()

    def _run_next(self) -> None:
        with self._lock:
            principal = next(iter(self._waiting))
            jobs = self._waiting.pop(principal)
            job = jobs.popleft()
            if jobs:
                self._waiting[principal] = jobs
        job()
