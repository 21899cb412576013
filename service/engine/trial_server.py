"""The process beside the server that forks for each trial of a version (`trials.py`).

It has imported what models need, so that a fork can begin at once, and loads nothing itself. It has one thread and inherits no
socket of the server: only its end of one connection. When that closes, because the server has ended or needs it no longer, it ends,
and the trials with it.

`convoy serve` forks it before it has sockets and threads of its own (`fork_trial_server`), so that the two import once. One that is
started later is a program of its own (`trial_client.py`).
"""

import fcntl
import gc
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from multiprocessing.connection import Connection, wait
from typing import Any

from service.engine.trial import Ended, Trial
from service.engine.trial_client import trial_client
from service.engine.trial_process import try_and_reply
from service.errors import PassingFailure

_MAX_REPLY_BYTES = 2**20
"""More than `trial_process.py` ever writes. What has taken over its process may write anything."""

_TOO_LONG = b'{"kind": "LoadError", "message": "its trial answered with more than an outcome"}'
_LONG_SECONDS = 3600.0
_WAIT_SECONDS = 0.02
_SIZE_UNIT = 1024
"""Of `ru_maxrss`, on Linux."""


class _Forked:
    """The process of one trial. `reply` is what it has written so far."""

    def __init__(self, number: int, pid: int, deadline: float) -> None:
        self.number = number
        self.pid = pid
        self.deadline = deadline
        self.reply = bytearray()
        self.late = False


class TrialServer:
    """Forks, waits, and says how each trial has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._forked: dict[int, _Forked] = {}  # by the descriptor of the pipe that it writes to

    def run(self) -> None:
        """Until the connection closes."""
        try:
            while True:
                self._round()
        except (EOFError, OSError):
            pass
        finally:
            for forked in self._forked.values():
                _kill(forked)

    def _round(self) -> None:
        deadlines = [forked.deadline for forked in self._forked.values()]
        timeout = max(0.0, min(min(deadlines) - time.monotonic(), _LONG_SECONDS)) if deadlines else None
        for ready in wait([self._connection, *self._forked], timeout):
            if isinstance(ready, int):
                self._read(ready)
            else:
                self._asked(*self._connection.recv())
        now = time.monotonic()
        for forked in self._forked.values():
            if now >= forked.deadline:
                forked.deadline, forked.late = float("inf"), True
                _kill(forked)  # the pipe closes, and is read in the next round

    def _asked(self, number: int, trial: Trial | None, memory_bytes: int, seconds: float) -> None:
        if trial is None:
            for forked in self._forked.values():
                if forked.number == number:
                    _kill(forked)
            return
        parent = os.getpid()
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(reader)
            os.close(writer)
            reply = {"kind": PassingFailure.__name__, "message": f"no process can be started to try it: {error.strerror}"}
            self._connection.send((number, Ended(json.dumps(reply).encode())))
            return
        if pid == 0:
            self._connection.close()
            for descriptor in (reader, *self._forked):
                os.close(descriptor)
            try_and_reply(trial, memory_bytes, seconds, writer, parent)
        os.close(writer)
        self._forked[reader] = _Forked(number, pid, time.monotonic() + seconds)

    def _read(self, descriptor: int) -> None:
        forked = self._forked[descriptor]
        content = os.read(descriptor, 2**16)
        forked.reply += content
        if len(forked.reply) > _MAX_REPLY_BYTES:
            forked.reply[:] = _TOO_LONG
        elif content:
            return
        os.close(descriptor)
        del self._forked[descriptor]
        _kill(forked)
        _, status, usage = os.wait4(forked.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak_bytes = max(0, usage.ru_maxrss - own) * _SIZE_UNIT
        ended: Any = Ended(bytes(forked.reply), max(0, -code), forked.late, peak_bytes)
        self._connection.send((forked.number, ended))


def _kill(forked: _Forked) -> None:
    os.kill(forked.pid, signal.SIGKILL)  # until it has been waited for, its number is its own


def main(descriptor: int) -> None:
    """Serves on its end of the connection."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the server, which decides when
    logging.disable()  # the server logs the outcome; warnings of a version come when it loads it
    warnings.simplefilter("ignore")  # ONNX Runtime has a thread, which does nothing and is not needed in a fork
    gc.freeze()  # no collection touches, and so copies, what forks share with this process
    connection = Connection(descriptor)
    TrialServer(connection).run()


class _Fork:
    """A fork of this process, as `trial_client.Process`. Thread-safe."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._lock = threading.Lock()
        self._status: int | None = None

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int, /) -> None:
        """Sends a signal, if it has not ended."""
        with self._lock:
            if self._status is None:  # until it has been waited for, its number is its own
                os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the exit code. Raises TimeoutExpired."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while (code := self._exit_code()) is None:
            if time.monotonic() >= until:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            time.sleep(_WAIT_SECONDS)
        return code

    def _exit_code(self) -> int | None:
        with self._lock:
            if self._status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._status = status if pid else None
            return None if self._status is None else os.waitstatus_to_exitcode(self._status)


def fork_trial_server() -> None:
    """Starts the process in which models are tried as a fork of this one, which has no other threads and needs the same modules."""
    trial_client.start(_fork if sys.platform == "linux" else None)  # elsewhere libraries of the system do not survive a fork


def _fork(theirs: socket.socket) -> _Fork:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # OpenBLAS and ONNX Runtime have idle threads
        pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            own = fcntl.fcntl(theirs, fcntl.F_DUPFD, 3)
            os.closerange(3, own)
            os.closerange(own + 1, os.sysconf("SC_OPEN_MAX"))
            null = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            main(own)
        finally:
            os._exit(0)
    return _Fork(pid)
