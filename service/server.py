"""One server process, from start to end: construct, `start`, `wait`, `stop`.

Start: the ports are bound first, so that a port in use is known at once and probes see a server that is loading; then
models are loaded; then the ready file is written. Stop: health says NOT_SERVING first, and for a lame-duck time nothing else
changes, so that whoever watches it sends new requests elsewhere; then new requests are refused with UNAVAILABLE, those in hand
are finished, and only then are the ports closed, so that probes can read how things stand.
"""

import gc
import json
import logging
import os
import signal
import socket
import ssl
import threading
import time
from pathlib import Path
from types import FrameType

from prometheus_client import CollectorRegistry

from service.classifier import Classifier
from service.config import ServerConfig
from service.errors import UserError
from service.http import HttpServer
from service.metrics import Metrics
from service.model import check_provider
from service.repository import Repository
from service.rpc import classify, health, reflection
from service.rpc.completion_queue import CompletionQueueServer, why_not
from service.rpc.public_server import PublicServer
from service.rpc.transport import Options, Tls, Transport

log = logging.getLogger(__name__)

STOP_SECONDS = 1.0
"""What calls may still take when no request is in hand any more: replies under way, health checks."""


class Server:
    """Serves a repository over gRPC and HTTP."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._draining = False
        metrics = Metrics(CollectorRegistry())
        self._repository = Repository(config.repository, config.provider, metrics, self._changed, policies=config.policies)
        self._classifier = Classifier(self._repository, metrics)
        self._health = health.HealthServicer(self._serving)
        self._reflection = reflection.ReflectionServicer([classify.SERVICE, health.SERVICE])
        servicers = (classify.ClassifyServicer(self._classifier), self._health, self._reflection)
        transport = _transport(config)
        metrics.transport_chosen(transport.name)
        self._transport: Transport = transport(
            Options(
                host=config.host,
                port=config.grpc_port,
                max_message_bytes=config.max_message_bytes,
                methods=[method for servicer in servicers for method in servicer.methods()],
                observer=metrics,
                quiet=self._classifier.pump,
                tls=_tls(config),
                compression=config.compression,
                arguments=_channel_arguments(config),
            )
        )
        self._http = HttpServer(config.host, config.http_port, metrics.registry, self._why_not_ready)
        self._ready_file_lock = threading.Lock()

    @property
    def grpc_port(self) -> int:
        """The port that gRPC is served on, once started."""
        return self._transport.port

    @property
    def http_port(self) -> int:
        """The port that HTTP is served on, once started."""
        return self._http.port

    def start(self) -> None:
        """Binds the ports, loads the models and serves. Raises UserError for what the operator can put right."""
        repository = self._config.repository
        if not repository.is_dir():
            raise UserError(
                f"{str(repository)!r} is not a folder" if repository.exists() else f"no repository folder {str(repository)!r}"
            )
        if self._config.policies is not None and not self._config.policies.is_dir():
            raise UserError(f"--policies {str(self._config.policies)!r}: no such folder")
        check_provider(self._config.provider)
        try:
            socket.getaddrinfo(self._config.host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UserError(f"--host {self._config.host!r} is no address or name of a machine") from None
        self._transport.start()
        try:
            self._http.start()
        except BaseException:
            self._transport.stop(0)
            raise
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        log.info(
            "listening: gRPC on %s:%d (%s transport%s), HTTP on %s:%d",
            host, self.grpc_port, self._transport.name, ", TLS" if self._config.tls_cert else "", host, self.http_port,
        )  # fmt: skip
        self._repository.start()
        # What is there now stays: the collector need not look at it again, nor at every few hundred objects of calls in flight.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    def stop(self, lame_duck_seconds: float = 0.0) -> None:
        """Drains: finishes what is in hand, at most for the configured time, and closes everything. A second call does nothing.

        Before that, for `lame_duck_seconds`, requests are still taken while health already says that they should go elsewhere.
        """
        if self._draining:
            return
        self._draining = True
        self._health.changed()
        if lame_duck_seconds:
            log.info("leaving: health says NOT_SERVING, requests are taken for %g s more", lame_duck_seconds)
            time.sleep(lame_duck_seconds)
        log.info("draining: new requests are refused, those in hand are finished")
        if not self._classifier.drain(self._config.drain_seconds):
            log.warning("some requests were not finished within %g s and are cancelled", self._config.drain_seconds)
        self._health.end_watches()
        self._reflection.end_conversations()
        self._transport.stop(STOP_SECONDS)
        self._classifier.close()
        self._repository.stop()
        self._http.stop()
        self._remove_ready_file()
        log.info("stopped")

    def _serving(self) -> dict[str, bool]:
        up = not self._draining
        names = dict.fromkeys(self._repository.served, up)
        return names | {health.OVERALL: up and self._repository.ready}

    def _why_not_ready(self) -> str:
        if self._draining:
            return "draining"
        return "" if self._repository.ready else "no model is ready"

    def _changed(self) -> None:
        if self._repository.ready and not self._draining:
            self._write_ready_file()
        self._health.changed()

    def _write_ready_file(self) -> None:
        path = self._config.ready_file
        if path is None:
            return
        ready = {"grpc_port": self.grpc_port, "http_port": self.http_port, "pid": os.getpid()}
        with self._ready_file_lock:
            # Whoever polls for the file must never read half of it.
            partial = _partial(path)
            partial.write_text(json.dumps(ready) + "\n", encoding="utf-8")
            partial.replace(path)

    def _remove_ready_file(self) -> None:
        if self._config.ready_file is not None:
            self._config.ready_file.unlink(missing_ok=True)


def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once, with code 1.

    SIGTERM comes from whoever else runs clients or balancers, and is given the lame-duck time; SIGINT from a person who waits.
    """
    asked_to_stop = threading.Event()
    lame_duck_seconds = 0.0

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal lame_duck_seconds
        if asked_to_stop.is_set():
            log.warning("%s again: leaving at once", signal.Signals(number).name)
            os._exit(1)
        if number == signal.SIGTERM:
            lame_duck_seconds = config.lame_duck_seconds
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    _check_ready_file(config.ready_file)
    server = Server(config)
    server.start()
    try:
        asked_to_stop.wait()
    finally:
        server.stop(lame_duck_seconds)


