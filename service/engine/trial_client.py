"""The server's end of the connection to the process that forks for trials (`trial_server.py`): starts it, asks it, ends it.

It is a program of its own, except where `fork_trial_server` has made it: then the first one is a fork, which costs nothing.

Nobody waits for it without an end. One thread reads what comes back, whatever else is going on: the lock that it needs is never
held while something is sent, so that both sides may send much at the same time. A send in which nothing moves for a while, and a
trial that is not answered long after its time is over, end the process; the trials that ran in it fail, and the next one starts
another.
"""

import atexit
import contextlib
import itertools
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Protocol

from service.engine.trial import Ended, Trial

log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""Without a trial for so long, the process ends; the next trial starts it again."""

DEAF_SECONDS = 30
"""A process that reads nothing of what it is sent for so long has died, whatever it looks like."""

EXIT_SECONDS = 5.0

_FAILURES = (OSError, RuntimeError, MemoryError)
"""If there are no more processes, threads, open files or memory."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""For the process that forks: threads do not survive that."""


class Process(Protocol):
    """The process that forks: what of subprocess.Popen is needed here."""

    pid: int

    def send_signal(self, number: int, /) -> None:
        """Sends a signal, if it has not ended."""

    def kill(self) -> None:
        """Ends it, if it has not ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Returns its exit code. Raises TimeoutExpired."""


Begin = Callable[[socket.socket], Process]
"""Begins the process, given its end of the connection."""


class TrialClient:
    """The process that forks, one for all servers of this process. It is started when it is needed, and ends when it is idle.

    It ends with this process, too, however that ends: then its connection closes. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of what follows; held for moments
        self._numbers = itertools.count(1)
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None  # that of the connection
        self._process: Process | None = None
        self._pending: dict[int, Future[Ended]] = {}
        self._used = 0.0
        self._sending = threading.Lock()  # never waited for with the other one held

    def start(self, begin: Begin | None = None) -> None:
        """Starts the process without waiting for it, so that it is there when it is needed."""
        with contextlib.suppress(*_FAILURES), self._lock:  # the first trial tries again
            self._start(begin or _spawn)

    def begin(self, trial: Trial, memory_bytes: int, seconds: float) -> tuple[int, Future[Ended]]:
        """Begins a trial; returns its number, and a future, which fails with EOFError if the process has ended."""
        number, future = next(self._numbers), Future[Ended]()
        try:
            with self._lock:
                connection = self._start(_spawn)
                self._pending[number] = future
        except _FAILURES as error:
            log.warning("the process in which models are tried cannot be started: %s", error)
            future.set_exception(EOFError())
        else:
            self._send(connection, (number, trial, memory_bytes, seconds))
        return number, future

    def cancel(self, number: int) -> None:
        """Ends a trial that may still be running: its future fails with EOFError at once."""
        with self._lock:
            future, connection = self._pending.pop(number, None), self._connection
        if future is None:
            return
        future.set_exception(EOFError())
        if connection is not None:
            self._send(connection, (number, None, 0, 0.0))

    def abandon(self, number: int) -> None:
        """Ends the process, because a trial has not been answered."""
        with self._lock:
            connection = self._connection if number in self._pending else None
        if connection is not None:
            log.warning("the process in which models are tried does not answer; it is replaced")
            self._give_up(connection)

    def stop(self) -> None:
        """Ends the process, and the trials with it."""
        with self._lock:
            process, connection = self._process, self._connection
        if connection is not None:
            self._give_up(connection)
        if process is not None:
            process.kill()
            process.wait()

    def _send(self, connection: Connection, message: tuple[int, Trial | None, int, float]) -> None:
        try:
            with self._sending:
                connection.send(message)
        except _FAILURES as error:
            log.info("the process in which models are tried cannot be reached: %s", error)
            self._give_up(connection)

    def _start(self, begin: Begin) -> Connection:
        """Raises one of _FAILURES, and leaves all as it was."""
        self._used = time.monotonic()
        if self._connection is not None:
            return self._connection
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", DEAF_SECONDS, 0))
            with theirs:
                process = begin(theirs)
            undo.callback(process.wait)
            undo.callback(process.kill)
            connection = Connection(os.dup(ours.fileno()))
            undo.callback(connection.close)
            threading.Thread(target=self._read, args=(connection, process), name="trials", daemon=True).start()
            undo.pop_all()
        self._socket, self._connection, self._process = ours, connection, process
        return connection

    def _read(self, connection: Connection, process: Process) -> None:
        """Hands out what comes back, until the process has ended or is no longer needed."""
        try:
            while True:
                if connection.poll(IDLE_SECONDS):
                    number, ended = connection.recv()
                    with self._lock:
                        future = self._pending.pop(number, None)
                    if future is not None:
                        future.set_result(ended)
                    continue
                with self._lock:
                    if not self._pending and time.monotonic() - self._used >= IDLE_SECONDS:
                        self._let_go()
                        break
        except (EOFError, OSError):
            pass
        finally:
            self._give_up(connection)
            with self._sending:
                connection.close()
            _wait_for(process)

    def _give_up(self, connection: Connection) -> None:
        """Ends the connection, unless another has taken its place. The trials that ran fail; the next starts another process."""
        with self._lock:
            if self._connection is not connection:
                return
            failed = list(self._pending.values())
            self._pending.clear()
            self._let_go()
        for future in failed:
            future.set_exception(EOFError())

    def _let_go(self) -> None:
        """Ends the connection. The thread that reads from it closes it."""
        ended, self._socket, self._connection, self._process = self._socket, None, None, None
        if ended is not None:
            with contextlib.suppress(OSError):  # the process has ended
                ended.shutdown(socket.SHUT_RDWR)
            ended.close()


def _spawn(theirs: socket.socket) -> Process:
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", "-c", f"from service.engine.trial_server import main; main({theirs.fileno()})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_ONE_THREAD},
        pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        process_group=0,
    )  # fmt: skip


def _wait_for(process: Process) -> None:
    try:
        process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


trial_client = TrialClient()
start_trial_server = trial_client.start
atexit.register(trial_client.stop)
