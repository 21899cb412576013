"""Tries a version of a model in a process of its own before the server takes it in.

A model file may compute for ever, crash ONNX Runtime or need more memory than there is; in the server's process that would be the
end of all models. `trial_server.py` runs as one small process beside the server, with ONNX Runtime imported and nothing loaded. For
each trial it forks, which takes milliseconds, and `trial_process.py` does in that fork what the server would do: opens the version,
replays its golden samples, runs batches. Only what comes back approved is loaded by the server, and only if it is still the same
bytes.

Memory. A trial first gets a part of what a model may take, beside others. If that is too little it is repeated with all of it, one
such trial at a time, so that those that run side by side do not need more than there is.

This module needs nothing of what models need: a supervisor, too, has it (`workers/supervisor.py`).
"""

import atexit
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from service.errors import FilesChanged, GoldenMismatch, InvalidModel, LoadError
from service.memory_limit import free_memory_bytes
from service.model.model_files import Expected
from service.model.providers import Provider
from service.policy import Policy

if TYPE_CHECKING:
    from service.model.signing import SignedFiles

log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""Without a trial for so long, the process ends; the next trial starts it again."""

EXIT_SECONDS = 5.0

PARTS = 8
"""A trial first gets this part of the memory that a model may take."""

_MEBIBYTE = 2**20
_MIN_BYTES, _MIN_PART_BYTES = 64 * _MEBIBYTE, 256 * _MEBIBYTE
_SHARE_OF_FREE, _MOST_OF_FREE = 0.5, 0.9
_COPIES = 4
"""Loading needs the size of the files two to three times."""

APPROVED, MEMORY = "approved", "memory"
_REFUSALS: dict[str, type[LoadError]] = {each.__name__: each for each in (LoadError, InvalidModel, GoldenMismatch, FilesChanged)}


class Trial(NamedTuple):
    """What is tried: a version with its policy, as the server would load it.

    Attributes:
        path: the model file.
        labels: as `load_model`.
        cpus: CPUs that the server uses for the model.
        asked: a request asks for it: it is tried although it has been refused before.
        signed: what the files must be, if signatures are asked for.
    """

    path: Path
    labels: tuple[str, ...] | None
    policy: Policy
    provider: Provider
    cpus: int
    asked: bool = False
    signed: "SignedFiles | None" = None


class Approval(NamedTuple):
    """A trial that went well, of these files. Larger batches than `max_batch_items` did not work."""

    files: Expected
    max_batch_items: int


TryVersion = Callable[[Trial], Approval]
"""See `Trials.try_version`."""


class Ended(NamedTuple):
    """How the process of a trial has ended: what it replied, or by which signal, or because its time was over.

    `peak_bytes` is the memory that it had at most, beside that of the process that forked it.
    """

    reply: bytes = b""
    signal: int = 0
    late: bool = False
    peak_bytes: int = 0


class TrialsClosed(LoadError):
    """The server stops, and with it the trial."""


class Trials:
    """Tries versions for one server, within its limits. Thread-safe."""

    def __init__(self, seconds: float, memory_bytes: int | None) -> None:
        """A trial takes at most `seconds`, and `memory_bytes`; if those are None, what the free memory and its files suggest."""
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._whole = threading.Lock()  # held by the one trial that may take all of the memory
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._closed = False

    def try_version(self, trial: Trial) -> Approval:
        """Blocks until the trial has ended.

        Raises:
            LoadError: the version is refused, and why: by ONNX Runtime or its contract, or because it crashed, took too long or too
                much memory.
            FilesChanged: the files changed while they were read.
        """
        reply = self._reply(trial)
        return Approval(Expected(*reply["files"]), int(reply["max_batch_items"]))

    def close(self) -> None:
        """Ends the trials that run: they raise TrialsClosed. None begins any more."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for number in running:
            _server.cancel(number)

    def _reply(self, trial: Trial) -> dict[str, Any]:
        limit = self._limit_bytes(trial)
        part = min(limit, max(limit // PARTS, _MIN_PART_BYTES))
        reply = None
        if part == limit or _COPIES * _files_bytes(trial.path) < part:
            reply = self._evaluated(self._run(trial, part), part)
            if reply is not None and (part == limit or not reply["short_of_memory"]):
                return reply
        if part < limit:
            reply = self._with_all(trial, limit)
        if reply is None:
            raise LoadError(f"loading it needs more than {limit // _MEBIBYTE} MiB of memory (--load-memory)")
        return reply

    def _with_all(self, trial: Trial, limit: int) -> dict[str, Any] | None:
        while not self._whole.acquire(timeout=0.5):
            self._check_open()
        try:
            return self._evaluated(self._run(trial, limit), limit)
        finally:
            self._whole.release()

    def _limit_bytes(self, trial: Trial) -> int:
        if self._memory_bytes is not None:
            return self._memory_bytes
        free = free_memory_bytes()
        needed = _COPIES * _files_bytes(trial.path) + _MIN_PART_BYTES
        return max(_MIN_BYTES, int(min(_MOST_OF_FREE * free, max(_SHARE_OF_FREE * free, needed))))

    def _run(self, trial: Trial, memory_bytes: int) -> Ended:
        for attempt in (1, 2):
            self._check_open()
            number, future = _server.begin(trial, memory_bytes, self._seconds)
            with self._lock:
                self._running.add(number)
                closed = self._closed
            if closed:
                _server.cancel(number)
            try:
                ended: Ended = future.result()
            except EOFError:  # the process that forks has been ended
                if attempt == 1:
                    continue
                raise LoadError("the process in which models are tried has ended") from None
            finally:
                with self._lock:
                    self._running.discard(number)
            self._check_open()
            return ended
        raise AssertionError  # the second attempt returns or raises

    def _check_open(self) -> None:
        if self._closed:
            raise TrialsClosed("the server is stopping")

    def _evaluated(self, ended: Ended, memory_bytes: int) -> dict[str, Any] | None:
        """The reply of a trial that went well; None if it needs more memory."""
        if ended.late:
            raise LoadError(f"loading it takes longer than {self._seconds:g} s (--load-seconds)")
        try:
            reply: dict[str, Any] = json.loads(ended.reply)
            kind = reply["kind"]
        except (ValueError, LookupError, TypeError):
            self._refuse_crash(ended, memory_bytes)
            return None
        if kind == MEMORY:
            return None
        if kind == APPROVED:
            return reply
        if kind == "Unexpected":
            raise LoadError(f"loading it failed: {reply['message']}")
        raise _REFUSALS.get(kind, LoadError)(reply["message"])

    def _refuse_crash(self, ended: Ended, memory_bytes: int) -> None:
        """Raises LoadError, unless it may have been for lack of memory."""
        if ended.signal == signal.SIGKILL or ended.peak_bytes > memory_bytes // 2:
            return
        how = f"{signal.strsignal(ended.signal)} (signal {ended.signal})" if ended.signal else "it ended without a reply"
        raise LoadError(f"loading it crashes ONNX Runtime: {how}")


def _files_bytes(path: Path) -> int:
    """The size of the files in a version's folder."""
    total = 0
    for folder, _, files in os.walk(path.parent):
        for file in files:
            try:
                total += os.stat(os.path.join(folder, file)).st_size  # noqa: PTH116, PTH118 - quicker
            except OSError:
                continue
    return total


class _TrialServer:
    """The process that forks, one for all servers of this process. It is started when it is needed, and ends when it is idle.

    It ends with this process, too, however that ends: then its connection closes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None  # that of the connection
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: dict[int, Future[Ended]] = {}
        self._used = 0.0

    def start(self) -> None:
        """Starts the process without waiting for it, so that it is there when it is needed."""
        with self._lock:
            self._start()

    def begin(self, trial: Trial, memory_bytes: int, seconds: float) -> tuple[int, Future[Ended]]:
        """Begins a trial; returns its number, and a future, which fails with EOFError if the process has ended."""
        number, future = next(self._numbers), Future[Ended]()
        failed: list[Future[Ended]] = []
        with self._lock:
            self._pending[number] = future
            try:
                self._start().send((number, trial, memory_bytes, seconds))
            except OSError as error:
                log.warning("the process in which models are tried cannot be started or reached: %s", error.strerror)
                failed = self._give_up()  # the next trial starts another
        for each in failed:
            each.set_exception(EOFError())
        return number, future

    def cancel(self, number: int) -> None:
        """Ends a trial that may still be running."""
        with self._lock:
            if self._connection is not None and number in self._pending:
                try:
                    self._connection.send((number, None, 0, 0.0))
                except OSError:
                    return

    def stop(self) -> None:
        """Ends the process, and the trials with it."""
        with self._lock:
            process = self._process
            self._let_go()
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> Connection:
        self._used = time.monotonic()
        if self._connection is not None:
            return self._connection
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own program
                    [sys.executable, "-P", "-c", f"from service.engine.trial_server import main; main({theirs.fileno()})"],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_ONE_THREAD},
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    process_group=0,
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        self._socket = ours
        self._connection = Connection(os.dup(ours.fileno()))
        threading.Thread(target=self._read, args=(self._connection, self._process), name="trials", daemon=True).start()
        return self._connection

    def _read(self, connection: Connection, process: "subprocess.Popen[bytes]") -> None:
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
                        break
        except (EOFError, OSError):
            pass
        with self._lock:
            failed: list[Future[Ended]] = []
            if self._connection is connection:
                failed = self._give_up()
        for future in failed:
            future.set_exception(EOFError())
        connection.close()
        _wait_for(process)

    def _give_up(self) -> list[Future[Ended]]:
        """Ends the connection, and returns the futures of the trials that ran; they are to fail."""
        failed = list(self._pending.values())
        self._pending.clear()
        self._let_go()
        return failed

    def _let_go(self) -> None:
        """Ends the connection. The thread that reads from it closes it."""
        ended, self._socket, self._connection, self._process = self._socket, None, None, None
        if ended is not None:
            with contextlib.suppress(OSError):  # the process has ended
                ended.shutdown(socket.SHUT_RDWR)
            ended.close()


_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""For the process that forks: threads do not survive that."""


def _wait_for(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_server = _TrialServer()
start_trial_server = _server.start
atexit.register(_server.stop)
