"""What is asked of one server and acts on the whole of it: of all its workers, where there are several.

Servicers are given a `Control`: of itself in a server that is alone; what asks the supervisor, which asks all workers, in one of
several.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from service.errors import InvalidRequest, Unimplemented

NO_CUDA = "CUDA shared memory is not offered; system shared memory is"
NO_TRACE_SETTINGS = "trace settings are not offered: traces are OpenTelemetry's, set up when the server starts"
NO_LOG_SETTINGS = "log settings are not offered: the log is set up when the server starts"


class Control(Protocol):
    """Every method blocks until it is done, and raises RequestError or LoadError for what cannot be done."""

    def load(self, name: str) -> None:
        """See `Repository.load`."""

    def unload(self, name: str) -> None:
        """See `Repository.unload`."""

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """See `SharedMemory.register`."""

    def unregister(self, name: str) -> None:
        """See `SharedMemory.unregister`."""


class Forbidden:
    """Control of a server that only its operator may change: every method raises Unimplemented."""

    def __init__(self) -> None:
        self.load = self.unload = self.register = self.unregister = _refuse


def _refuse(*_: Any, **__: Any) -> None:
    raise Unimplemented("this server was started with --no-control: requests change neither its models nor its shared memory")


def check_load(repository: str, parameters: Iterable[str]) -> None:
    """Raises InvalidRequest for a load of anything but a model of the one repository, as it lies there."""
    check_repository(repository)
    for name in parameters:
        raise InvalidRequest(f"parameter {name[:64]!r} is not accepted: a model is served as its serving.toml says", "parameters")


def check_unload(repository: str, parameters: Iterable[str]) -> None:
    """Raises InvalidRequest for an unload that is asked for in a way that is not offered."""
    check_repository(repository)
    for name in parameters:
        if name != "unload_dependents":  # no model here depends on another
            raise InvalidRequest(f"unknown parameter {name[:64]!r}; accepted is unload_dependents", "parameters")


def check_repository(name: str) -> None:
    """Raises InvalidRequest unless the name of the repository is empty: there is one."""
    if name:
        raise InvalidRequest(f"no repository named {name[:64]!r}: leave the name empty, there is one repository", "repository_name")


Call = tuple[str | int, ...]

UNDOES = {"load": "unload", "unregister": "register"}
"""Which methods lead back to how a worker begins, and from what."""


def remember(standing: Sequence[Call], call: Call) -> list[Call]:
    """The calls that stand after one more: it may take the place of one, or undo it, or all of its kind if it names nothing."""
    method, name, *_ = call
    undone = UNDOES.get(str(method))
    if undone is not None:
        return [old for old in standing if old[0] != undone or name not in ("", old[1])]
    return [*(old for old in standing if old[:2] != (method, name)), call]
