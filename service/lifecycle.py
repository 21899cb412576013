"""Start and end of a serving process: settings checked, signals, and the limit of a stop that hangs.

Shared by the single server and by the supervisor of several workers, so it imports neither gRPC nor ONNX Runtime.
"""

import contextlib
import logging
import os
import re
import resource
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from service.config import FOREIGN_SHARED_MEMORY, ServerConfig
from service.errors import UserError
from service.process.process_exit import exit_at_once
from service.process.ready_file import ReadyFile
from service.sockets import listeners
from service.sockets.unix_socket import UnixSocket

if TYPE_CHECKING:
    from service.model.trusted_keys import TrustedKeys

log = logging.getLogger(__name__)

_SHARED_MEMORY_PREFIX = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_config(config: ServerConfig) -> None:
    """Raises UserError: a folder cannot be read, ready file or unix socket cannot be made, a host is unknown, a prefix is wrong."""
    repository, policies = config.repository, config.policies
    if not repository.is_dir():
        raise UserError(
            f"{str(repository)!r} is not a folder" if repository.exists() else f"no repository folder {str(repository)!r}"
        )
    if not os.access(repository, os.R_OK | os.X_OK):
        raise UserError(f"repository folder {str(repository)!r}: permission denied")
    if policies is not None and not policies.is_dir():
        raise UserError(f"--policies {str(policies)!r}: no such folder")
    if policies is not None and not os.access(policies, os.X_OK):
        raise UserError(f"--policies {str(policies)!r}: permission denied")
    if config.require_signatures is not None:
        trusted_keys(config)
    listeners.resolve(config.host)
    for prefix in config.shared_memory_prefix:
        if not _SHARED_MEMORY_PREFIX.fullmatch(prefix) or prefix.removeprefix("/").startswith(FOREIGN_SHARED_MEMORY):
            raise UserError(
                f"--shared-memory-prefix {prefix!r} is not accepted: give the beginning of the names of clients' objects, such as "
                f"convoy-clients-, of letters, digits, . _ and -; other programs' are {', '.join(FOREIGN_SHARED_MEMORY)}"
            )
    _check_unix_sockets(config)
    ReadyFile(config.ready_file).check()


def trusted_keys(config: ServerConfig) -> "TrustedKeys | None":
    """The keys of `--require-signatures`; None without it. Raises UserError for a file that holds no such key."""
    if config.require_signatures is None:
        return None
    from service.model.trusted_keys import TrustedKeys  # with cryptography, which no other server needs to load

    return TrustedKeys.read(config.require_signatures)


def _check_unix_sockets(config: ServerConfig) -> None:
    if config.grpc_socket is not None and config.worker_count > 1:
        raise UserError("--grpc-socket cannot be used with --workers: processes can share a port but not a unix socket")
    if config.grpc_socket is not None and config.grpc_socket == config.http_socket:
        raise UserError(f"--grpc-socket and --http-socket are both {str(config.grpc_socket)!r}: give two paths")
    for path, option in ((config.grpc_socket, "--grpc-socket"), (config.http_socket, "--http-socket")):
        if path is not None:
            UnixSocket(path, option).check()


class StopEvent:
    """Set by SIGTERM, SIGINT, SIGHUP or a thread when the process is to stop. Created and waited for by the main thread.

    Not a `threading.Event`: a signal handler would deadlock on the event's lock if it interrupted the code that holds it, and a
    signal that arrives just before the main thread blocks on a lock does not wake it. A byte in a pipe stays until it is read.
    """

    def __init__(self, on_signal: Callable[[int], None] = lambda number: None) -> None:
        """Installs the signal handlers. `on_signal` is called with each signal's number, before the event is set."""
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
        with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier bytes
            os.write(self._writer, b"\0")

    def fileno(self) -> int:
        """A descriptor that can be read from once it is set, for `select`."""
        return self._reader

    def wait(self) -> None:
        """Blocks until it is set."""
        while not self._is_set:
            os.read(self._reader, 1)


class StopOnSignals(StopEvent):
    """The stop event of a process that a user started: a second signal exits at once, with code 1.

    Attributes:
        lame_duck_seconds: how long requests are still to be taken: as configured after SIGTERM, which comes from a system with
            load balancers; 0 after SIGINT, which comes from a person who waits.
    """

    def __init__(self, lame_duck_seconds: float) -> None:
        self.lame_duck_seconds = 0.0
        self._signalled = False

        def on_signal(number: int) -> None:
            if self._signalled:
                exit_at_once(1, log.warning, "%s again: exiting at once", signal.Signals(number).name)
            self._signalled = True
            if number == signal.SIGTERM:
                self.lame_duck_seconds = lame_duck_seconds

        super().__init__(on_signal)


def raise_file_limit() -> None:
    """Raises the limit of open files and connections to the most that the system allows; the usual default is 1,024."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        with contextlib.suppress(OSError, ValueError):  # macOS reports a limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def exit_after(seconds: float) -> None:
    """Exits with code 1 if the process still runs after `seconds`: a model that never finishes cannot be interrupted."""
    reason = "not stopped within %g s, perhaps because a model is still computing: exiting at once"
    timer = threading.Timer(seconds, exit_at_once, (1, log.error, reason, seconds))
    timer.daemon = True
    try:
        timer.start()
    except (RuntimeError, MemoryError) as error:  # no reason not to stop in order
        log.error("no thread can be started that would end a stop of more than %g s: %s", seconds, error)
