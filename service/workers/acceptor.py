"""Accepts the connections of the gRPC port and gives each to the worker that has the fewest.

Left to the kernel (SO_REUSEPORT), a connection goes to any worker, whatever the others have: of four connections on two workers all
four are with one in an eighth of the cases. A connection keeps its worker for as long as it lasts, so that one stays idle.

The supervisor accepts, and passes the socket on to the worker (`rpc/external_connections.py`); no byte of a request goes through
it. How many connections a worker has is counted by its open descriptors, which Linux shows in `/proc`; elsewhere those that it was
given count, and so the workers take turns. Connections wait in the listening socket while no worker can take one.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from service.process.vital_thread import vital_thread

log = logging.getLogger(__name__)

BACKLOG = 65535
"""Connections that wait to be accepted; the kernel takes its own limit if that is lower."""

COUNT_SECONDS = 0.5
"""How often the connections are counted at most; between, those given are added."""

ARRIVAL_SECONDS = 5.0
"""A worker has taken a connection after this time: one that is not open then has been closed."""

RETRY_SECONDS = 0.05

SELF_TEST_SECONDS = 30.0


class WorkerConnections:
    """The connections of one worker, as the supervisor sees them. `give` is called by one thread, `count` by any."""

    def __init__(self, pipe: socket.socket) -> None:
        """`pipe` is this end of the socket pair on which the worker takes connections."""
        pipe.setblocking(False)
        self.given = 0
        self._pipe = pipe
        self._lock = threading.Lock()
        self._open: dict[int, float] = {}  # when each was given, by the number of its inode
        self._counted_at = -COUNT_SECONDS

    def give(self, connection: socket.socket) -> bool:
        """Gives the worker a connection; False if it takes none now."""
        inode = os.fstat(connection.fileno()).st_ino
        try:
            socket.send_fds(self._pipe, [b"c"], [connection.fileno()])
        except OSError:  # it has exited, or many wait for it
            return False
        with self._lock:
            self.given += 1
            self._open[inode] = time.monotonic()
        return True

    def count(self, pid: int) -> int:
        """How many are open in the worker, process `pid`."""
        with self._lock:
            now = time.monotonic()
            if now - self._counted_at >= COUNT_SECONDS:
                self._counted_at = now
                found = open_sockets(pid)
                if found is not None:
                    self._open = {inode: at for inode, at in self._open.items() if inode in found or now - at < ARRIVAL_SECONDS}
            return len(self._open)

    def close(self) -> None:
        """Gives no more."""
        self._pipe.close()


class Worker(Protocol):
    """What the acceptor needs of a worker; see `WorkerProcess`."""

    number: int
    pid: int
    connections: WorkerConnections


class Acceptor:
    """Accepts on listening sockets. Construct, `start` when a worker can take connections, `stop`.

    Attributes:
        started: whether it listens, or has.
    """

    def __init__(
        self, bound: Sequence[socket.socket], workers: Callable[[], Sequence[Worker]], user_timeout_seconds: float
    ) -> None:
        """`bound` are bound and do not listen yet.

        `workers` are those that may be given connections now. `user_timeout_seconds`: a connection whose client acknowledges
        nothing for so long is closed; 0 leaves that to TCP.
        """
        self._bound = bound
        self._workers = workers
        self._user_timeout_seconds = user_timeout_seconds
        self._lock = threading.Lock()
        self.started = False
        self._stop = threading.Event()
        self._woken, self._wake = socket.socketpair()
        self._thread = vital_thread(self._run, "accept")

    def start(self) -> None:
        """Listens; a second call does nothing."""
        with self._lock:
            if self.started or self._stop.is_set():
                return
            self.started = True
        for each in self._bound:
            # As C core sets its own listening sockets; a connection inherits them.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._user_timeout_seconds and hasattr(socket, "TCP_USER_TIMEOUT"):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self._user_timeout_seconds))
            each.setblocking(False)
            each.listen(BACKLOG)
        self._thread.start()

    def stop(self) -> None:
        """Refuses connections from now on. The port stays bound."""
        with self._lock:
            self._stop.set()
        self._wake.close()
        if self.started:
            self._thread.join()
            for each in self._bound:
                each.shutdown(socket.SHUT_RD)
        self._woken.close()

    def _run(self) -> None:
        poller = select.poll()
        listening = {each.fileno(): each for each in self._bound}
        for descriptor in (*listening, self._woken.fileno()):
            poller.register(descriptor, select.POLLIN)
        while not self._stop.is_set():
            for descriptor, _ in poller.poll():
                if descriptor in listening:
                    self._accept_waiting(listening[descriptor])

    def _accept_waiting(self, listening: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._stop.wait(RETRY_SECONDS)
                continue  # or the client has left
            with connection:
                self._give(connection)

    def _give(self, connection: socket.socket) -> None:
        while True:
            # Of those that have as many the one that was given fewest: else one that loses all at once gets all the next.
            by_count = [(each.connections.count(each.pid), each.connections.given, each.number, each) for each in self._workers()]
            if any(each.connections.give(connection) for *_, each in sorted(by_count, key=lambda found: found[:3])):
                return
            if self._stop.wait(RETRY_SECONDS):
                return


def open_sockets(pid: int) -> set[int] | None:
    """The inodes of the sockets that a process has open; None where the system does not say."""
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                target = str(link.readlink())
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    except OSError:
        return None
    return found


def can_pass_connections() -> bool:
    """Whether a server takes connections that another process has accepted: tried in a process of its own, which may crash."""
    if not hasattr(socket, "send_fds"):
        return False
    program = "from service.rpc.external_connections import self_test; self_test()"
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SELF_TEST_SECONDS, check=False,
            process_group=0,  # Ctrl-C in a terminal is not for it
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("whether the installed grpcio takes accepted connections is not known: %s", type(error).__name__)
        return False
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2][:200]
        log.warning("the installed grpcio takes no accepted connections (exit code %d): %s", done.returncode, last)
    return done.returncode == 0
