"""Runs a load: spawns the client processes, starts them together, and adds up what they measured."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from service.bench import sender
from service.bench.load import Load, Outcome
from service.errors import UserError

_EXIT_SECONDS = 5.0


def run(
    load: Load, on_progress: Callable[[float], None] = lambda seconds: None, on_start: Callable[[], None] = lambda: None
) -> Outcome:
    """Sends a load and returns what came of it.

    Ctrl-C ends the load early; the outcome is then what was measured so far. `on_start` is called at the end of the warm-up,
    `on_progress` several times a second with the seconds of load so far.

    Raises:
        UserError: a client process cannot reach the server, or the server refuses the request.
    """
    context = multiprocessing.get_context("spawn")
    clients: list[tuple[SpawnProcess, Connection]] = []
    try:
        for index in range(load.processes):
            pipe, its_pipe = context.Pipe()
            process = context.Process(target=sender.main, args=(load.share(index), its_pipe), name=f"client-{index}", daemon=True)
            with _sigint_ignored():  # Ctrl-C reaches all processes of the terminal; this one stops the others
                process.start()
            its_pipe.close()
            clients.append((process, pipe))
        pipes = [pipe for _, pipe in clients]
        for pipe in pipes:
            _receive(pipe)
        start = time.monotonic() + 0.1
        for pipe in pipes:
            pipe.send(start)
        _wait(pipes, start + load.warmup_seconds, load.seconds, on_progress, on_start)
        outcome = Outcome()
        while pipes:
            ready = wait(pipes)  # one that has died says so at once, whoever still sends
            for pipe in [each for each in pipes if each in ready]:
                outcome.add(_receive(pipe))
                pipes.remove(pipe)
        return outcome
    finally:
        for process, pipe in clients:
            pipe.close()
            process.join(_EXIT_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Processes started meanwhile ignore SIGINT from their first moment on."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _wait(
    pipes: Sequence[Connection], start: float, seconds: float, on_progress: Callable[[float], None], on_start: Callable[[], None]
) -> None:
    """Until a client process sends its outcome or an error. Ctrl-C tells all of them to stop."""
    try:
        started = False
        while not wait(list(pipes), timeout=0.2):
            passed = time.monotonic() - start
            if passed >= 0 and not started:
                started = True
                on_start()
            on_progress(min(max(0.0, passed), seconds))
    except KeyboardInterrupt:
        for pipe in pipes:
            with suppress(OSError):
                pipe.send("stop")


def _receive(pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except EOFError:
        raise UserError("a client process exited unexpectedly (out of memory?)") from None
    if isinstance(message, UserError):
        raise message
    return message
