"""The threads that answer HTTP requests: the event loop hands them work, and is told when it is done."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from service.errors import Unavailable
from service.vital_thread import vital_thread

log = logging.getLogger(__name__)


class RequestThreads:
    """At most so many threads, started as they are needed. All methods are the event loop's to call."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._unfinished = 0
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], None]) -> None:
        """Has a thread do `work`, which must not raise. `finished` must be called once it is done.

        Raises Unavailable if there is no thread, and the system has none.
        """
        if self._unfinished >= len(self._threads) < self._most:
            self._start_thread()
        self._unfinished += 1
        self._work.put(work)

    def finished(self) -> None:
        """Counts down what runs."""
        self._unfinished -= 1

    def close(self, timeout: float) -> None:
        """Ends the threads; waits for each at most for so long, in seconds."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _start_thread(self) -> None:
        try:
            thread = vital_thread(self._run, f"http-{len(self._threads) + 1}")
            thread.start()
        except (RuntimeError, MemoryError) as error:
            log.error("no thread http-%d can be started: %s", len(self._threads) + 1, error)
            if not self._threads:
                raise Unavailable("the server can start no thread for the request") from None
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # it holds a request
