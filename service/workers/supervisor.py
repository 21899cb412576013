"""Several workers as one server: started, watched, replaced, asked, drained.

The workers share the gRPC port by SO_REUSEPORT: the kernel gives each connection to one of them, and what is in a connection stays
with it. The supervisor holds the port without listening on it, so that it is theirs from the first to the last, and whoever else
wants it is told that it is in use. The HTTP port is the supervisor's own: metrics and probes speak for all workers, and whatever
else is asked there is passed on to one of them.

For each worker a thread starts a process, has it load the models, opens it to connections, and listens to its heart until it ends;
then the next, after a pause that doubles while workers keep ending. A worker that ends before the server has been ready once ends
the server: what is wrong then is wrong for all. After that the server is ready as long as one worker is.
"""

import contextlib
import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from werkzeug.wrappers import Response

from service import message_limits
from service.config import ServerConfig
from service.control import Call, remember
from service.errors import ConvoyError, LoadError, Unavailable, UserError
from service.http.server import ROUTE, HttpMetrics, HttpServer
from service.lifecycle import ReadyFile, StopOnSignals, check_settings
from service.workers.aggregated_metrics import counts, merge, without_forgotten
from service.workers.ipc import ChannelClosed
from service.workers.process import WorkerProcess

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
HUNG_SECONDS = 60.0
"""A worker that does not answer for so long is taken for hung, and ended."""

SCRAPE_SECONDS = 3.0
"""A scrape waits so long for a worker; then it gets what the worker said last."""

FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""After so long without an end the next pause is the first again."""

STOP_SECONDS = 5.0
"""How long a worker may take to leave, beyond the time to drain."""


class Supervisor(Collector):
    """Serves a repository by several workers. Construct, `start`, and in the end `stop`. Collects the metrics of all."""

    def __init__(self, config: ServerConfig, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called when the server cannot go on; `failure` says why."""
        self.failure: Exception | None = None
        self._config = config
        self._on_failure = on_failure
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        Gauge("convoy_workers", "Workers that there should be", registry=self._own).set(config.workers)
        ready = Gauge("convoy_workers_ready", "Workers that can answer requests", registry=self._own)
        ready.set_function(lambda: len(self._ready_workers()))
        self._restarts = Counter("convoy_worker_restarts", "Workers started in place of one that ended", registry=self._own)
        everything = CollectorRegistry()
        everything.register(self)
        self._http = HttpServer(
            config.host, config.http_port, everything, HttpMetrics(self._own), self.why_not_ready, self._pass_on,
            max_body_bytes=config.max_message_bytes or message_limits.message_bytes(config.repository, config.policies),
        )  # fmt: skip
        self._ready_file = ReadyFile(config.ready_file)
        self._lock = threading.Lock()
        self._workers: dict[int, WorkerProcess] = {}  # replaced, never changed: readers need no lock
        self._departed: list[Metric] = []  # what workers that have ended had counted
        self._was_ready = False
        self._stopping = threading.Event()
        self._asking_all = threading.Lock()
        self._remembered: list[Call] = []  # for workers to come
        self._turns = itertools.count()
        self._keepers = [
            threading.Thread(target=self._keep, args=(number,), name=f"worker-{number}") for number in range(1, config.workers + 1)
        ]

    def start(self) -> None:
        """Holds the ports and starts the workers. Raises UserError for what the operator can put right."""
        config = self._config
        check_settings(config)
        self._ready_file.check()
        self._port = _hold_port(config)
        try:
            self._http.start()
        except BaseException:
            self._port.close()
            raise
        self._ready_file.clear()
        self._worker_config = config.model_copy(update={"grpc_port": self.grpc_port, "http_port": 0, "ready_file": None})
        for keeper in self._keepers:
            keeper.start()

    def stop(self, lame_duck_seconds: float = 0.0) -> None:
        """Drains all workers and waits until they have left, at most for the configured time. See `Server.drain`."""
        with self._lock:
            self._stopping.set()
            workers = self._workers.values()
        for worker in workers:
            worker.ask("drain", lame_duck_seconds)
        deadline = time.monotonic() + lame_duck_seconds + self._config.drain_seconds + STOP_SECONDS
        for worker in workers:
            if not worker.ended.wait(max(0.0, deadline - time.monotonic())):
                log.warning("worker %d (pid %d) has not left in time and is ended", worker.number, worker.pid)
                worker.end()
        for keeper in self._keepers:
            keeper.join()
        self._http.stop()
        self._port.close()
        self._ready_file.withdraw()
        if self.failure is None:
            log.info("stopped")

    @property
    def grpc_port(self) -> int:
        """The port that the workers share, once started."""
        port: int = self._port.getsockname()[1]
        return port

    def why_not_ready(self) -> str:
        """Why requests cannot be answered now; empty if they can."""
        if self._stopping.is_set():
            return "draining"
        workers = self._workers
        reasons = {number: _why_not_ready(workers.get(number)) for number in range(1, self._config.workers + 1)}
        missing = [f"worker {number}: {reason}" for number, reason in reasons.items() if reason]
        if self._was_ready and len(missing) < len(reasons):
            return ""
        return "; ".join(missing)

    def collect(self) -> Iterable[Metric]:
        """The metrics of all workers, of those that were, and of the supervisor, as those of one server."""
        asked = [(worker, worker.ask("report")) for worker in self._workers.values()]
        deadline = time.monotonic() + SCRAPE_SECONDS
        for worker, answer in asked:
            with contextlib.suppress(ConvoyError, TimeoutError):
                worker.take(answer.result(max(0.0, deadline - time.monotonic())))
        with self._lock:
            present = [worker.report.metrics for worker in self._workers.values()]
            if len(self._ready_workers()) == self._config.workers:
                self._departed = without_forgotten(self._departed, present)
            return merge([list(self._own.collect()), *present, self._departed])

    def _ready_workers(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if not _why_not_ready(worker)]

    def _keep(self, number: int) -> None:
        """The thread of one worker: starts it, watches it, starts the next."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            try:
                ending = self._run(number)
            except Exception:
                log.exception("worker %d: keeping it failed", number)
                ending = "is lost"
            if self._stopping.is_set() or self.failure is not None:
                return
            if time.monotonic() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            log.error("worker %d %s; another starts in %g s", number, ending, pause)
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            self._restarts.inc()

    def _run(self, number: int) -> str:
        """One worker process from its start to its end; how it ended."""
        with self._lock:
            if self._stopping.is_set():
                return ""
            try:
                worker = WorkerProcess(number, self._worker_config, self._broadcast, self._changed)
            except OSError as error:
                return f"could not be started: {error.strerror}"
            self._workers = self._workers | {number: worker}
        reason: Exception | None = None
        try:
            self._bring_up(worker)
            self._listen_to(worker)
        except ChannelClosed:
            pass  # it has ended by itself
        except TimeoutError:
            limit = HUNG_SECONDS if worker.opened else self._config.worker_start_seconds
            reason = ConvoyError(f"it did not {'answer' if worker.opened else 'load its models'} within {limit:g} s")
        except Exception as error:  # noqa: BLE001 - whatever it is, there must be a worker
            reason = error
        ending = worker.end()
        ending = f"(pid {worker.pid}) {ending if reason is None else f'is ended: {reason}'}"
        with self._lock:
            self._workers = {other: kept for other, kept in self._workers.items() if other != number}
            self._departed = merge([self._departed, counts(worker.report.metrics)])
        if not worker.opened and not self._was_ready:
            self._fail(reason if isinstance(reason, UserError | ImportError) else ConvoyError(f"worker {number} {ending}"))
        return ending

    def _bring_up(self, worker: WorkerProcess) -> None:
        limit_seconds = self._config.worker_start_seconds
        worker.ask("load").result(limit_seconds)
        with self._asking_all:  # from here on it is one of all
            worker.ask("open", self._remembered).result(limit_seconds)
            worker.opened = True
        log.info("worker %d (pid %d) serves", worker.number, worker.pid)
        self._changed()

    def _listen_to(self, worker: WorkerProcess) -> None:
        """Until it ends, or is of no use: its process may be there and yet be stuck, with connections that nobody serves."""
        while not worker.ended.wait(HEARTBEAT_SECONDS):
            worker.take(worker.ask("report").result(HUNG_SECONDS))

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if self.failure is not None or self._stopping.is_set():
                return
            self.failure = error
        self._on_failure()

    def _changed(self) -> None:
        with self._lock:
            if self._was_ready or self._stopping.is_set() or len(self._ready_workers()) < self._config.workers:
                return
            self._was_ready = True
            self._ready_file.write(self.grpc_port, self._http.port)
        log.info(
            "ready: gRPC on %s:%d by %d workers, HTTP on %s:%d",
            self._config.url_host, self.grpc_port, self._config.workers, self._config.url_host, self._http.port,
        )  # fmt: skip

    def _broadcast(self, method: str, *arguments: str | int) -> None:
        """Has all workers do it; raises the first error if any of them fails, after all have tried."""
        with self._asking_all:
            asked = [worker.ask("act", method, *arguments) for worker in self._workers.values() if worker.opened]
            errors = []
            for answer in asked:
                try:
                    answer.result()
                except ChannelClosed:
                    continue  # the worker in its place will be told
                except ConvoyError as error:
                    errors.append(error)
            # A load that fails has taken back an unload before, and serves what it can.
            if len(errors) < len(asked) or all(isinstance(error, LoadError) for error in errors):
                self._remembered = remember(self._remembered, (method, *arguments))
            if errors:
                raise errors[0]

    def _pass_on(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Has one of the workers answer an HTTP request, the next one each time."""
        workers = self._ready_workers() or [worker for worker in self._workers.values() if worker.opened]
        try:
            if not workers:
                raise Unavailable(self.why_not_ready())
            request = {key: value for key, value in environ.items() if isinstance(value, str)}
            worker = workers[next(self._turns) % len(workers)]
            status, headers, body, route = worker.ask("http", request, environ["wsgi.input"].read()).result()
            environ[ROUTE] += route
        except ConvoyError as error:
            response = Response(json.dumps({"error": str(error)}), 503, {"Retry-After": "1"}, mimetype="application/json")
        else:
            response = Response(body, status, headers)
        return response(environ, start_response)


