"""What a client may change about a running server: which models it serves, and which shared memory it reads and writes."""

from collections.abc import Iterable
from typing import Protocol

from service.errors import InvalidRequest
from service.repository import Repository
from service.shared_memory import SharedMemory

NO_CUDA = "CUDA shared memory is not offered; system shared memory is"
NO_TRACE_SETTINGS = "trace settings are not offered: traces are OpenTelemetry's, set up when the server starts"
NO_LOG_SETTINGS = "log settings are not offered: the log is set up when the server starts"


class Control(Protocol):
    """Changes that clients ask for. All block, and raise RequestError or LoadError for what cannot be done.

    With several workers a change is made in each of them, whichever of them was asked.
    """

    def load(self, name: str) -> None:
        """See `Repository.load`."""

    def unload(self, name: str) -> None:
        """See `Repository.unload`."""

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """See `SharedMemory.register`."""

    def unregister(self, name: str) -> None:
        """See `SharedMemory.unregister`."""


class LocalControl:
    """Changes to this process alone."""

    def __init__(self, repository: Repository, memory: SharedMemory) -> None:
        self.load = repository.load
        self.unload = repository.unload
        self.register = memory.register
        self.unregister = memory.unregister


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
