"""What the serving process of a user's command does at its start and its end: checks, signals, the ready file.

Shared by the server that is alone and by the supervisor of several, so it imports neither gRPC nor ONNX Runtime.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

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


class AskedToStop:
    """Is set, by SIGTERM, SIGINT, SIGHUP or a thread, when the process is to stop. Made and waited for by the main thread.

    Not a `threading.Event`: its lock may be held by the very code that a signal handler interrupts, and then never comes free; and
    a signal that comes just before the main thread sleeps on a lock wakes nobody. A byte in a pipe stays until it is read.
    """

    def __init__(self, on_signal: Callable[[int], None] = lambda number: None) -> None:
        """Takes the signals from now on. `on_signal` is called with the number of each signal, before this is set by it."""
        self._is_set = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

        def handle(number: int, _: FrameType | None) -> None:
            on_signal(number)
            self._is_set = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, handle)

    def is_set(self) -> bool:
        """Whether the process is to stop."""
        return self._is_set

    def set(self) -> None:
        """Asks the process to stop; from any thread."""
        self._is_set = True
        with contextlib.suppress(BlockingIOError):  # as many bytes are there already as a pipe holds
            os.write(self._writer, b"\0")

    def wait(self) -> None:
        """Blocks until it is set."""
        while not self._is_set:
            os.read(self._reader, 1)


class StopOnSignals(AskedToStop):
    """Of a process that its user started: a second signal ends it at once, with code 1.

    Attributes:
        lame_duck_seconds: for how long requests are still to be taken. SIGTERM comes from whoever else runs clients or balancers,
            and is given time; SIGINT from a person who waits.
    """

    def __init__(self, lame_duck_seconds: float) -> None:
        self.lame_duck_seconds = 0.0
        self._signalled = False

        def on_signal(number: int) -> None:
            if self._signalled:
                try:
                    log.warning("%s again: leaving at once", signal.Signals(number).name)
                finally:
                    os._exit(1)
            self._signalled = True
            if number == signal.SIGTERM:
                self.lame_duck_seconds = lame_duck_seconds

        super().__init__(on_signal)


def raise_file_limit() -> None:
    """Lets this process, and those it starts, have as many files and connections open as the system allows: usual are 1,024."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        with contextlib.suppress(OSError, ValueError):  # macOS names a limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def leave_at_once() -> NoReturn:
    """Ends the process with code 0, whatever its threads do. An ordinary exit would wait for a model that computes, or abort."""
    logging.shutdown()
    os._exit(0)


def leave_within(seconds: float) -> None:
    """Ends the process with code 1 if it is still there then: nothing can interrupt a model that never comes to an end."""

    def leave() -> None:
        log.error("not stopped within %g s, perhaps because a model still computes: leaving at once", seconds)
        logging.shutdown()
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


class ReadyFile:
    """The file that says that the server is ready, and where; nothing at all if there is no path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def check(self) -> None:
        """Fails now rather than after loading if the file cannot be written. Raises UserError."""
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
        except OSError as error:
            raise UserError(f"--ready-file {str(path)!r}: {error.strerror}") from None

    def write(self, grpc_port: int, http_port: int) -> None:
        """Says that this process serves on these ports. If the file cannot be written, that is logged: it serves all the same."""
        if self._path is None:
            return
        ready = {"grpc_port": grpc_port, "http_port": http_port, "pid": os.getpid()}
        with self._lock:
            # Whoever polls for the file must never read half of it.
            partial = _partial(self._path)
            try:
                partial.write_text(json.dumps(ready) + "\n", encoding="utf-8")
                partial.replace(self._path)
            except OSError as error:
                log.error("--ready-file %r cannot be written: %s", str(self._path), error.strerror)

    def clear(self) -> None:
        """Says that nothing is served yet: only once the ports are this process's own."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Says that nothing is served any more, unless another server has said since that it is ready."""
        if self._path is None:
            return
        try:
            if json.loads(self._path.read_text(encoding="utf-8"))["pid"] != os.getpid():
                return
        except (OSError, ValueError, LookupError, TypeError):
            return  # nobody's, so not this process's either
        self.clear()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
