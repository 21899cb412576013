"""HTTP requests that have come to the supervisor, passed on to its workers.

Each worker has its turn. Another one is asked instead of one that does not respond, or has exited, if that is safe: if it cannot
have begun with the request, if the request only reads, or if the worker was stopped from outside while it had it. A request
that a worker died of is not given to the next one, which it might end too: its client is told to try again.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from service.errors import Unavailable
from service.workers.ipc import IpcClosed, IpcNotSent
from service.workers.process import WorkerProcess

LIMIT_SECONDS = 3600.0
"""Beyond every load and deadline: only an answer that will never come takes longer."""

_LOOK_SECONDS = 0.25
"""How often the worker that has the request is looked at."""

_READING = ("GET", "HEAD", "OPTIONS")


class HttpAnswer(NamedTuple):
    """What `Worker._http` returns: `route` is the name under which the request is counted."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    route: list[str]


class Forwarder:
    """Has a worker answer each request. Thread-safe."""

    def __init__(self, workers: Callable[[], list[WorkerProcess]]) -> None:
        """`workers` returns those that may be asked; it raises Unavailable if there is none."""
        self._workers = workers
        self._turns = itertools.count()

    def answer(self, request: Mapping[str, Any], body: bytes) -> HttpAnswer:
        """The answer to a request, given its WSGI variables. Raises ConvoyError, mostly Unavailable, if there is none."""
        asked: list[WorkerProcess] = []
        while True:
            workers = [worker for worker in self._workers() if worker not in asked]
            if not workers:
                raise Unavailable("no worker responds")
            worker = workers[next(self._turns) % len(workers)]
            asked.append(worker)
            answer = self._ask(worker, request, body, others=len(workers) > 1)
            if answer is not None:
                return answer

    def _ask(self, worker: WorkerProcess, request: Mapping[str, Any], body: bytes, *, others: bool) -> HttpAnswer | None:
        """One worker's answer; None if another is to be asked."""
        reads = request["REQUEST_METHOD"] in _READING
        reply = worker.call("http", request, body)
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                return HttpAnswer(*reply.result(_LOOK_SECONDS))
            except IpcNotSent:
                return None
            except IpcClosed:
                if reads:
                    return None
                raise Unavailable("the worker that had the request has exited") from None
            except TimeoutError:
                if others and worker.heartbeat.silent and (reads or (worker.heartbeat.stopped and _infers(request))):
                    return None
                if time.monotonic() > deadline:
                    raise Unavailable(f"no answer within {LIMIT_SECONDS:g} s") from None


def _infers(request: Mapping[str, Any]) -> bool:
    """Whether it changes nothing: a load, or shared memory, is for every worker, the stopped one as well."""
    path: str = request.get("PATH_INFO", "")
    return path.endswith("/infer") or path.startswith(("/page/classify/", "/page/explain/"))
