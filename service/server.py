"""One server process, from start to end: construct, `start`, and in the end `stop`.

Start: the ports are bound first, so that a port in use is known at once and probes see a server that is loading; then
models are loaded; then the ready file is written. Stop: health says NOT_SERVING first, and for a lame-duck time nothing else
changes, so that whoever watches it sends new requests elsewhere; then new requests are refused with UNAVAILABLE, those in hand
are finished, and only then are the ports closed, so that probes can read how things stand.

One worker of several goes through the same steps in another order (`worker.py`): its models are loaded before it binds the port
that it shares, because the kernel gives it connections from then on; and its supervisor has the HTTP port and the ready file.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from service import message_limits
from service.config import ServerConfig
from service.control import Control, Forbidden
from service.engine.access_log import ObservedClassifier
from service.engine.classifier import Classifier
from service.engine.repository import Repository
from service.errors import UserError
from service.http.page import Page
from service.http.rest import Rest
from service.http.server import HttpMetrics, HttpServer
from service.lifecycle import ReadyFile, StopOnSignals, check_settings, leave_at_once, leave_within
from service.model.cpus import cpu_budget
from service.model.session import check_provider
from service.observability.metrics import Metrics
from service.open_inference.metadata import ServerMetadata
from service.open_inference.shared_memory import SharedMemory
from service.rpc import channelz, classify, health, model_info, open_inference, open_inference_admin, reflection
from service.rpc.aio_server import AioServer
from service.rpc.completion_queue import CompletionQueueServer, why_not
from service.rpc.tls import TlsFiles
from service.rpc.transport import Options, Transport

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from service.observability.tracing import Tracing

log = logging.getLogger(__name__)

STOP_SECONDS = 1.0
"""What calls may still take when no request is in hand any more: replies under way, health checks."""


LAST_SECONDS = 5.0
"""What may be needed beyond the times for lame duck and drain, before something is wrong."""


class LocalControl:
    """Control of this server alone."""

    def __init__(self, repository: Repository, memory: SharedMemory) -> None:
        self.load = repository.load
        self.unload = repository.unload
        self.register = memory.register
        self.unregister = memory.unregister


class Server:
    """Serves a repository over gRPC and HTTP."""

    def __init__(self, config: ServerConfig, on_change: Callable[[], None] = lambda: None, control: Control | None = None) -> None:
        """`on_change` is called, by any thread, when `why_not_ready` may have changed.

        `control` is what servicers are given to act on the whole server; this one if it is all of it.
        """
        self._config = config
        self._on_change = on_change
        self._draining = False
        self._said_ready = False
        metrics = Metrics(CollectorRegistry())
        cpus = max(1, cpu_budget() // config.workers)
        self._tracing = _tracing(config)
        trace_batch = None if self._tracing is None else self._tracing.batch
        self._repository = Repository(
            config.repository, config.provider, metrics, self._changed, cpus, trace_batch, config.policies
        )  # fmt: skip
        self._classifier = _classifier(config, self._repository, metrics, cpus, self._tracing)
        memory = SharedMemory()
        self._here = LocalControl(self._repository, memory)
        control = (control or self._here) if config.control else Forbidden()
        inventory = ServerMetadata(self._repository, lambda: not self.why_not_ready())
        self._classify = classify.ClassifyServicer(self._classifier)
        self._infer = open_inference.InferServicer(self._classifier, memory)
        self._control = open_inference_admin.AdminServicer(inventory, control, memory)
        self._health = health.HealthServicer(self._serving)
        services = [classify.SERVICE, open_inference.SERVICE, health.SERVICE, *([channelz.SERVICE] if config.channelz else [])]
        self._reflection = reflection.ReflectionServicer(services)
        methods = [
            *self._classify.methods(), *model_info.ModelsServicer(self._repository).methods(),
            *self._infer.methods(), *self._control.methods(), *self._health.methods(), *self._reflection.methods(),
            *(channelz.ChannelzServicer().methods() if config.channelz else []),
        ]  # fmt: skip
        self._max_message_bytes = config.max_message_bytes or message_limits.message_bytes(config.repository, config.policies)
        self._warned: set[tuple[str, int]] = set()
        transport = _transport(config)
        tls = _tls(config)
        metrics.transport_chosen(transport.name)
        self._transport: Transport = transport(
            Options(
                host=config.host,
                port=config.grpc_port,
                max_message_bytes=self._max_message_bytes,
                methods=methods,
                observer=metrics,
                on_idle=self._classifier.pump,
                tls=None if tls is None else tls.read(),
                renewed_tls=lambda: None if tls is None else tls.renewed(),
                compression=config.compression,
                shared_port=config.workers > 1,
                arguments=_channel_arguments(config),
            )
        )
        app: WSGIApplication | None = None
        if config.rest_offered:
            app = Rest(self._classifier, inventory, control, memory, self._max_message_bytes)
            if config.page_offered:
                app = Page(self._classifier, self._repository, app)
        self._registry = metrics.registry
        self._http = HttpServer(
            config.host, config.http_port, metrics.registry, HttpMetrics(metrics.registry), self.why_not_ready, app,
            self._max_message_bytes, self.why_not_alive,
        )  # fmt: skip
        self._ready_file = ReadyFile(config.ready_file)

    @property
    def grpc_port(self) -> int:
        """The port that gRPC is served on, once started."""
        return self._transport.port

    @property
    def http_port(self) -> int:
        """The port that HTTP is served on, once started."""
        return self._http.port

    @property
    def http_application(self) -> "WSGIApplication":
        """What answers HTTP requests, for whoever takes them on another port."""
        return self._http.application

    def start(self) -> None:
        """Binds the ports, loads the models and serves. Raises UserError for what the operator can put right."""
        self.open()
        self.load()

    def open(self) -> None:
        """Binds the ports and answers what needs no model. Raises UserError for what the operator can put right."""
        self.check()
        self.listen()
        try:
            self._http.start()
        except BaseException:
            self._transport.stop(0)
            raise
        self._ready_file.clear()
        log.info(
            "listening: gRPC on %s:%d (%s transport%s), HTTP on %s:%d",
            self._config.url_host, self.grpc_port, self._transport.name, ", TLS" if self._config.tls_cert else "",
            self._config.url_host, self.http_port,
        )  # fmt: skip

    def check(self) -> None:
        """Raises UserError for a flag that cannot be, before anything is done."""
        check_settings(self._config)
        check_provider(self._config.provider)
        self._ready_file.check()

    def listen(self) -> None:
        """Binds the gRPC port and serves on it. Raises UserError if the port cannot be had."""
        self._transport.start()

    def load(self) -> None:
        """Loads the models that are there, and watches for others."""
        self._repository.start()
        # What is there now stays: the collector need not look at it again, nor at every few hundred objects of calls in flight.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    def stop(self, lame_duck_seconds: float = 0.0) -> None:
        """Drains and closes everything. A second call does nothing."""
        if self._draining:
            return
        self.drain(lame_duck_seconds)
        self.close()

    def drain(self, lame_duck_seconds: float) -> None:
        """Finishes what is in hand, at most for the configured time, and closes the gRPC port.

        Before that, for `lame_duck_seconds`, requests are still taken while health already says that they should go elsewhere.
        """
        self._draining = True
        self._health.changed()
        self._on_change()
        if lame_duck_seconds:
            log.info("leaving: health says NOT_SERVING, requests are taken for %g s more", lame_duck_seconds)
            time.sleep(lame_duck_seconds)
        log.info("draining: new requests are refused, those in hand are finished")
        self._classify.end_streams()
        self._infer.end_streams()
        if not self._classifier.drain(self._config.drain_seconds):
            log.warning("some requests were not finished within %g s and are cancelled", self._config.drain_seconds)
        self._health.end_watches()
        self._reflection.end_conversations()
        self._transport.stop(STOP_SECONDS)

    def close(self) -> None:
        """Lets go of everything. Only after `drain`."""
        self._control.close()
        self._classifier.close()
        self._repository.stop()
        self._http.stop()
        if self._tracing is not None:
            self._tracing.close()
        self._ready_file.withdraw()
        log.info("stopped")

    @property
    def loaded(self) -> bool:
        """Whether every model has been loaded that was there at the start, and can be."""
        return self._repository.scanned

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded now."""
        return self._repository.loading

    def leave(self) -> NoReturn:
        """Ends the process while models are still being loaded, which nothing can interrupt. Only after `drain`."""
        self._http.stop()
        if self._tracing is not None:
            self._tracing.close()
        self._ready_file.withdraw()
        log.info("stopped while models were being loaded")
        leave_at_once()

    def _serving(self) -> dict[str, bool]:
        up = not self._draining
        names = dict.fromkeys(self._repository.served, up)
        return names | {health.OVERALL: up and self._repository.ready}

    def why_not_ready(self) -> str:
        """Why requests cannot be answered now; empty if they can."""
        if self._draining:
            return "draining"
        return "" if self._repository.ready else "no model is ready"

    def why_not_alive(self) -> str:
        """Why nothing but another process can help; empty if this one is well."""
        return self._repository.stuck()

    def act(self, method: str, *arguments: str | int) -> None:
        """Calls a method of Control on this server itself, and raises what it raises."""
        getattr(self._here, method)(*arguments)

    def metrics(self) -> list[Metric]:
        """Every metric as of now."""
        return list(self._registry.collect())

    def _changed(self) -> None:
        self._warn_of_large_requests()
        if self._repository.ready and not self._draining:
            self._ready_file.write(self.grpc_port, self.http_port)
            if not self._said_ready and self._config.workers == 1:
                self._said_ready = True
                page = f"; the page is http://{self._config.url_host}:{self.http_port}/" if self._config.page_offered else ""
                log.info("ready%s", page)
        self._health.changed()
        self._on_change()

    def _warn_of_large_requests(self) -> None:
        level = logging.WARNING if self._config.max_message_bytes is None else logging.INFO  # then it was meant so
        for served in (served for versions in self._repository.served.values() for served in versions):
            needed = message_limits.largest_request_bytes(
                served.policy, served.model.input.size_bytes, pictures=not served.model.foreign
            )
            if needed > self._max_message_bytes and (served.name, served.version) not in self._warned:
                self._warned.add((served.name, served.version))
                log.log(
                    level,
                    "model %s version %d: its largest requests have %d bytes, more than the %d that a message may have; "
                    "start again with --max-message-bytes %d to take them",
                    served.name, served.version, needed, self._max_message_bytes, needed,
                )  # fmt: skip


