"""The parent of several workers: it starts, watches, restarts and drains them, so that they look like one server.

The supervisor has the ports, from start to stop, so that another program which wants one fails. Of the gRPC port it accepts the
connections and gives each to the worker that has the fewest (`acceptor.py`), for as long as it lasts; where the installed grpcio
does not take such connections, the workers share the port by SO_REUSEPORT, and the kernel chooses. The HTTP port is the
supervisor's own: metrics and probes speak for all workers, and other requests are forwarded to one of them.

Each worker has a thread here. It starts a process, has it load the models and listen, and asks every half second whether it
still responds (`heartbeat.py`) until it exits or hangs; then it starts the next, at once, or after a backoff if the one before
did not live long either. A worker that fails before the server has been ready once ends the server: the next one would fail
too. After that the server is ready as long as one worker is.
"""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from werkzeug.wrappers import Response

from service.access.authenticator import Authenticator
from service.access.exposure import open_access
from service.config import ServerConfig
from service.control import Call, ControlPlaces, NamedLocks, calls_after_refusal, calls_to_replay, subject
from service.engine import message_limits
from service.engine.trials import Trials
from service.errors import ConvoyError, DeadlineExceeded, LoadError, Unavailable, UserError
from service.http.certificates import PEER_CERTIFICATE
from service.http.gate import Gate
from service.http.server import ROUTE, HttpMetrics, HttpServer
from service.lifecycle import StopOnSignals, check_config, trusted_keys
from service.process.process_exit import before_exit
from service.process.ready_file import ReadyFile
from service.process.vital_thread import vital_thread
from service.sockets import listeners
from service.workers.acceptor import Acceptor, can_pass_connections
from service.workers.aggregated_metrics import cumulative, merge, without_unserved_versions
from service.workers.forwarding import Forwarder
from service.workers.heartbeat import LIMIT_SECONDS, TICK_SECONDS
from service.workers.ipc import IpcClosed
from service.workers.process import WorkerProcess, WorkerStatus
from service.workers.shared_trials import SharedTrials

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

METRICS_SECONDS = 5.0
"""How often a worker is asked for its metrics beside the scrapes: what it had counted is known when it is killed."""

SCRAPE_SECONDS = 3.0
"""How long a scrape waits for a worker's metrics; after that its last report is used."""

MIN_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 30.0
BACKOFF_RESET_SECONDS = 60.0
"""The first restart is at once; then the backoff doubles with each. A worker that ran for this long resets it."""

