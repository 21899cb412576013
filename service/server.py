"""One server process: its parts, and its life from start to stop.

A `Server` is constructed and then goes through four steps:

    listen       binds the gRPC and HTTP ports, so that a port in use fails at once and probes see a server that is loading
    load_models  loads the models of the repository; the ready file is written once one can answer
    drain        reports NOT_SERVING, takes requests for a lame-duck time, then refuses new ones, finishes the running ones and
                 closes the gRPC port
    close        closes the HTTP port, which has answered probes and scrapes until now, and frees the models

`serve` runs a single server so. One worker of several (`workers/worker.py`) loads its models before it listens, because
connections come as soon as it does; the HTTP port and the ready file are its supervisor's.
"""

import gc
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from service import compiled
from service.access.authenticator import Authenticator
from service.access.exposure import control_allowed, log_exposure, open_access
from service.config import ServerConfig
from service.control import Control, ControlPlaces, ForbiddenControl
from service.engine import message_limits
from service.engine.classifier import Classifier
from service.engine.decoding_processes import DecodingProcesses
from service.engine.explain import Explainer
from service.engine.observer import RequestObserver
from service.engine.quotas import Quotas
from service.engine.repository import Repository
from service.engine.trial import TryVersion
from service.engine.trials import Trials
from service.http import gate as http_gate
from service.http.page import Page
from service.http.rest import Rest
from service.http.server import HttpMetrics, HttpServer
from service.lifecycle import StopOnSignals, check_config, exit_after, trusted_keys
from service.model.cpus import cpu_budget
from service.model.session import check_provider
from service.observability.metrics import Metrics
from service.observability.transport_load import ThreadTime, watch_in_background
from service.open_inference.metadata import ServerMetadata
from service.open_inference.shared_memory import SharedMemory
from service.process.process_exit import before_exit, exit_at_once
from service.process.ready_file import ReadyFile
from service.rpc import channelz, classify, explain, health, model_info, open_inference, open_inference_admin, reflection
from service.rpc import gate as rpc_gate
from service.rpc.call import Method
from service.rpc.grpc_transport import create_transport

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from service.observability.tracing import Tracing

log = logging.getLogger(__name__)

SILENT_SECONDS = 30.0
"""The gRPC thread goes round its loop several times a second, unless something blocks it."""

STOP_SECONDS = 1.0
"""Grace for what is left on the gRPC port when every request is finished: replies being sent, health checks."""

EXIT_GRACE_SECONDS = 5.0
"""Beyond the lame-duck and drain times, a process that takes longer than this to exit is stuck."""


class LocalControl:
    """Control of this server process alone."""

    def __init__(self, repository: Repository, memory: SharedMemory) -> None:
        self.load = repository.load
        self.unload = repository.unload
        self.register = memory.register
        self.unregister = memory.unregister


