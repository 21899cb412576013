"""A worker process: a server that is run by its supervisor and exits with it.

The supervisor calls, over IPC:

    load      constructs the server and loads the models; raises UserError for what the operator can fix
    listen    replays the control calls made before this worker started, then takes connections: from the supervisor, or from the
              port, which it shares
    beat      returns readiness, at once; raises Unavailable if only a new process can help
    report    returns readiness and all metrics
    control   carries out a control call on this worker (`control.py`)
    http      answers an HTTP request that arrived on the supervisor's port
    drain     finishes running requests and exits, as SIGTERM and SIGINT do

The worker calls `report` when it may have become ready and when it has drained, `broadcast` to have a control call carried out by
every worker, and `try_version` to have a version tried before it loads it.
"""

import io
import itertools
import logging
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from service.access import audit
from service.config import ServerConfig
from service.control import Call
from service.errors import ConvoyError, DeadlineExceeded, Unavailable
from service.http.event_loop import HTTP_FLUSH_SECONDS
from service.http.server import ROUTE
from service.lifecycle import StopEvent
from service.process.denormals import flush_denormals
from service.process.logs import set_up_logging
from service.process.malloc import limit_freed_memory
from service.process.process_exit import exit_at_once
from service.workers.ipc import IpcClosed, IpcConnection
from service.workers.process import WorkerStatus

if TYPE_CHECKING:
    from service.engine.trial import Approval, Trial
    from service.server import Server

log = logging.getLogger(__name__)

LAST_REPORT_SECONDS = 5.0
"""How long to wait for the supervisor to take the last report."""


class Worker:
    """Serves as its supervisor says."""

    def __init__(self, number: int, config: ServerConfig, pipe: Connection, connections: socket.socket) -> None:
        self._number = number
        self._config = config
        self._connections = connections
        self._ipc = IpcConnection(pipe, self._handle, _exit_without_supervisor)
        self._methods: dict[str, Callable[..., Any]] = {
            "load": self._load,
            "listen": self._listen,
            "beat": self._beat,
            "report": self._report,
            "control": self._control,
            "http": self._http,
            "drain": self._drain,
        }
        self._server: Server | None = None
        self._listening = False
        self._listen_lock = threading.Lock()
        self._replayed = threading.Event()
        self._http_running = 0
        self._http_finished = threading.Condition()
        self._report_numbers = itertools.count(1)
        self._report_lock = threading.Lock()
        self._last_report: WorkerStatus | None = None
        self._stop = StopEvent()
        self._lame_duck_seconds = config.lame_duck_seconds

    def run(self) -> None:
        """Serves until the supervisor or a signal stops it, then exits."""
        self._ipc.start()
        self._stop.wait()
        with self._listen_lock:
            server = self._server
            if server is None or not self._listening:
                exit_at_once(0)  # without waiting for a load
        server.drain(self._lame_duck_seconds)
        with self._http_finished:  # the requests are finished, their HTTP responses may still be on their way
            self._http_finished.wait_for(lambda: not self._http_running, HTTP_FLUSH_SECONDS)
        self._last_report = self._report()  # `close` takes the models' metrics away
        try:
            self._ipc.call("report", self._last_report).result(LAST_REPORT_SECONDS)
        except (IpcClosed, TimeoutError):
            log.warning("the supervisor did not take the last report")
        server.close()
        exit_at_once(0)

    def _handle(self, method: str, *arguments: Any) -> Any:
        return self._methods[method](*arguments)

    def _load(self, accepts: bool) -> None:
        """`accepts`: whether the supervisor accepts connections and passes them on."""
        from service.server import Server

        self._server = Server(
            self._config, self._send_report, BroadcastControl(self._ipc, self._config.control_seconds), self._try_version,
            self._connections if accepts else None, self._number,
        )  # fmt: skip
        self._server.load_models()

    def _try_version(self, trial: "Trial") -> "Approval":
        """Has the supervisor try a version, once for all workers."""
        approval: Approval = self._ipc.call("try_version", trial).result()
        return approval

    def _listen(self, replay: Sequence[Call]) -> None:
        with self._listen_lock:
            if self._stop.is_set():
                raise Unavailable("the worker is stopping")
            for method, *arguments in replay:
                try:
                    self._carry_out(str(method), *arguments)
                except ConvoyError as error:
                    log.warning("%s %s: %s", method, " ".join(map(str, arguments)), error)
            self._replayed.set()
            self._loaded_server.listen()
            self._listening = True

    def _control(self, method: str, *arguments: str | int) -> None:
        self._replayed.wait(self._config.control_seconds)  # the supervisor may call as soon as it has sent what to replay
        self._carry_out(method, *arguments)

    def _carry_out(self, method: str, *arguments: str | int) -> None:
        getattr(self._loaded_server.control, method)(*arguments)

    def _drain(self, lame_duck_seconds: float) -> None:
        self._lame_duck_seconds = lame_duck_seconds
        self._stop.set()

    def _beat(self) -> WorkerStatus:
        server, last = self._server, self._last_report
        if last is not None or server is None:
            return WorkerStatus(0, "loading", None) if last is None else last._replace(metrics=None)
        reason = server.not_alive_reason()
        if reason:
            raise Unavailable(reason)
        return WorkerStatus(next(self._report_numbers), server.not_ready_reason(), None)

    def _report(self) -> WorkerStatus:
        with self._report_lock:
            if self._last_report is not None:
                return self._last_report
            server = self._server
            if server is None:
                return WorkerStatus(next(self._report_numbers), "loading", [])
            return WorkerStatus(next(self._report_numbers), server.not_ready_reason(), server.metrics())

    def _http(self, environ: dict[str, Any], body: bytes) -> tuple[int, list[tuple[str, str]], bytes, list[str]]:
        route: list[str] = []
        environ |= {"wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr, "wsgi.version": (1, 0), "wsgi.multithread": True,
                    "wsgi.multiprocess": True, "wsgi.run_once": False, ROUTE: route}  # fmt: skip
        with self._http_finished:
            self._http_running += 1
        try:
            response = Response.from_app(self._loaded_server.http_application, environ, buffered=True)
            return response.status_code, list(response.headers.items()), response.get_data(), route
        finally:
            with self._http_finished:
                self._http_running -= 1
                self._http_finished.notify_all()

    @property
    def _loaded_server(self) -> "Server":
        if self._server is None:
            raise Unavailable("the worker has not loaded its models yet")
        return self._server

    def _send_report(self) -> None:
        self._ipc.call("report", self._report())


