"""Tries one version of a model in a process made for it: opened, checked against its contract, run as the server would run it.

The process is forked by `trial_server.py`, within limits of memory that it sets itself. What becomes of it harms nobody: it may
crash, and it is killed when its time is over.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import threading
import time

from service.engine.trial import APPROVED, MEMORY, Trial
from service.errors import LoadError, short_reason
from service.model.cpus import cpu_budget
from service.model.loading import load_model
from service.model.model_files import Expected, ModelContent, read_model
from service.model.repository_layout import logged_version
from service.model.session import is_installed, open_session
from service.process.denormals import flush_denormals
from service.triton.warmup import warm_up

MAX_THREADS = 4
"""More would make the trial of a small model slower, and each needs memory of its own."""

_NICE = 5
"""The processes that serve come first."""

_SHARE_FOR_BATCHES = 0.5
"""Of the time that a trial has. After that no larger batches are tried."""

_PARENT_DEATH_SIGNAL = 1  # of prctl
_OUT_OF_MEMORY_SCORE = "1000"
"""If the machine runs out of memory, this process is the first that the kernel ends."""

_NO_MEMORY = ("bad allocation", "bad_alloc", "failed to allocate memory", "cannot allocate memory", "unable to allocate")


def try_and_reply(trial: Trial, memory_bytes: int, seconds: float, pipe: int, parent: int) -> None:
    """Tries a version, writes the outcome to `pipe` as JSON, and exits. Never returns."""
    try:
        _confine(parent)
        flush_denormals()
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)  # what a crash says is not for the server's log
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + memory_bytes, limits[1]))
        outcome = _on_a_thread(trial, time.perf_counter() + _SHARE_FOR_BATCHES * seconds)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        content = json.dumps(outcome).encode()
        while content:
            content = content[os.write(pipe, content) :]
    finally:
        os._exit(0)


def _confine(parent: int) -> None:
    """Ends this process with its parent, keeps its memory out of files, and lets others go first."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(_OUT_OF_MEMORY_SCORE)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 2**28


def _on_a_thread(trial: Trial, until: float) -> dict[str, object]:
    """As the server does: a thread's stack is smaller than that of the main thread may be."""
    outcome: dict[str, object] = {}

    def run() -> None:
        outcome.update(_outcome(trial, until))

    thread = threading.Thread(target=run)
    try:
        thread.start()
    except RuntimeError:
        return {"kind": MEMORY}
    thread.join()
    return outcome


def _outcome(trial: Trial, until: float) -> dict[str, object]:
    try:
        return _approve(trial, until)
    except MemoryError:
        return {"kind": MEMORY}
    except LoadError as error:
        kind = MEMORY if _is_for_lack_of_memory(error) else type(error).__name__
        return {"kind": kind, "message": short_reason(error)}
    except Exception as error:  # noqa: BLE001 - of a library, about this file
        return {"kind": MEMORY} if _is_for_lack_of_memory(error) else {"kind": "Unexpected", "message": type(error).__name__}


def _approve(trial: Trial, until: float) -> dict[str, object]:
    content = read_model(trial.path, signed=trial.signed)
    policy = trial.policy
    provider = policy.provider or trial.provider
    threads = max(1, min(trial.cpus, cpu_budget(), MAX_THREADS) // policy.instances)
    if provider not in ("cpu", "auto") or (provider == "auto" and is_installed("cuda")):
        # What the CPU cannot run, or runs otherwise, may do on another provider: then only that it ends is tried.
        with contextlib.suppress(LoadError):
            open_session(content, "cpu", threads)
        return _approval(content, policy.max_batch_size)
    name = logged_version(trial.path)
    models = [
        load_model(content, "cpu", threads, trial.labels, policy.max_batch_size, name, trial.declared)
        for _ in range(policy.instances)
    ]
    for model in models:
        warm_up(model, trial.path.parents[1], trial.triton.warmup)
    sizes, error = models[0].working_batches(policy.max_batch_size, until)
    short = error is not None and _is_for_lack_of_memory(error)
    return _approval(content, sizes[-1], short_of_memory=short)


def _approval(content: ModelContent, max_batch_items: int, *, short_of_memory: bool = False) -> dict[str, object]:
    files = Expected(content.digest, content.graph_digest, content.size_bytes)
    return {"kind": APPROVED, "files": files, "max_batch_items": max_batch_items, "short_of_memory": short_of_memory}


def _is_for_lack_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in _NO_MEMORY)
