"""The ready file: tells other programs that the server is ready, and on which ports.

It is written when the server is first ready, and again while that fails, as on a full disk. A server removes what it has written
when it has stopped, also when it exits at once. It never removes or replaces what another server has written since: which file is
its own it knows by the inode, which no other file can have while it holds this one open. A process id would not tell: in
containers it is the same for all. Servers that share a path look and act in turn, by a lock on the folder.
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from service.errors import UserError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0

_LOCK_SECONDS = 0.5
"""After this the lock is ignored: who holds it has been stopped, or is the thread that a signal handler interrupts."""


class ReadyFile:
    """A JSON file with the server's ports and pid, from when it is first ready until it has stopped.

    It stays while the server drains or has no model. Without a path, every method does nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._content = ""
        self._own: int | None = None  # a descriptor of the file that this server has written
        self._retrying = False
        self._closed = False  # no Event: a signal handler that sets one waits for ever if it interrupts the setting

    def check(self) -> None:
        """Raises UserError if the file cannot be written."""
        path = self._path
        if path is None:
            return
        if not path.parent.is_dir() or path.is_dir():
            raise UserError(f"--ready-file {str(path)!r}: not a file in a folder that exists")
        try:
            # Not the file itself: a program may be waiting for it to appear.
            probe = _partial(path)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"--ready-file {str(path)!r}: {error.strerror}") from None

    def write(self, grpc_port: int, http_port: int, admin_port: int | None = None) -> None:
        """Writes the file if it is not there.

        An error is logged and not raised: the server serves all the same, and a thread tries again until it can be written.
        """
        if self._path is None:
            return
        ports = {"grpc_port": grpc_port, "http_port": http_port} | ({} if admin_port is None else {"admin_port": admin_port})
        self._content = json.dumps(ports | {"pid": os.getpid()}) + "\n"
        with self._lock:
            if self._retrying:
                return
            try:
                self._write(self._path)
            except OSError as error:
                log.error("--ready-file %r cannot be written, trying again: %s", str(self._path), error.strerror)
                try:
                    threading.Thread(target=self._retry, args=(self._path,), name="ready-file", daemon=True).start()
                except (RuntimeError, MemoryError) as lack:
                    log.error("--ready-file %r is not written, no thread to try again can be started: %s", str(self._path), lack)
                else:
                    self._retrying = True

    def remove(self) -> None:
        """Removes the file. Call it only once the ports are bound: until then it may belong to a running server."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def remove_own(self) -> None:
        """Removes the file unless another server has written it since. It is not written any more."""
        self._closed = True
        path = self._path
        if path is None:
            return
        with contextlib.suppress(OSError), _locked(path.parent):
            own, self._own = self._own, None
            if own is None:
                return
            try:
                if os.path.samestat(os.fstat(own), path.lstat()):
                    path.unlink()
            finally:
                os.close(own)

    def _retry(self, path: Path) -> None:
        while True:
            time.sleep(RETRY_SECONDS)
            if self._closed:
                return
            with contextlib.suppress(OSError), self._lock:
                self._write(path)
                self._retrying = False
                log.info("--ready-file %r is written", str(path))
                return

    def _write(self, path: Path) -> None:
        if self._own is not None and path.exists():  # this server's, or that of another which has taken its place
            return
        partial = _partial(path)  # a program that polls for the file must never read half of it
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        previous = self._own
        placed = False
        try:
            with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
                file.write(self._content)
            with _locked(path.parent):
                if self._closed:
                    return
                self._own = descriptor  # before the file is there: a signal may end the process in between
                partial.replace(path)
                placed = True
        finally:
            if not placed:
                self._own = previous
                partial.unlink(missing_ok=True)
            unused = previous if placed else descriptor
            if unused is not None:
                os.close(unused)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock that ready files in a folder share, if it can be had soon. The lock goes with the descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
