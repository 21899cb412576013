"""Control requests: load and unload models, register and unregister shared memory, on one server or on all of its workers.

The servicers and REST are given a `Control`: `LocalControl` in a single server (`server.py`), `BroadcastControl` in a worker
(`workers/worker.py`), which has the supervisor repeat the call on every worker, or `ForbiddenControl`.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from service.errors import DeadlineExceeded, InvalidRequest, QueueFull, Unimplemented

NO_CUDA = "CUDA shared memory is not offered; system shared memory is"
NO_TRACE_SETTINGS = "trace settings are not offered: traces are OpenTelemetry's, set up when the server starts"
NO_LOG_SETTINGS = "log settings are not offered: the log is set up when the server starts"

MAX_CALLS = 8
"""So many control requests are carried out at a time. They may wait for models to be loaded, each on a thread."""


class Control(Protocol):
    """Every method blocks until it is done, and raises RequestError or LoadError if it fails.

    `seconds` is how long to wait at most, if that is less than the server's own limit, `ServerConfig.control_seconds`.
    """

    def load(self, name: str, seconds: float | None = None) -> None:
        """See `Repository.load`."""

    def unload(self, name: str, seconds: float | None = None) -> None:
        """See `Repository.unload`."""

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """See `SharedMemory.register`."""

    def unregister(self, name: str) -> None:
        """See `SharedMemory.unregister`."""


class ControlPlaces:
    """The places for control requests, of gRPC and HTTP together: those that wait take no thread from others."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(MAX_CALLS)

    def take(self) -> None:
        """Raises QueueFull if none is free."""
        if not self._free.acquire(blocking=False):
            raise QueueFull(f"{MAX_CALLS} control requests are being carried out, and no more are taken meanwhile", 1.0)

    def give_back(self) -> None:
        """To be called once for each `take`."""
        self._free.release()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Takes a place for as long as the block runs."""
        self.take()
        try:
            yield
        finally:
            self.give_back()


class NamedLocks:
    """A lock for each name, forgotten when nobody holds it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}  # with how many hold or want it

    @contextlib.contextmanager
    def held(self, name: str, seconds: float) -> Iterator[None]:
        """Holds the lock of a name. Raises DeadlineExceeded if it is not free within `seconds`."""
        with self._lock:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, users + 1
        try:
            if not lock.acquire(timeout=seconds):
                raise DeadlineExceeded(f"earlier control requests for {name[:64]!r} are not done after {seconds:g} s")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._lock:
                lock, users = self._locks.pop(name)
                if users > 1:
                    self._locks[name] = lock, users - 1


class ForbiddenControl:
    """The control of a server that takes none: every method raises Unimplemented."""

    def __init__(self) -> None:
        self.load = self.unload = self.register = self.unregister = _refuse


def _refuse(*_: Any, **__: Any) -> None:
    raise Unimplemented(
        "this server takes no control by request (--control): requests change neither its models nor its shared memory"
    )


def check_load(repository: str, parameters: Iterable[str]) -> None:
    """Raises InvalidRequest for a load from another repository or with parameters: a model's policy file configures it."""
    check_repository(repository)
    for name in parameters:
        raise InvalidRequest(f"parameter {name[:64]!r} is not accepted: only its policy file configures a model", "parameters")


def check_unload(repository: str, parameters: Iterable[str]) -> None:
    """Raises InvalidRequest for an unload from another repository or with an unknown parameter."""
    check_repository(repository)
    for name in parameters:
        if name != "unload_dependents":  # no model here depends on another
            raise InvalidRequest(f"unknown parameter {name[:64]!r}; accepted is unload_dependents", "parameters")


def check_repository(name: str) -> None:
    """Raises InvalidRequest unless the repository's name is empty."""
    if name:
        raise InvalidRequest(f"no repository named {name[:64]!r}: leave the name empty, there is one repository", "repository_name")


Call = tuple[str | int, ...]
"""A method of Control and its arguments, the first of which is a name."""

REVERTS = {"load": "unload", "unregister": "register"}
"""Methods that bring a worker back to its initial state, and the method whose effect each of them reverts."""


def calls_to_replay(calls: Sequence[Call], new: Call) -> list[Call]:
    """The calls to replay on a restarted worker: `calls` so far and the `new` one.

    A call replaces an earlier one of the same method and name. One that reverts drops the calls that it reverts: of its name, or
    of every name if its own is empty.
    """
    method, name, *_ = new
    reverted = REVERTS.get(str(method))
    if reverted is not None:
        return [call for call in calls if call[0] != reverted or name not in ("", call[1])]
    return [*(call for call in calls if call[:2] != (method, name)), new]


def calls_after_refusal(calls: Sequence[Call], before: Sequence[Call], refused: Call) -> list[Call]:
    """The calls to replay when every worker has refused one of `calls`: those of its name are as they were `before`."""

    def concerned(call: Call) -> bool:
        return (call[0] in _OF_MODELS) == (refused[0] in _OF_MODELS) and refused[1] in ("", call[1])

    return [*(call for call in calls if not concerned(call)), *(call for call in before if concerned(call))]


def subject(call: Call) -> str:
    """What must not be changed by two calls at a time: a model, or the shared memory."""
    return f"model {call[1]}" if call[0] in _OF_MODELS else "shared memory"


_OF_MODELS = ("load", "unload")
