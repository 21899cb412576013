"""What the serving process of a user's command does at its start and its end: checks, signals, the ready file.

Shared by the server that is alone and by the supervisor of several, so it imports neither gRPC nor ONNX Runtime.
"""

import json
import logging
import os
import signal
import socket
import threading
from pathlib import Path
from types import FrameType

from service.config import ServerConfig
from service.errors import UserError

log = logging.getLogger(__name__)


def check_settings(config: ServerConfig) -> None:
    """Raises UserError for a repository or a host that cannot be."""
    repository = config.repository
    if not repository.is_dir():
        raise UserError(
            f"{str(repository)!r} is not a folder" if repository.exists() else f"no repository folder {str(repository)!r}"
        )
    if not os.access(repository, os.R_OK | os.X_OK):
        raise UserError(f"repository folder {str(repository)!r}: this user may not read it")
    if config.policies is not None and not config.policies.is_dir():
        raise UserError(f"--policies {str(config.policies)!r}: no such folder")
    if config.policies is not None and not os.access(config.policies, os.X_OK):
        raise UserError(f"--policies {str(config.policies)!r}: this user may not read it")
    try:
        socket.getaddrinfo(config.host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"--host {config.host!r} is no address or name of a machine") from None


class AskedToStop(threading.Event):
    """Is set when the process is to stop; for `lame_duck_seconds` it then still takes requests."""

    lame_duck_seconds = 0.0


def stop_on_signals(lame_duck_seconds: float) -> AskedToStop:
    """What SIGTERM and SIGINT set from now on. A second of them ends the process at once, with code 1.

    SIGTERM comes from whoever else runs clients or balancers, and is given the lame-duck time; SIGINT from a person who waits.
    """
    asked_to_stop = AskedToStop()

    def on_signal(number: int, _: FrameType | None) -> None:
        if asked_to_stop.is_set():
            log.warning("%s again: leaving at once", signal.Signals(number).name)
            os._exit(1)
        if number == signal.SIGTERM:
            asked_to_stop.lame_duck_seconds = lame_duck_seconds
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return asked_to_stop


class ReadyFile:
    """The file that says that the server is ready, and where; nothing at all if there is no path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def check(self) -> None:
        """Fails now rather than after loading if the file cannot be written; removes a stale one. Raises UserError."""
        path = self._path
        if path is None:
            return
        if not path.parent.is_dir() or path.is_dir():
            raise UserError(f"--ready-file {str(path)!r}: not a file in a folder that exists")
        try:
            # Never the file itself: somebody may be waiting for it to appear.
            probe = _partial(path)
            probe.touch()
            probe.unlink()
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--ready-file {str(path)!r}: {error.strerror}") from None

    def write(self, grpc_port: int, http_port: int) -> None:
        """Says that this process serves on these ports."""
        if self._path is None:
            return
        ready = {"grpc_port": grpc_port, "http_port": http_port, "pid": os.getpid()}
        with self._lock:
            # Whoever polls for the file must never read half of it.
            partial = _partial(self._path)
            partial.write_text(json.dumps(ready) + "\n", encoding="utf-8")
            partial.replace(self._path)

    def remove(self) -> None:
        """Says that nothing is served any more."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
