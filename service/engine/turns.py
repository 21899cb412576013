"""Each model has its turn: tasks on different models run side by side, those on one model one after the other.

Tasks that nobody asked for wait until fewer than `side_by_side` models have their turn. A model that keeps its turn for long,
because its file is large or its graph never ends, no longer counts among them: the others go on. A task that a request asks for
waits for its own model alone.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from service.errors import forget_traceback

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""A model that has had its turn for longer does not keep others from theirs."""

MAX_THREADS = 64


class _Task(NamedTuple):
    run: Callable[[], Any]
    future: Future[Any]


class Turns:
    """Runs tasks on models, on threads that end when nothing is left to do. Thread-safe."""

    def __init__(self, side_by_side: int) -> None:
        self._side_by_side = side_by_side
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._tasks: dict[str, deque[_Task]] = {}  # that have not begun, by model
        self._queue: dict[str, None] = {}  # models that wait for their turn, in order
        self._since: dict[str, float] = {}  # when the task that runs has begun, by model
        self._closed = False

    def submit(self, name: str, run: Callable[[], Any], *, at_once: bool = False) -> Future[Any]:
        """Has `run` called when the model has its turn. With `at_once` it waits for no other model.

        Returns:
            A future of what `run` returns. It is cancelled if `close` comes first.
        """
        task = _Task(run, Future())
        with self._lock:
            if self._closed:
                task.future.cancel()
                return task.future
            self._tasks.setdefault(name, deque()).append(task)
            if name not in self._since:
                self._queue.setdefault(name)
                if at_once:
                    self._start(name)
            self._start_waiting()
        return task.future

    def tend(self) -> None:
        """Lets others have their turn besides those that keep theirs for long. To be called now and then while some wait."""
        with self._lock:
            self._start_waiting()

    def running_seconds(self, name: str) -> float:
        """How long the task of a model that runs has been running; 0 if none does."""
        since = self._since.get(name)
        return 0.0 if since is None else time.monotonic() - since

    def close(self, seconds: float) -> bool:
        """Drops what has not begun, and waits up to `seconds` for what has. Returns whether all of it has ended."""
        with self._lock:
            self._closed = True
            dropped = [task for tasks in self._tasks.values() for task in tasks]
            self._tasks.clear()
            self._queue.clear()
        for task in dropped:
            task.future.cancel()
        with self._lock:
            return self._idle.wait_for(lambda: not self._since, seconds)

    def _start_waiting(self) -> None:
        while self._queue and self._has_place() and self._start(next(iter(self._queue))):
            pass

    def _has_place(self) -> bool:
        now = time.monotonic()
        patient = sum(now - since < PATIENCE_SECONDS for since in self._since.values())
        return patient < self._side_by_side and len(self._since) < MAX_THREADS

    def _start(self, name: str) -> bool:
        """Gives a model that waits its turn. False if no thread can be started: it waits on, until `tend` or the end of another."""
        self._since[name] = time.monotonic()
        try:
            threading.Thread(target=self._run, args=(name,), name="load-models", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            del self._since[name]
            log.warning("model %s has to wait: %s", name, error)
            return False
        del self._queue[name]
        return True

    def _run(self, name: str | None) -> None:
        while name is not None:
            with self._lock:
                tasks = self._tasks.get(name)
                task = tasks.popleft() if tasks else None
                self._since[name] = time.monotonic()
            if task is not None and task.future.set_running_or_notify_cancel():
                _carry_out(name, *task)
            task = None
            with self._lock:
                name = self._next(name)

    def _next(self, name: str) -> str | None:
        """The model whose task this thread runs next; None if there is nothing to do for it."""
        if self._tasks.get(name):
            return name
        self._tasks.pop(name, None)
        del self._since[name]
        self._idle.notify_all()
        if not self._queue or not self._has_place():
            return None
        following = next(iter(self._queue))
        del self._queue[following]
        self._since[following] = time.monotonic()
        return following


def _carry_out(name: str, run: Callable[[], Any], future: Future[Any]) -> None:
    try:
        result = run()
    except Exception as error:
        log.exception("model %s: a task on it failed", name)
        forget_traceback(error)  # which has this future, which has the error
        future.set_exception(error)
    else:
        future.set_result(result)