class BroadcastControl:
    """Control of every worker, through the supervisor."""

    def __init__(self, ipc: IpcConnection, max_seconds: float) -> None:
        self._ipc = ipc
        self._max_seconds = max_seconds

    def _broadcast(self, method: str, *arguments: str | int, seconds: float | None = None) -> None:
        limit = self._max_seconds if seconds is None else max(0.0, min(seconds, self._max_seconds))
        try:
            self._ipc.call("broadcast", method, *arguments).result(limit)
        except TimeoutError:
            raise DeadlineExceeded(f"not all workers are done after {limit:.3g} s: {method} goes on") from None

    def load(self, name: str, seconds: float | None = None) -> None:
        """See Control."""
        self._broadcast("load", name, seconds=seconds)

    def unload(self, name: str, seconds: float | None = None) -> None:
        """See Control."""
        self._broadcast("unload", name, seconds=seconds)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """See Control."""
        self._broadcast("register", name, key, offset, byte_size)

    def unregister(self, name: str) -> None:
        """See Control."""
        self._broadcast("unregister", name)


def _exit_without_supervisor() -> None:
    """Without a supervisor this process would never be restarted, drained or scraped."""
    exit_at_once(1)


def main(file_descriptor: int, connections_descriptor: int) -> None:
    """Runs a worker; the descriptors are its ends of the pipe to the supervisor, and of the socket that brings connections."""
    limit_freed_memory()
    flush_denormals()
    pipe = Connection(file_descriptor)
    number, config = pipe.recv()
    set_up_logging(config.log_level, config.log_format, number)
    audit.open_log(config.audit_log)
    Worker(number, config, pipe, socket.socket(fileno=connections_descriptor)).run()
