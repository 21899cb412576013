"""A worker process as its supervisor sees it: started, called, killed.

The process is a new Python program (`worker.main`), not a fork: threads of gRPC and ONNX Runtime do not survive a fork. It has a
process group of its own, so that Ctrl-C in a terminal reaches the supervisor alone.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from multiprocessing import Pipe
from typing import Any, NamedTuple

from prometheus_client.core import Metric

from service.config import ServerConfig
from service.workers.acceptor import WorkerConnections
from service.workers.heartbeat import LOADING_LIMIT_SECONDS, Heartbeat, ProcessActivity
from service.workers.ipc import IpcConnection

EXIT_SECONDS = 5.0
"""How long a process may take to exit after it has closed its end of the pipe."""


class WorkerStatus(NamedTuple):
    """A worker's state: the later of two reports has the higher number.

    Attributes:
        not_ready_reason: empty if requests can be answered.
        metrics: all of them; None in what a heartbeat brings, which takes no time.
    """

    number: int
    not_ready_reason: str
    metrics: list[Metric] | None


class WorkerProcess:
    """One process from start to exit.

    Attributes:
        number: which of the workers it is, from 1.
        pid: its process id.
        takes_control: whether it has been sent the control calls to replay, and is to be sent those that follow.
        listening: whether it takes connections.
        not_ready_reason: as last reported; empty if requests can be answered.
        metrics: as last reported.
        heartbeat: whether it responds.
        connections: those that the supervisor has given it.
        exited: set once the process has exited.
    """

    def __init__(
        self, number: int, config: ServerConfig, methods: Mapping[str, Callable[..., Any]], on_report: Callable[[], None]
    ) -> None:
        """Starts the process. Raises OSError if the system cannot.

        `methods` are what the worker may call. `on_report` is called when it has sent a report unasked.
        """
        self.number = number
        self.takes_control = False
        self.listening = False
        self.not_ready_reason = "loading"
        self.metrics: list[Metric] = []
        self._status_number = self._metrics_number = 0
        self.exited = threading.Event()
        self._methods = methods
        self._on_report = on_report
        self._report_lock = threading.Lock()
        parent_end, worker_end = Pipe()
        given, taken = socket.socketpair()
        self.connections = WorkerConnections(given)
        with worker_end, taken:
            descriptors = (worker_end.fileno(), taken.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                # -P and PYTHONPATH: the worker imports what this process imports, and nothing from the working directory.
                [sys.executable, "-P", "-c", f"from service.workers.worker import main; main{descriptors}"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=descriptors, stdin=subprocess.DEVNULL, process_group=0,
            )  # fmt: skip
        self.pid = self._process.pid
        self.heartbeat = Heartbeat(ProcessActivity(self.pid).look, LOADING_LIMIT_SECONDS)
        self._ipc = IpcConnection(parent_end, self._handle, self.exited.set)
        with contextlib.suppress(OSError):  # it has exited already, which the reader thread finds out
            parent_end.send((number, config))
        self._ipc.start()

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Calls one of the methods listed in `worker.py`; see `IpcConnection.call`."""
        return self._ipc.call(method, *arguments)

    def update(self, report: WorkerStatus) -> None:
        """Keeps what is newer in it than what is known: reports may overtake each other."""
        with self._report_lock:
            if report.number > self._status_number:
                self._status_number, self.not_ready_reason = report.number, report.not_ready_reason
            if report.metrics is not None and report.number > self._metrics_number:
                self._metrics_number, self.metrics = report.number, report.metrics

    def kill(self) -> str:
        """Kills the process unless it has exited, waits for it, and returns how it exited."""
        if not self.exited.is_set():
            self._process.kill()
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self.connections.close()
        return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exited with code {code}"

    def _handle(self, method: str, *arguments: Any) -> Any:
        if method == "report":
            self.update(*arguments)
            self._on_report()
            return None
        return self._methods[method](*arguments)
