"""Processes that decode dear pictures for this one: started when the first one comes, limited in time and memory, replaced.

What is dear `picture_cost.py` says. What all of these pictures take together while they are decoded is bounded: a picture waits for
its bytes, in order of arrival, and one alone always goes on, whatever it takes. The processes are those of `decoder.py`.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.decoder import GO, LENGTH, NEEDS, PIXELS, QUESTION
from service.errors import InvalidRequest, Unavailable
from service.model.input_spec import InputSpec

log = logging.getLogger(__name__)

CheckWanted = Callable[[], None]
"""Raises if the picture is not wanted any more. Called several times a second."""

_POLL_SECONDS = 0.2
_LATE_SECONDS = 2.0
"""A decoder that has not ended so long after its time does not end by itself: it was stopped, or its kernel has no timer."""
_START_SECONDS = 60.0
_EXIT_SECONDS = 5.0


class DecodingProcesses:
    """Decodes pictures in other processes, each on the thread that asks: as many at a time as threads ask."""

    def __init__(self, seconds: float = 10.0, limit_bytes: int = 256 * 2**20) -> None:
        """Starts nothing yet.

        Args:
            seconds: how long decoding one picture may take.
            limit_bytes: what all pictures may take together while they are decoded.
        """
        self._seconds = seconds
        self._lock = threading.Lock()
        self._memory = _Memory(limit_bytes)
        self._program: _Program | None = None
        self._idle: list[_Decoder] = []
        self._closed = False

    def decode(self, encoded: bytes, spec: InputSpec, max_pixels: int, check_wanted: CheckWanted) -> NDArray[Any]:
        """[H,W,C] as from `preprocessing.decode`. Blocks, and raises what `check_wanted` raises.

        Raises:
            InvalidRequest: the picture is refused, takes too long or ends the process that decodes it.
            Unavailable: no process can be started.
        """
        json = spec.model_dump_json().encode()
        question = QUESTION.pack(self._seconds, max_pixels, len(json), len(encoded)) + json, encoded
        try:
            pixels = self._ask(question, spec.size_bytes, check_wanted)
        except _Orphaned:  # no fault of the picture
            pixels = self._ask(question, spec.size_bytes, check_wanted)
        return np.frombuffer(pixels, spec.dtype).reshape(spec.shape)

    def _ask(self, question: tuple[bytes, ...], pixels_bytes: int, check_wanted: CheckWanted) -> bytearray:
        decoder = self._take(check_wanted)
        try:
            pixels = decoder.decode(question, pixels_bytes, self._memory, check_wanted)
        except InvalidRequest:
            self._give_back(decoder)
            raise
        except _Died as death:
            decoder.kill()
            file_bytes = len(question[-1])
            if death.after_seconds >= self._seconds:
                log.info("a picture of %d bytes is refused: decoding it takes longer than %g s", file_bytes, self._seconds)
                raise InvalidRequest(f"decoding the image takes longer than {self._seconds:g} s") from None
            if decoder.program.ended(_POLL_SECONDS):
                raise _Orphaned from None
            log.warning("a picture of %d bytes is refused: the process that decoded it has died", file_bytes)
            raise InvalidRequest("the image cannot be decoded: its decoder died of it") from None
        except BaseException:  # it is not wanted any more, which a decoder at work does not hear
            decoder.kill()
            raise
        self._give_back(decoder)
        return pixels

    def close(self) -> None:
        """Ends all processes, those at work too."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            program, self._program = self._program, None
        for decoder in idle:
            decoder.kill()
        if program is not None:
            program.close()

    def _take(self, check_wanted: CheckWanted) -> "_Decoder":
        """A decoder that waits for a picture."""
        try:
            with self._lock:
                while self._idle:
                    decoder = self._idle.pop()
                    if decoder.alive:
                        return decoder
                    decoder.kill()
                if self._closed:
                    raise Unavailable("the server has stopped")
                if self._program is not None and self._program.ended():
                    self._program.close()
                    self._program = None
                self._program = self._program or _Program()
                program = self._program
                connection = program.fork()
            return _Decoder(program, connection, self._seconds, check_wanted)
        except (OSError, _Died) as error:
            log.error("no process to decode pictures can be started: %s", error)
            raise Unavailable("no process to decode the image can be started") from None

    def _give_back(self, decoder: "_Decoder") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(decoder)
                return
        decoder.kill()


