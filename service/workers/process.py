"""A worker process as its supervisor sees it: started, asked, ended.

Started as a program of its own (`worker.main`), never forked: threads of gRPC and ONNX Runtime do not survive a fork.
It has a process group of its own, so that Ctrl-C in a terminal comes to the supervisor alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import Pipe
from typing import Any, NamedTuple

from prometheus_client.core import Metric

from service.config import ServerConfig
from service.workers.ipc import Channel

EXIT_SECONDS = 5.0
"""How long a process may take to go when it has nothing more to say."""


class Report(NamedTuple):
    """How a worker is: the later of two has the higher number. `why_not_ready` is empty if requests can be answered."""

    number: int
    why_not_ready: str
    metrics: list[Metric]


class WorkerProcess:
    """One process from its start to its end.

    Attributes:
        number: which of the workers it is, from 1.
        pid: its process id.
        opened: whether it has bound the port.
        report: how it is, for all it has said.
        ended: is set when the process has ended.
    """

    def __init__(self, number: int, config: ServerConfig, broadcast: Callable[..., None], on_report: Callable[[], None]) -> None:
        """Starts the process. Raises OSError if the system cannot.

        `broadcast` does what the worker wants done by all workers. `on_report` is called after the worker has sent a report of its
        own accord.
        """
        self.number = number
        self.opened = False
        self.report = Report(0, "loading", [])
        self.ended = threading.Event()
        self._broadcast = broadcast
        self._on_report = on_report
        self._taking = threading.Lock()
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                # -P and the path: the worker finds what we have found, and nothing that happens to lie in the working directory.
                [sys.executable, "-P", "-c", f"from service.workers.worker import main; main({theirs.fileno()})"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0,
            )  # fmt: skip
        self.pid = self._process.pid
        self._channel = Channel(ours, self._answer, self.ended.set)
        with contextlib.suppress(OSError):  # it has ended already, which the channel finds out
            ours.send((number, config))
        self._channel.start()

    def ask(self, question: str, *arguments: Any) -> Future[Any]:
        """See `worker.py` for the questions, and `Channel.ask`."""
        return self._channel.ask(question, *arguments)

    def take(self, report: Report) -> None:
        """Takes a report if it is newer than the last: they may overtake each other."""
        with self._taking:
            if report.number > self.report.number:
                self.report = report

    def end(self) -> str:
        """Ends the process if it has not ended, waits for that, and says how it was."""
        if not self.ended.is_set():
            self._process.kill()
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"

    def _answer(self, question: str, *arguments: Any) -> None:
        if question == "report":
            self.take(*arguments)
            self._on_report()
        else:
            self._broadcast(*arguments)