USER_TIMEOUT_SECONDS = 20.0
"""With `--keepalive-seconds`, for how long a client may acknowledge nothing: what C core sets for its own connections."""

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
        Gauge("convoy_workers", "Configured workers", registry=self._own_metrics).set(config.worker_count)
        ready = Gauge("convoy_workers_ready", "Workers that can answer requests", registry=self._own_metrics)
        ready.set_function(lambda: len(self._ready_workers()))
        self._connections = Gauge(
            "convoy_worker_connections", "gRPC connections that a worker has", ["worker"], registry=self._own_metrics
        )
        self._restarts = Counter("convoy_worker_restarts", "Workers started in place of one that ended", registry=self._own_metrics)
        all_metrics = CollectorRegistry()
        all_metrics.register(self)
        self._access = open_access(config, self._own_metrics)
        max_body_bytes = config.max_message_bytes or message_limits.max_message_bytes(
            config.repository, config.policies, trusted_keys(config)
        )
        self._http = HttpServer(
            config, all_metrics, HttpMetrics(self._own_metrics), self.not_ready_reason, self._forward_http, max_body_bytes,
            gate=None if self._access is None else Gate(Authenticator(self._access, "http")),
            budget=message_limits.byte_budget(config, max_body_bytes),
        )  # fmt: skip
        self.ready_file = ReadyFile(config.ready_file)
        self._lock = threading.Lock()
        self._workers: dict[int, WorkerProcess] = {}  # by number; replaced, never changed: readers need no lock
        self._exited_metrics: list[Metric] = []  # what workers that have exited had counted
        self._was_ready = False
        self._stopping = threading.Event()
        self._control_places = ControlPlaces()
        self._control_locks = NamedLocks()
        self._replay_lock = threading.Lock()
        self._replay: list[Call] = []  # control calls that a restarted worker has to repeat
        self._forwarder = Forwarder(self._forwarding_workers)
        self._trials = Trials(config.load_seconds, config.load_memory)
        self._worker_methods: dict[str, Callable[..., Any]] = {
            "broadcast": self._broadcast,
            "try_version": SharedTrials(self._trials.try_version).try_version,
        }
        self._accepts: Future[bool] = Future()
        self._threads = [
            vital_thread(partial(self._keep_running, number), f"supervise-worker-{number}", daemon=False)
            for number in range(1, config.worker_count + 1)
        ]

    def start(self) -> None:
        """Reserves the ports and starts the workers. Raises UserError for what the operator can fix."""
        config = self._config
        check_config(config)
        if not hasattr(socket, "SO_REUSEPORT"):
            raise UserError("--workers needs SO_REUSEPORT, which this system does not have; --workers 1 does without")
        self._reserved = listeners.bind(config.host, config.grpc_port, "gRPC")
        timeout_seconds = USER_TIMEOUT_SECONDS if config.keepalive_seconds else 0.0
        self._acceptor = Acceptor(self._reserved, self._taking_connections, timeout_seconds)
        try:
            self._http.start()
        except BaseException:
            self._release_port()
            raise
        threading.Thread(target=self._try_acceptor, name="try-acceptor", daemon=True).start()
        if self._access is not None:
            self._access.start()
        self.ready_file.remove()
        # The addresses of a name may change; all workers listen on those that are reserved.
        hosts = tuple(listeners.host_of(each) for each in self._reserved)
        self._worker_config = config.model_copy(
            update={
                "host": hosts,
                "grpc_port": self.grpc_port,
                "http_port": 0,
                "http_socket": None,
                "admin_port": None,
                "ready_file": None,
            }
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
        self._trials.close()
        deadline = time.monotonic() + lame_duck_seconds + self._config.drain_seconds + EXIT_SECONDS
        lame_duck_until = time.monotonic() + lame_duck_seconds
        for worker in workers:
            worker.exited.wait(max(0.0, lame_duck_until - time.monotonic()))
        self._acceptor.stop()
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
        reasons = {number: _not_ready_reason(workers.get(number)) for number in range(1, self._config.worker_count + 1)}
        missing = [f"worker {number}: {reason}" for number, reason in reasons.items() if reason]
        if self._was_ready and len(missing) < len(reasons):
            return ""
        return "; ".join(missing)

    def collect(self) -> Iterable[Metric]:
        """The metrics of all workers, of those that have exited, and of the supervisor, as those of one server."""
        reports = [(worker, worker.call("report")) for worker in self._workers.values() if not worker.heartbeat.silent]
        deadline = time.monotonic() + SCRAPE_SECONDS
        for worker, report in reports:
            if wait([report], max(0.0, deadline - time.monotonic())).done:
                _update(worker, report)
        if self._acceptor.started:
            for worker in self._workers.values():
                self._connections.labels(worker.number).set(worker.connections.count(worker.pid))
        with self._lock:
            running = [worker.metrics for worker in self._workers.values()]
            if len(self._ready_workers()) == self._config.worker_count:
                self._exited_metrics = without_unserved_versions(self._exited_metrics, running)
            return merge([list(self._own_metrics.collect()), *running, self._exited_metrics])

    def _ready_workers(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers.values() if not _not_ready_reason(worker)]

    def _keep_running(self, number: int) -> None:
        """The thread of one worker: runs it, and restarts it whenever it exits."""
        backoff = 0.0
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
                backoff = 0.0
            log.error("worker %d %s; restarting %s", number, outcome, f"in {backoff:g} s" if backoff else "at once")
            if self._stopping.wait(backoff):
                return
            backoff = min(max(2 * backoff, MIN_BACKOFF_SECONDS), MAX_BACKOFF_SECONDS)
            self._restarts.inc()

    def _run_worker(self, number: int) -> str:
        """Runs one worker process until it has exited; returns how it did."""
        with self._lock:
            if self._stopping.is_set():
                return ""
            try:
                worker = WorkerProcess(number, self._worker_config, self._worker_methods, self._check_ready)
            except OSError as error:
                return f"could not be started: {error.strerror}"
            self._workers = self._workers | {number: worker}
        reason: Exception | None = None
        try:
            self._load_and_listen(worker)
            worker.heartbeat.limits = LIMIT_SECONDS
            self._monitor(worker, worker.exited.wait)
        except IpcClosed:
            pass  # it has exited by itself
        except Exception as error:  # noqa: BLE001 - a new worker replaces this one, whatever the error is
            reason = error
        exit_status = worker.kill()
        outcome = f"(pid {worker.pid}) {exit_status if reason is None else f'was killed: {reason}'}"
        with self._lock:
            self._workers = {other: running for other, running in self._workers.items() if other != number}
            self._exited_metrics = merge([self._exited_metrics, cumulative(worker.metrics)])
        if not worker.listening and not self._was_ready:
            self._fail(reason if isinstance(reason, UserError | ImportError) else ConvoyError(f"worker {number} {outcome}"))
        return outcome

    def _load_and_listen(self, worker: WorkerProcess) -> None:
        accepts = self._accepts.result()
        self._await(worker, worker.call("load", accepts))
        with self._replay_lock:  # every control call is either replayed or sent
            listening = worker.call("listen", self._replay)
            worker.takes_control = True
        self._await(worker, listening)
        if accepts:
            self._acceptor.start()
        worker.listening = True
        log.info("worker %d (pid %d) is listening", worker.number, worker.pid)
        self._check_ready()

    def _await(self, worker: WorkerProcess, reply: Future[Any]) -> None:
        """Watches a worker that starts until it has replied to a call. Raises ConvoyError, or what the call raises."""
        limit_seconds = self._config.worker_start_seconds
        deadline = time.monotonic() + limit_seconds

        def replied(seconds: float) -> bool:
            if time.monotonic() > deadline:
                raise ConvoyError(f"it did not load its models within {limit_seconds:g} s")
            return bool(wait([reply], seconds).done)

        self._monitor(worker, replied)
        reply.result()
        worker.heartbeat.responded()

    def _monitor(self, worker: WorkerProcess, ended: Callable[[float], bool]) -> None:
        """Watches a worker until `ended`, which waits for so many seconds, is true.

        Raises:
            WorkerHung: it does not respond any more.
            Unavailable: only a new process can help.
            IpcClosed: it has exited.
        """
        beat, report = worker.call("beat"), worker.call("report")
        report_at = time.monotonic()
        while not ended(TICK_SECONDS):
            if beat.done():
                worker.update(beat.result())
                worker.heartbeat.responded()
                self._check_ready()
                beat = worker.call("beat")
            else:
                worker.heartbeat.missed()
            if report.done():
                _update(worker, report)
                if time.monotonic() - report_at > METRICS_SECONDS:
                    report, report_at = worker.call("report"), time.monotonic()

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if self.failure is not None or self._stopping.is_set():
                return
            self.failure = error
        self._on_failure()

    def _check_ready(self) -> None:
        """Writes the ready file once all workers are ready for the first time."""
        with self._lock:
            if self._was_ready or self._stopping.is_set() or len(self._ready_workers()) < self._config.worker_count:
                return
            self._was_ready = True
            self.ready_file.write(self.grpc_port, self._http.port, self._http.admin_port)
        log.info(
            "ready: gRPC on %s by %d workers, %s on %s",
            " and ".join(map(listeners.address_of, self._reserved)), self._config.worker_count,
            "HTTPS" if self._config.tls_cert else "HTTP", " and ".join(self._http.addresses),
        )  # fmt: skip

    def _broadcast(self, method: str, *arguments: str | int) -> None:
        """Carries out a control call on every worker. Raises the first error, once all have replied or their time is over."""
        call = (method, *arguments)
        limit_seconds = self._config.control_seconds
        deadline = time.monotonic() + limit_seconds
        with self._control_places.taken(), self._control_locks.held(subject(call), limit_seconds):
            with self._replay_lock:
                before = self._replay
                self._replay = calls_to_replay(before, call)
                replies = [worker.call("control", *call) for worker in self._workers.values() if worker.takes_control]
            errors: list[ConvoyError] = []
            for reply in replies:
                try:
                    reply.result(max(0.0, deadline - time.monotonic()))
                except IpcClosed:
                    continue  # the worker that replaces it replays the call
                except TimeoutError:
                    errors.append(DeadlineExceeded(f"a worker is not done after {limit_seconds:g} s: {method} goes on"))
                except ConvoyError as error:
                    errors.append(error)
            # A load that fails has reverted an earlier unload all the same, and serves what it can.
            if len(errors) == len(replies) and not all(isinstance(error, LoadError | DeadlineExceeded) for error in errors):
                with self._replay_lock:
                    self._replay = calls_after_refusal(self._replay, before, call)
            if errors:
                raise errors[0]

    def _try_acceptor(self) -> None:
        """Decides who accepts connections, while the first worker processes start."""
        accepts = False
        try:
            accepts = can_pass_connections()
        except Exception:
            log.exception("trying whether connections can be passed on failed")
        if not accepts:
            log.warning("the workers share the gRPC port by SO_REUSEPORT: the kernel spreads connections over them, unevenly")
            for each in self._reserved:  # the kernel checks the option when the next socket binds
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._accepts.set_result(accepts)

    def _taking_connections(self) -> list[WorkerProcess]:
        """The workers that may be given connections."""
        return self._ready_workers() or [worker for worker in self._workers.values() if worker.listening]

    def _forwarding_workers(self) -> list[WorkerProcess]:
        """Those that HTTP requests may be passed on to. Raises Unavailable if there is none."""
        workers = self._taking_connections()
        if not workers:
            raise Unavailable(self.not_ready_reason())
        return workers

    def _forward_http(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Has a worker answer an HTTP request."""
        try:
            request = {key: value for key, value in environ.items() if isinstance(value, str) or key == PEER_CERTIFICATE}
            answer = self._forwarder.answer(request, environ["wsgi.input"].read())
            environ[ROUTE] += answer.route
        except ConvoyError as error:
            response = Response(json.dumps({"error": str(error)}), 503, {"Retry-After": "1"}, mimetype="application/json")
        else:
            response = Response(answer.body, answer.status, answer.headers)
        return response(environ, start_response)


def _not_ready_reason(worker: WorkerProcess | None) -> str:
    if worker is None or not worker.listening:
        return "loading"
    return "does not respond" if worker.heartbeat.silent else worker.not_ready_reason


def _update(worker: WorkerProcess, report: Future[WorkerStatus]) -> None:
    with contextlib.suppress(ConvoyError):
        worker.update(report.result())


def serve(config: ServerConfig, stop: StopOnSignals) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends this process, and so the workers, at once with code 1."""
    supervisor = Supervisor(config, on_failure=stop.set)
    before_exit(supervisor.ready_file.remove_own)
    supervisor.start()
    try:
        stop.wait()
    finally:
        supervisor.stop(stop.lame_duck_seconds)
    if supervisor.failure is not None:
        raise supervisor.failure
