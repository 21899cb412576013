"""The parent of several workers: it starts, watches, restarts and drains them, so that they look like one server.

The workers share the gRPC port by SO_REUSEPORT: the kernel gives each connection to one of them, for as long as it lasts. The
supervisor reserves the port without listening on it, from start to stop, so that another program which wants it fails. The HTTP
port is the supervisor's own: metrics and probes speak for all workers, and other requests are forwarded to one of them.

Each worker has a thread here. It starts a process, has it load the models and listen, and asks it for a report every few seconds
until it exits or hangs; then it starts the next, after a backoff. A worker that fails before the server has been ready once ends
the server: the next one would fail too. After that the server is ready as long as one worker is.
"""

import contextlib
import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from werkzeug.wrappers import Response

from service import listeners, message_limits
from service.access.access import Access
from service.access.authenticator import Authenticator
from service.config import ServerConfig
from service.control import Call, calls_to_replay
from service.errors import ConvoyError, LoadError, Unavailable, UserError
from service.http.gate import Gate
from service.http.server import ROUTE, HttpMetrics, HttpServer
from service.lifecycle import StopOnSignals, check_config
from service.process_exit import before_exit
from service.ready_file import ReadyFile
from service.vital_thread import vital_thread
from service.workers.aggregated_metrics import cumulative, merge, without_unserved_versions
from service.workers.ipc import IpcClosed
from service.workers.process import WorkerProcess

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
"""How often a worker is asked for a report."""

HUNG_SECONDS = 60.0
"""A worker that has not replied for this long is considered hung, and killed."""

SCRAPE_SECONDS = 3.0
"""How long a scrape waits for a worker's metrics; after that its last report is used."""

MIN_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 30.0
BACKOFF_RESET_SECONDS = 60.0
"""The backoff doubles with each restart. A worker that ran for this long resets it."""

EXIT_SECONDS = 5.0
"""How long a worker may take to exit, beyond the lame-duck and drain times."""