class _Died(Exception):
    """The decoder has ended or does not answer, so many seconds after it got the picture."""

    def __init__(self, after_seconds: float) -> None:
        super().__init__(f"ended after {after_seconds:.1f} s")
        self.after_seconds = after_seconds


class _Orphaned(Exception):
    """The decoder has ended because the program has that started it."""


class _Memory:
    """Bytes that pictures take together. Those who wait for some do so one after the other."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._turn = threading.Lock()
        self._room = threading.Condition()
        self._taken = 0

    @contextlib.contextmanager
    def taken(self, count: int, check_wanted: CheckWanted) -> Iterator[None]:
        """Waits until `count` bytes fit, or nothing is taken; raises what `check_wanted` raises while it waits."""
        while not self._turn.acquire(timeout=_POLL_SECONDS):
            check_wanted()
        try:
            with self._room:
                while self._taken and self._taken + count > self._limit_bytes:
                    self._room.wait(_POLL_SECONDS)
                    check_wanted()
                self._taken += count
        finally:
            self._turn.release()
        try:
            yield
        finally:
            with self._room:
                self._taken -= count
                self._room.notify_all()


class _Program:
    """A running `decoder.py`, which forks decoders."""

    def __init__(self) -> None:
        self._control, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                # As workers/process.py starts a worker. BLAS would start threads, which do not survive a fork.
                [sys.executable, "-P", "-c", f"from service.engine.decoder import main; main({other.fileno()})"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0,
            )  # fmt: skip

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does so within this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def fork(self) -> socket.socket:
        """A socket to a new decoder."""
        ours, its = socket.socketpair()
        with its:
            try:
                socket.send_fds(self._control, [b"\0"], [its.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Ends it, and the kernel its decoders."""
        self._control.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Decoder:
    """One decoder, used by one thread at a time."""

    def __init__(self, program: _Program, connection: socket.socket, seconds: float, check_wanted: CheckWanted) -> None:
        """Waits until it has started. `seconds` is how long decoding a picture may take."""
        self.program = program
        self._connection = connection
        self._connection.settimeout(_POLL_SECONDS)
        self._seconds = seconds
        try:
            self._started, self._limit = time.monotonic(), _START_SECONDS
            [self._pid] = LENGTH.unpack(self._read(LENGTH.size, check_wanted))
        except BaseException:
            connection.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process is there; asked while it has nothing to say but its end."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not poll.poll(0)

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._connection.close()

    def decode(self, question: tuple[bytes, ...], pixels: int, memory: _Memory, check_wanted: CheckWanted) -> bytearray:
        """So many bytes of pixels. Raises InvalidRequest if the picture is refused."""
        self._started, self._limit = time.monotonic(), self._seconds + _LATE_SECONDS
        for part in question:
            self._send(part, check_wanted)
        with contextlib.ExitStack() as stack:
            answer = self._read(1, check_wanted)
            if answer == NEEDS:
                [count] = LENGTH.unpack(self._read(LENGTH.size, check_wanted))
                before = time.monotonic()
                stack.enter_context(memory.taken(count, check_wanted))
                self._started += time.monotonic() - before  # which does not count
                self._send(GO, check_wanted)
                answer = self._read(1, check_wanted)
            if answer == PIXELS:
                return self._read(pixels, check_wanted)
        [count] = LENGTH.unpack(self._read(LENGTH.size, check_wanted))
        raise InvalidRequest(self._read(count, check_wanted).decode())

    def _send(self, data: bytes, check_wanted: CheckWanted) -> None:
        view = memoryview(data)
        while view:
            view = view[self._attempt(self._connection.send, view, check_wanted) :]

    def _read(self, count: int, check_wanted: CheckWanted) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            received = self._attempt(self._connection.recv_into, view, check_wanted)
            if not received:
                raise _Died(time.monotonic() - self._started)
            view = view[received:]
        return data

    def _attempt(self, operation: Callable[[memoryview], int], view: memoryview, check_wanted: CheckWanted) -> int:
        """What the operation returns, tried again until it is there."""
        while True:
            try:
                return operation(view)
            except TimeoutError:
                check_wanted()
                seconds = time.monotonic() - self._started
                if seconds > self._limit:
                    raise _Died(seconds) from None
            except ConnectionError:
                raise _Died(time.monotonic() - self._started) from None
