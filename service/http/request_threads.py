"""The threads that answer HTTP requests: the event loop hands them work, and is told when it is done."""

import logging
import threading
import time
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
        self._lacks_threads = False

    def submit(self, work: Callable[[], None]) -> None:
        """Has a thread do `work`, which must not raise. `finished` must be called once it is done.

        Raises Unavailable if there is no thread, and the system has none.
        """
        if self._unfinished >= len(self._threads) < self._most:
            self._start_thread()
        self._work.put(work)
        self._unfinished += 1

    def finished(self) -> None:
        """Counts down what runs."""
        self._unfinished -= 1

    def end(self) -> None:
        """Has the threads end, once they have done their work."""
        for _ in self._threads:
            self._work.put(None)

    def join(self, deadline: float) -> None:
        """Waits for the threads, until a time of `time.monotonic`. Those that are still at work then do not keep the process."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        try:
            thread = vital_thread(self._run, f"http-{len(self._threads) + 1}")
            thread.start()
        except (RuntimeError, MemoryError) as error:
            if not self._lacks_threads:  # and not again for each request
                log.error("no thread http-%d can be started: %s", len(self._threads) + 1, str(error) or type(error).__name__)
            self._lacks_threads = True
            if not self._threads:
                raise Unavailable("the server can start no thread for the request") from None
        else:
            self._lacks_threads = False
            self._threads.append(thread)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # it holds a request