class Supervisor(Collector):
    """Serves a repository with several workers. Construct, `start`, and in the end `stop`. Collects the metrics of all."""

    def __init__(self, config: ServerConfig, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called when the server cannot go on; `failure` says why."""
        self.failure: Exception | None = None
        self._config = config
        self._on_failure = on_failure
        self._own_metrics = CollectorRegistry()
        ProcessCollector(registry=self._own_metrics)
        Gauge("convoy_workers", "Configured workers", registry=self._own_metrics).set(config.workers)
        ready = Gauge("convoy_workers_ready", "Workers that can answer requests", registry=self._own_metrics)
        ready.set_function(lambda: len(self._ready_workers()))
        self._restarts = Counter("convoy_worker_restarts", "Workers started in place of one that ended", registry=self._own_metrics)
        all_metrics = CollectorRegistry()
        all_metrics.register(self)
        self._access = None if config.auth is None else Access(config.auth, self._own_metrics)
        self._http = HttpServer(
            config, all_metrics, HttpMetrics(self._own_metrics), self.not_ready_reason, self._forward_http,
            max_body_bytes=config.max_message_bytes or message_limits.max_message_bytes(config.repository, config.policies),
            gate=None if self._access is None else Gate(Authenticator(self._access, "http")),
        )  # fmt: skip
        self.ready_file = ReadyFile(config.ready_file)
        self._lock = threading.Lock()
        self._workers: dict[int, WorkerProcess] = {}  # by number; replaced, never changed: readers need no lock
        self._exited_metrics: list[Metric] = []  # what workers that have exited had counted
        self._was_ready = False
        self._stopping = threading.Event()
        self._broadcast_lock = threading.Lock()
        self._replay: list[Call] = []  # control calls that a restarted worker has to repeat
        self._forwarded = itertools.count()
        self._threads = [
            vital_thread(partial(self._keep_running, number), f"supervise-worker-{number}", daemon=False)
            for number in range(1, config.workers + 1)
        ]

    def start(self) -> None:
        """Reserves the ports and starts the workers. Raises UserError for what the operator can fix."""
        config = self._config
        check_config(config)
        self._reserved = _reserve_port(config)
        try:
            self._http.start()
        except BaseException:
            self._release_port()
            raise
        if self._access is not None:
            self._access.start()
        self.ready_file.remove()
        # The addresses of a name may change; all workers listen on those that are reserved.
        hosts = tuple(listeners.host_of(each) for each in self._reserved)
        self._worker_config = config.model_copy(
            update={"host": hosts, "grpc_port": self.grpc_port, "http_port": 0, "http_socket": None, "ready_file": None}
        )
        for thread in self._threads:
            thread.start()

    def stop(self, lame_duck_seconds: float = 0.0) -> None:
        """Drains all workers and waits until they have exited, for at most the configured time. See `Server.drain`."""
        with self._lock:
            self._stopping.set()
            workers = self._workers.values()
        for worker in workers:
            worker.call("drain", lame_duck_seconds)
        deadline = time.monotonic() + lame_duck_seconds + self._config.drain_seconds + EXIT_SECONDS
        for worker in workers:
            if not worker.exited.wait(max(0.0, deadline - time.monotonic())):
                log.warning("worker %d (pid %d) has not exited in time and is killed", worker.number, worker.pid)
                worker.kill()
        for thread in self._threads:
            thread.join()
        self._http.stop()
        if self._access is not None:
            self._access.close()
        self._release_port()
        self.ready_file.remove_own()
        if self.failure is None:
            log.info("stopped")

    @property
    def grpc_port(self) -> int:
        """The port that the workers share, once started."""
        port: int = self._reserved[0].getsockname()[1]
        return port

    def _release_port(self) -> None:
        for each in self._reserved:
            each.close()

    def not_ready_reason(self) -> str:
        """Why requests cannot be answered now; empty if they can."""
        if self._stopping.is_set():
            return "draining"
        workers = self._workers
        reasons = {number: _not_ready_reason(workers.get(number)) for number in range(1, self._config.workers + 1)}
        missing = [f"worker {number}: {reason}" for number, reason in reasons.items() if reason]
        if self._was_ready and len(missing) < len(reasons):
            return ""
        return "; ".join(missing)

    def collect(self) -> Iterable[Metric]:
        """The metrics of all workers, of those that have exited, and of the supervisor, as those of one server."""
        reports = [(worker, worker.call("report")) for worker in self._workers.values()]
        deadline = time.monotonic() + SCRAPE_SECONDS
        for worker, report in reports:
            with contextlib.suppress(ConvoyError, TimeoutError):
                worker.update(report.result(max(0.0, deadline - time.monotonic())))
        with self._lock:
            running = [worker.report.metrics for worker in self._workers.values()]
            if len(self._ready_workers()) == self._config.workers:
                self._exited_metrics = without_unserved_versions(self._exited_metrics, running)
            return merge([list(self._own_metrics.collect()), *running, self._exited_metrics])

    def _ready_workers(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if not _not_ready_reason(worker)]

    def _keep_running(self, number: int) -> None:
        """The thread of one worker: runs it, and restarts it whenever it exits."""
        backoff = MIN_BACKOFF_SECONDS
        while True:
            started = time.monotonic()
            try:
                outcome = self._run_worker(number)
            except Exception:
                log.exception("worker %d: supervising it failed", number)
                outcome = "is lost"
            if self._stopping.is_set() or self.failure is not None:
                return
            if time.monotonic() - started > BACKOFF_RESET_SECONDS:
                backoff = MIN_BACKOFF_SECONDS
            log.error("worker %d %s; restarting in %g s", number, outcome, backoff)
            if self._stopping.wait(backoff):
                return
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
            self._restarts.inc()

    def _run_worker(self, number: int) -> str:
        """Runs one worker process until it has exited; returns how it did."""
        with self._lock:
            if self._stopping.is_set():
                return ""
            try:
                worker = WorkerProcess(number, self._worker_config, self._broadcast, self._check_ready)
            except OSError as error:
                return f"could not be started: {error.strerror}"
            self._workers = self._workers | {number: worker}
        reason: Exception | None = None
        try:
            self._load_and_listen(worker)
            self._monitor(worker)
        except IpcClosed:
            pass  # it has exited by itself
        except TimeoutError:
            limit = HUNG_SECONDS if worker.listening else self._config.worker_start_seconds
            reason = ConvoyError(f"it did not {'respond' if worker.listening else 'load its models'} within {limit:g} s")
        except Exception as error:  # noqa: BLE001 - a new worker replaces this one, whatever the error is
            reason = error
        exit_status = worker.kill()
        outcome = f"(pid {worker.pid}) {exit_status if reason is None else f'was killed: {reason}'}"
        with self._lock:
            self._workers = {other: running for other, running in self._workers.items() if other != number}
            self._exited_metrics = merge([self._exited_metrics, cumulative(worker.report.metrics)])
        if not worker.listening and not self._was_ready:
            self._fail(reason if isinstance(reason, UserError | ImportError) else ConvoyError(f"worker {number} {outcome}"))
        return outcome

    def _load_and_listen(self, worker: WorkerProcess) -> None:
        limit_seconds = self._config.worker_start_seconds
        worker.call("load").result(limit_seconds)
        with self._broadcast_lock:  # no broadcast may fall between the replay and `listening`
            worker.call("listen", self._replay).result(limit_seconds)
            worker.listening = True
        log.info("worker %d (pid %d) is listening", worker.number, worker.pid)
        self._check_ready()

    def _monitor(self, worker: WorkerProcess) -> None:
        """Returns when the process has exited. Raises TimeoutError if it hangs, and Unavailable if only a new process can help."""
        while not worker.exited.wait(HEARTBEAT_SECONDS):
            worker.update(worker.call("report").result(HUNG_SECONDS))

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if self.failure is not None or self._stopping.is_set():
                return
            self.failure = error
        self._on_failure()

    def _check_ready(self) -> None:
        """Writes the ready file once all workers are ready for the first time."""
        with self._lock:
            if self._was_ready or self._stopping.is_set() or len(self._ready_workers()) < self._config.workers:
                return
            self._was_ready = True
            self.ready_file.write(self.grpc_port, self._http.port)
        log.info(
            "ready: gRPC on %s by %d workers, HTTP on %s",
            " and ".join(map(listeners.address_of, self._reserved)), self._config.workers, " and ".join(self._http.addresses),
        )  # fmt: skip

    def _broadcast(self, method: str, *arguments: str | int) -> None:
        """Carries out a control call on every worker. Raises the first error, once all have replied."""
        with self._broadcast_lock:
            replies = [worker.call("control", method, *arguments) for worker in self._workers.values() if worker.listening]
            errors = []
            for reply in replies:
                try:
                    reply.result()
                except IpcClosed:
                    continue  # the worker that replaces it replays the call
                except ConvoyError as error:
                    errors.append(error)
            # A load that fails has reverted an earlier unload all the same, and serves what it can.
            if len(errors) < len(replies) or all(isinstance(error, LoadError) for error in errors):
                self._replay = calls_to_replay(self._replay, (method, *arguments))
            if errors:
                raise errors[0]

    def _forward_http(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Has a worker answer an HTTP request, each one in turn."""
        workers = self._ready_workers() or [worker for worker in self._workers.values() if worker.listening]
        try:
            if not workers:
                raise Unavailable(self.not_ready_reason())
            request = {key: value for key, value in environ.items() if isinstance(value, str)}
            worker = workers[next(self._forwarded) % len(workers)]
            status, headers, body, route = worker.call("http", request, environ["wsgi.input"].read()).result()
            environ[ROUTE] += route
        except ConvoyError as error:
            response = Response(json.dumps({"error": str(error)}), 503, {"Retry-After": "1"}, mimetype="application/json")
        else:
            response = Response(body, status, headers)
        return response(environ, start_response)


def _not_ready_reason(worker: WorkerProcess | None) -> str:
    return worker.report.not_ready_reason if worker is not None and worker.listening else "loading"


def _reserve_port(config: ServerConfig) -> list[socket.socket]:
    """Binds the gRPC port on every address, a free one for 0, without listening. Raises UserError if it is not available."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise UserError("--workers needs SO_REUSEPORT, which this system does not have; --workers 1 does without")
    # Bound exclusively, so that another server with workers on this port fails as any other does; shared only afterwards. The
    # kernel checks the options when the next socket binds.
    reserved = listeners.bind(config.host, config.grpc_port, "gRPC")
    for each in reserved:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends this process, and so the workers, at once with code 1."""
    stop = StopOnSignals(config.lame_duck_seconds)
    supervisor = Supervisor(config, on_failure=stop.set)
    before_exit(supervisor.ready_file.remove_own)
    supervisor.start()
    try:
        stop.wait()
    finally:
        supervisor.stop(stop.lame_duck_seconds)
    if supervisor.failure is not None:
        raise supervisor.failure