def _transport(config: ServerConfig) -> type[CompletionQueueServer] | type[PublicServer]:
    """The transport asked for; `auto` takes the fast one where it works. Raises UserError if `fast` does not."""
    if config.transport == "public":
        return PublicServer
    reason = why_not()
    if not reason:
        return CompletionQueueServer
    if config.transport == "fast":
        raise UserError(f"--transport fast cannot be used: {reason}; --transport public can")
    log.warning("the fast transport cannot be used, taking the public one: %s", reason)
    return PublicServer


def _tls(config: ServerConfig) -> Tls | None:
    """What the TLS flags name, read and checked. Raises UserError for a file that is not what it should be."""
    if config.tls_cert is None and config.tls_key is None and config.tls_client_ca is None:
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise UserError("TLS needs both --tls-cert and --tls-key")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password given, a key that is encrypted would have it asked for on the terminal.
        context.load_cert_chain(config.tls_cert, config.tls_key, password="")
        if config.tls_client_ca is not None:
            context.load_verify_locations(config.tls_client_ca)
        client_ca = config.tls_client_ca.read_bytes() if config.tls_client_ca is not None else None
        return Tls(config.tls_cert.read_bytes(), config.tls_key.read_bytes(), client_ca)
    except OSError as error:  # ssl's errors are among them
        raise UserError(
            f"TLS: --tls-cert, --tls-key and --tls-client-ca must be PEM files that belong together: {error.strerror or error}"
        ) from None


def _channel_arguments(config: ServerConfig) -> list[tuple[str, int]]:
    """C core's arguments for the connection flags; 0 leaves its own default."""
    arguments = []
    if config.max_connection_age_seconds:
        arguments += [
            ("grpc.max_connection_age_ms", max(1, round(1000 * config.max_connection_age_seconds))),
            ("grpc.max_connection_age_grace_ms", round(1000 * config.drain_seconds)),
        ]
    if config.keepalive_seconds:
        arguments += [("grpc.keepalive_time_ms", max(1, round(1000 * config.keepalive_seconds)))]
    return arguments


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _check_ready_file(path: Path | None) -> None:
    """Fails now rather than after loading if the ready file cannot be written; removes a stale one."""
    if path is None:
        return
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"--ready-file {str(path)!r}: not a file in a folder that exists")
    try:
        # Never the file itself: somebody may be waiting for it to appear.
        probe = _partial(path)
        probe.touch()
        probe.unlink()
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--ready-file {str(path)!r}: {error.strerror}") from None