def _why_not_ready(worker: WorkerProcess | None) -> str:
    return worker.report.why_not_ready if worker is not None and worker.opened else "loading"


def _hold_port(config: ServerConfig) -> socket.socket:
    """Takes the gRPC port, a free one for 0, without listening on it. Raises UserError if it cannot be had."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UserError("--workers needs SO_REUSEPORT, which this system does not have; --workers 1 does without")
    family, *_, address = socket.getaddrinfo(config.host, config.grpc_port, type=socket.SOCK_STREAM)[0]
    holder = socket.socket(family, socket.SOCK_STREAM)
    # Bound as if it were for us alone, so that other workers on the port are an error as any other server is; shared only then. The
    # kernel looks at what is set when the next one binds.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(address)
    except OSError as error:
        holder.close()
        raise UserError(
            f"cannot listen for gRPC on {config.url_host}:{config.grpc_port}: {error.strerror or error} (port 0 takes a free one)"
        ) from None
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return holder


def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends the process, and so the workers, at once, with code 1."""
    asked_to_stop = StopOnSignals(config.lame_duck_seconds)
    supervisor = Supervisor(config, on_failure=asked_to_stop.set)
    supervisor.start()
    try:
        asked_to_stop.wait()
    finally:
        supervisor.stop(asked_to_stop.lame_duck_seconds)
    if supervisor.failure is not None:
        raise supervisor.failure