def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once, with code 1."""
    asked_to_stop = StopOnSignals(config.lame_duck_seconds)
    server = Server(config)
    server.open()
    # On a thread of its own: a model may take minutes to load, and whoever wants the server to leave should not have to wait.
    failures: list[BaseException] = []

    def load() -> None:
        try:
            server.load()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)
            asked_to_stop.set()

    loading = threading.Thread(target=load, name="load", daemon=True)
    loading.start()
    try:
        asked_to_stop.wait()
    finally:
        lame_duck_seconds = asked_to_stop.lame_duck_seconds if server.loaded else 0.0
        leave_within(lame_duck_seconds + config.drain_seconds + LAST_SECONDS)
        server.drain(lame_duck_seconds)
        if (server.loading or not server.loaded) and not failures:
            server.leave()
        loading.join()
        server.close()
    if failures:
        raise failures[0]
    leave_at_once()


def _tracing(config: ServerConfig) -> "Tracing | None":
    if config.otlp_endpoint is None:
        return None
    from service.observability.tracing import Tracing

    return Tracing(config.otlp_endpoint, config.trace_sample)


def _classifier(config: ServerConfig, repository: Repository, metrics: Metrics, cpus: int, tracing: "Tracing | None") -> Classifier:
    """A classifier that tells of its requests, if it is asked to."""
    if tracing is None and not config.access_log_sample:
        return Classifier(repository, metrics, cpus)
    return ObservedClassifier(repository, metrics, cpus, config.access_log_sample, tracing)


def _transport(config: ServerConfig) -> type[CompletionQueueServer] | type[AioServer]:
    """The transport asked for; `auto` takes the fast one where it works. Raises UserError if `fast` does not."""
    if config.transport == "public":
        return AioServer
    reason = why_not()
    if not reason:
        return CompletionQueueServer
    if config.transport == "fast":
        raise UserError(f"--transport fast cannot be used: {reason}; --transport public can")
    log.warning("the fast transport cannot be used, taking the public one: %s", reason)
    return AioServer


def _tls(config: ServerConfig) -> TlsFiles | None:
    """The files that the TLS flags name; None for plain text. Raises UserError if one of the flags is missing."""
    if config.tls_cert is None and config.tls_key is None and config.tls_client_ca is None:
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise UserError("TLS needs both --tls-cert and --tls-key")
    return TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca)


def _channel_arguments(config: ServerConfig) -> list[tuple[str, int]]:
    """C core's arguments for the connection flags; 0 leaves its own default."""
    arguments = [
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        # A client may ping while it has nothing to ask: that keeps middleboxes from forgetting the connection.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", round(1000 * config.min_ping_interval_seconds)),
        ("grpc.http2.max_ping_strikes", 2 if config.min_ping_interval_seconds else 0),
        ("grpc.enable_channelz", int(config.channelz)),
    ]
    if config.max_connection_age_seconds:
        arguments += [
            ("grpc.max_connection_age_ms", max(1, round(1000 * config.max_connection_age_seconds))),
            ("grpc.max_connection_age_grace_ms", round(1000 * config.max_connection_age_grace_seconds)),
        ]
    if config.keepalive_seconds:
        arguments += [("grpc.keepalive_time_ms", max(1, round(1000 * config.keepalive_seconds)))]
    return arguments
