"""Tries a version of a model in a process of its own before the server takes it in.

A model file may compute for ever, crash ONNX Runtime or need more memory than there is; in the server's process that would be the
end of all models. `trial_server.py` runs as one small process beside the server, with ONNX Runtime imported and nothing loaded. For
each trial it forks, which takes milliseconds, and `trial_process.py` does in that fork what the server would do: opens the version,
replays its golden samples, runs batches. Only what comes back approved is loaded by the server, and only if it is still the same
bytes.

Memory. A trial first gets a part of what a model may take, beside others. If that is too little it is repeated with all of it.
Those that run side by side share what is free (`trial_memory.py`).

This module needs nothing of what models need: a supervisor, too, has it (`workers/supervisor.py`).
"""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from service.engine.trial import APPROVED, MEMORY, Approval, Ended, Trial, TrialsClosed
from service.engine.trial_client import trial_client
from service.engine.trial_memory import SHARE_OF_FREE, TrialMemory
from service.errors import FilesChanged, GoldenMismatch, InvalidModel, LoadError, PassingFailure
from service.model.model_files import Expected
from service.process.memory_limit import free_memory_bytes

LATE_SECONDS = 30.0
"""A trial that is not answered so long after its time is over never will be."""

PARTS = 8
"""A trial first gets this part of the memory that a model may take."""

_MEBIBYTE = 2**20
_MIN_BYTES, _MIN_PART_BYTES = 64 * _MEBIBYTE, 256 * _MEBIBYTE
_USUAL_SHARE_OF_FREE = 0.5
_COPIES = 4
"""Loading needs the size of the files two to three times."""

_REFUSALS: dict[str, type[LoadError]] = {
    each.__name__: each for each in (LoadError, InvalidModel, GoldenMismatch, FilesChanged, PassingFailure)
}

_memory = TrialMemory(free_memory_bytes)


class Trials:
    """Tries versions for one server, within its limits. Thread-safe."""

    def __init__(self, seconds: float, memory_bytes: int | None) -> None:
        """A trial takes at most `seconds`, and `memory_bytes`; if those are None, what the free memory and its files suggest."""
        self._seconds = seconds
        self._memory_bytes = memory_bytes
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
            trial_client.cancel(number)

    def _reply(self, trial: Trial) -> dict[str, Any]:
        limit = self._limit_bytes(trial)
        part = min(limit, max(limit // PARTS, _MIN_PART_BYTES))
        reply = None
        if part == limit or _COPIES * _files_bytes(trial.path) < part:
            reply = self._tried(trial, part)
            if reply is not None and (part == limit or not reply["short_of_memory"]):
                return reply
        if part < limit:
            reply = self._tried(trial, limit)
        if reply is None:
            # A limit that nobody has set is of what was free.
            refusal = PassingFailure if self._memory_bytes is None else LoadError
            raise refusal(f"loading it needs more than {limit // _MEBIBYTE} MiB of memory (--load-memory)")
        return reply

    def _tried(self, trial: Trial, memory_bytes: int) -> dict[str, Any] | None:
        with _memory.taken(memory_bytes, self._check_open):
            ended = self._run(trial, memory_bytes)
        return self._evaluated(ended, memory_bytes)

    def _limit_bytes(self, trial: Trial) -> int:
        if self._memory_bytes is not None:
            return self._memory_bytes
        free = free_memory_bytes()
        needed = _COPIES * _files_bytes(trial.path) + _MIN_PART_BYTES
        return max(_MIN_BYTES, int(min(SHARE_OF_FREE * free, max(_USUAL_SHARE_OF_FREE * free, needed))))

    def _run(self, trial: Trial, memory_bytes: int) -> Ended:
        for attempt in (1, 2):
            self._check_open()
            number, future = trial_client.begin(trial, memory_bytes, self._seconds)
            with self._lock:
                self._running.add(number)
                closed = self._closed
            if closed:
                trial_client.cancel(number)
            try:
                ended: Ended = future.result(self._seconds + LATE_SECONDS)
            except TimeoutError:
                trial_client.abandon(number)
                raise PassingFailure("the process in which models are tried does not answer") from None
            except EOFError:  # the process that forks has been ended
                if attempt == 1:
                    continue
                raise PassingFailure("the process in which models are tried has ended") from None
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