class Server:
    """Serves a repository over gRPC and HTTP. `control` acts on this process alone."""

    def __init__(
        self,
        config: ServerConfig,
        on_change: Callable[[], None] = lambda: None,
        control: Control | None = None,
        try_version: TryVersion | None = None,
        connections: socket.socket | None = None,
        worker: int = 1,
    ) -> None:
        """Checks the settings and builds the parts; binds and loads nothing.

        Args:
            config: the flags.
            on_change: called from any thread when `not_ready_reason` may have changed.
            control: carries out clients' control requests; `self.control` if not given.
            try_version: tries a version before it is loaded, as `Trials.try_version`; this server does it if not given.
            connections: brings the connections that a supervisor accepts, so that the gRPC port is not bound.
            worker: its number among several, for the metrics.

        Raises:
            UserError: a setting is invalid.
        """
        check_config(config)
        check_provider(config.provider)
        self._config = config
        self._on_change = on_change
        trusted = trusted_keys(config)
        self._max_message_bytes = config.max_message_bytes or message_limits.max_message_bytes(
            config.repository, config.policies, trusted
        )
        self._budget = message_limits.byte_budget(config, self._max_message_bytes)
        self.ready_file = ReadyFile(config.ready_file)
        self._loaded = False
        self._draining = False
        self._ready_logged = False
        self._warned_bytes = 0

        metrics = Metrics(CollectorRegistry())
        self._registry = metrics.registry
        metrics.watch_bytes(lambda: self._budget.in_flight_bytes)
        self._tracing = _tracing(config)
        cpus = max(1, cpu_budget() // config.worker_count)
        trace_batch = None if self._tracing is None else self._tracing.batch
        self._trials = Trials(config.load_seconds, config.load_memory)
        self._repository = Repository(
            config.repository, config.provider, metrics, self._models_changed, cpus, trace_batch, config.policies,
            config.control_seconds, try_version or self._trials.try_version, trusted,
        )  # fmt: skip
        processes = DecodingProcesses(config.decode_seconds, self._budget.limit_bytes)
        self._access = open_access(config, metrics.registry)
        quotas = None if self._access is None else Quotas(self._access.group_of)
        self._classifier = Classifier(self._repository, metrics, cpus, _observer(config, self._tracing), processes, quotas)

        memory = SharedMemory(config.shared_memory_prefix)
        metadata = ServerMetadata(self._repository, lambda: not self.not_ready_reason(), self._live, shared_memory=memory.is_on)
        self.control = LocalControl(self._repository, memory)
        self._places = ControlPlaces()
        allowed_control = (control or self.control) if control_allowed(config) else ForbiddenControl()
        methods = self._grpc_methods(metadata, allowed_control, memory)
        self._transport = create_transport(
            config, methods, metrics, self._classifier.pump, self._max_message_bytes,
            self._budget, None if self._access is None else rpc_gate.Gate(Authenticator(self._access, "grpc")),
            connections,
        )  # fmt: skip
        metrics.transport_chosen(self._transport.name)
        self.transport_seconds = ThreadTime(lambda: self._transport.thread_id)
        metrics.watch_transport(worker, self.transport_seconds)
        self._http = HttpServer(
            config, metrics.registry, HttpMetrics(metrics.registry), self.not_ready_reason,
            self._http_app(metadata, allowed_control, memory), self._max_message_bytes, self.not_alive_reason,
            None if self._access is None else http_gate.Gate(Authenticator(self._access, "http")), self._budget,
        )  # fmt: skip

    def _grpc_methods(self, metadata: ServerMetadata, control: Control, memory: SharedMemory) -> list[Method]:
        """Builds the servicers; returns every method that the gRPC port offers."""
        with_channelz = self._config.channelz
        services = [classify.SERVICE, open_inference.SERVICE, health.SERVICE, *([channelz.SERVICE] if with_channelz else [])]
        self._classify = classify.ClassifyServicer(self._classifier)
        self._explainer = Explainer(self._classifier)
        self._infer = open_inference.InferServicer(self._classifier, memory, self._config.ignore_unknown_parameters)
        self._admin = open_inference_admin.AdminServicer(metadata, control, memory, self._places)
        self._health = health.HealthServicer(self._health_statuses, [*services, *reflection.SERVICES], self._live)
        self._reflection = reflection.ReflectionServicer(services)
        return [
            *self._classify.methods(),
            *explain.ExplainServicer(self._classifier, self._explainer).methods(),
            *model_info.ModelInfoServicer(self._repository).methods(),
            *self._infer.methods(),
            *self._admin.methods(),
            *self._health.methods(),
            *self._reflection.methods(),
            *(channelz.ChannelzServicer().methods() if with_channelz else []),
        ]

    def _http_app(self, metadata: ServerMetadata, control: Control, memory: SharedMemory) -> "WSGIApplication | None":
        """What the HTTP port serves beside metrics and probes: REST, and in front of it the page."""
        if not self._config.rest:
            return None
        lenient = self._config.ignore_unknown_parameters
        rest = Rest(
            self._classifier,
            metadata,
            control,
            self._places,
            memory,
            self._max_message_bytes,
            lenient,
            self._budget,
            self._config.max_json_bytes,
        )
        return Page(self._classifier, self._explainer, self._repository, rest) if self._config.page_offered else rest

    @property
    def grpc_port(self) -> int:
        """The gRPC port in use, once listening."""
        return self._transport.port

    @property
    def http_port(self) -> int:
        """The HTTP port in use, once listening."""
        return self._http.port

    @property
    def http_application(self) -> "WSGIApplication":
        """Answers HTTP requests that arrive on another port than this server's own."""
        return self._http.application

    def start(self) -> None:
        """`listen`, then `load_models`."""
        self.listen()
        self.load_models()

    def stop(self, lame_duck_seconds: float = 0.0) -> None:
        """`drain`, then `close`. A second call does nothing."""
        if not self._draining:
            self.drain(lame_duck_seconds)
            self.close()

    def listen(self) -> None:
        """Binds the gRPC port and, unless there is a supervisor, the HTTP port. Raises UserError if a port is not available."""
        if self._access is not None:
            self._access.start()
        self._transport.start()
        if self._config.worker_count > 1:
            log_exposure(self._config)
            return
        try:
            self._http.start()
        except BaseException:
            self._transport.stop(0)
            raise
        log_exposure(self._config)
        self.ready_file.remove()
        log.info(
            "listening: gRPC on %s (%s transport, %s%s), %s on %s",
            " and ".join(self._transport.addresses), self._transport.name, compiled.build(),
            ", TLS" if self._config.tls_cert else "",
            "HTTPS" if self._config.tls_cert else "HTTP", " and ".join(self._http.addresses),
        )  # fmt: skip

    def load_models(self) -> None:
        """Loads the models in the repository, then watches it for changes."""
        try:
            self._repository.start()
        finally:
            self._loaded = True
        # What exists now stays: the collector need not scan it again, nor run after every few hundred objects of running calls.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    def drain(self, lame_duck_seconds: float) -> None:
        """Finishes running requests, for at most the configured time, and closes the gRPC port.

        For `lame_duck_seconds` before that, requests are still taken while health already tells clients to go to other servers.
        A server that has not loaded its models has no clients yet and skips that time.
        """
        self._draining = True
        self._health.changed()
        self._on_change()
        if lame_duck_seconds and self._repository.scanned:
            log.info("lame duck: health says NOT_SERVING, requests are taken for %g s more", lame_duck_seconds)
            time.sleep(lame_duck_seconds)
        log.info("draining: new requests are refused, running ones are finished")
        self._classify.end_streams()
        self._infer.end_streams()
        if not self._classifier.drain(self._config.drain_seconds):
            log.warning("some requests were not finished within %g s and are cancelled", self._config.drain_seconds)
        self._health.end_watches()
        self._reflection.end_streams()
        self._transport.stop(STOP_SECONDS)

    def close(self, *, wait_for_loads: bool = True) -> None:
        """Closes the HTTP port and frees the models. Call `drain` first.

        A load cannot be interrupted. It is waited for a few seconds; with `wait_for_loads` false, not at all: then the process must
        exit.
        """
        abandon_models = not wait_for_loads and (not self._loaded or self._repository.loading)
        if not abandon_models:
            self._trials.close()
            self._admin.close()
            self._classifier.close()
            self._explainer.close()
            abandon_models = not self._repository.stop()
        self._http.stop()
        if self._access is not None:
            self._access.close()
        if self._tracing is not None:
            self._tracing.close()
        self.ready_file.remove_own()
        log.info("stopped%s", " while models were being loaded" if abandon_models else "")

    def not_ready_reason(self) -> str:
        """Why requests cannot be answered now; empty if they can."""
        if self._draining:
            return "draining"
        return "" if self._repository.ready else "no model is ready"

    def not_alive_reason(self) -> str:
        """Why only a new process can help; empty if this one is healthy."""
        reason = self._repository.stuck_reason()
        if not reason and time.monotonic() - self._transport.last_round > SILENT_SECONDS:
            reason = f"the gRPC thread has not gone round its loop for over {SILENT_SECONDS:g} s"
        return reason

    def _live(self) -> bool:
        return not self.not_alive_reason()

    def measured_models(self) -> list[tuple[str, str, float, bool]]:
        """Of each served version: a name for log lines, its provider, seconds an item, whether batches may run on gRPC's thread."""
        return [
            (f"{served.name} version {served.version}", served.model.provider, served.batcher.measured()[1], served.batcher.inline)
            for versions in self._repository.served.values()
            for served in versions
        ]

    def metrics(self) -> list[Metric]:
        """A snapshot of every metric."""
        return list(self._registry.collect())

    def _health_statuses(self) -> dict[str, bool]:
        """Whether each model and the server as a whole is serving, by the name that health checks use."""
        up = not self._draining
        models = dict.fromkeys(self._repository.served, up)
        return models | {health.OVERALL: up and self._repository.ready}

    def _models_changed(self) -> None:
        self._warn_of_large_requests()
        if self._repository.ready and not self._draining:
            self.ready_file.write(self.grpc_port, self.http_port, self._http.admin_port)
            if not self._ready_logged and self._config.worker_count == 1:
                self._ready_logged = True
                page = f"; the page is {self._http.url}" if self._config.page_offered else ""
                log.info("ready%s", page)
        self._health.changed()
        self._on_change()

    def _warn_of_large_requests(self) -> None:
        """Warns, in one line, of versions that take larger requests than the port, which was bound before they were known.

        Once the server is ready, and again when one takes still larger ones.
        """
        if not self._repository.ready:
            return
        level = logging.WARNING if self._config.max_message_bytes is None else logging.INFO  # a limit that was set is meant
        needs = {
            (served.name, served.version): message_limits.largest_request_bytes(
                served.policy, served.model.input.size_bytes, images=served.model.takes_pictures
            )
            for versions in self._repository.served.values()
            for served in versions
        }
        above = {version: needed for version, needed in needs.items() if needed > self._max_message_bytes}
        name, version = max(above, key=above.__getitem__, default=("", 0))
        needed = above.get((name, version), 0)
        if needed > self._warned_bytes:
            self._warned_bytes = needed
            others = f" (those of {len(above) - 1} others are above it, too)" if len(above) > 1 else ""
            log.log(
                level,
                "model %s version %d: the largest request has %d bytes, the message limit is %d; "
                "restart with --max-message-bytes %d%s",
                name, version, needed, self._max_message_bytes, needed, others,
            )  # fmt: skip


def serve(config: ServerConfig, stop: StopOnSignals) -> None:
    """Serves until SIGTERM or SIGINT, then drains and exits with code 0. A second signal exits at once, with code 1."""
    server = Server(config)
    before_exit(server.ready_file.remove_own)
    server.listen()
    if config.grpc_socket is None:  # several workers have none
        watch_in_background(server.transport_seconds, cpu_budget())
    failures: list[BaseException] = []

    def load_models() -> None:
        try:
            server.load_models()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)
            stop.set()

    # On a thread of its own: models may take minutes to load, and a signal must not wait for them.
    threading.Thread(target=load_models, name="load-models", daemon=True).start()
    try:
        stop.wait()
    finally:
        exit_after(stop.lame_duck_seconds + config.drain_seconds + EXIT_GRACE_SECONDS)
        server.drain(stop.lame_duck_seconds)
        server.close(wait_for_loads=False)
    if failures:
        raise failures[0]
    exit_at_once(0)


def _tracing(config: ServerConfig) -> "Tracing | None":
    if config.otlp_endpoint is None:
        return None
    from service.observability.tracing import Tracing

    return Tracing(config.otlp_endpoint, config.trace_sample)


def _observer(config: ServerConfig, tracing: "Tracing | None") -> RequestObserver | None:
    return RequestObserver(config.access_log_sample, tracing) if tracing is not None or config.access_log_sample else None
