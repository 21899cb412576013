"""The HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for probes; whatever else is asked goes on to others.

Runs on waitress, a small pool of threads beside the gRPC transport, so that a scrape never waits for a batch or holds one up.
"""

import errno
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import waitress.channel
import waitress.task
from prometheus_client import CollectorRegistry, Histogram, make_wsgi_app
from waitress.receiver import ChunkedReceiver
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Response

from service.errors import UserError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

PROBE_THREADS = 4
MAX_CONCURRENT_REQUESTS = 64
"""So many requests that are neither a scrape nor a probe are worked on at a time: those two always find a thread."""

CLOSE_SECONDS = 1.0
"""What answers that are ready may take to be sent when the port closes."""

MOST_LINE_BYTES = 64 * 1024
IDLE_SECONDS = 75
"""A connection is closed on which nothing has moved for so long, unless an answer for it is being worked on. Load balancers keep
theirs for 60 s: closed by us before, a request might be lost that was just sent."""

LOOK_SECONDS = 5
"""How often that is looked for."""

ROUTE = "convoy.route"
"""In a request's environment, a list: whoever finds the rule that it matches puts the rule there."""

INFER = "/v2/models/<model>/infer"
INFER_VERSION = "/v2/models/<model>/versions/<version>/infer"

# Inference is answered elsewhere, but known here: what is refused before it gets there counts against the same budget.
_ROUTES = Map(
    [Rule(f"/{name}", endpoint=name) for name in ("metrics", "livez", "readyz")]
    + [Rule(path, endpoint="app") for path in (INFER, INFER_VERSION)],
    merge_slashes=False,
)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def find(routes: Map, environ: "WSGIEnvironment") -> tuple[Any, Mapping[str, Any]]:
    """The endpoint and the arguments that a request's path and method stand for. Raises werkzeug's HTTPException if for none."""
    rule, arguments = routes.bind_to_environ(environ).match(return_rule=True)
    environ[ROUTE].append(rule.rule)
    return rule.endpoint, arguments


class HttpMetrics:
    """What is counted of every HTTP request, named as OpenTelemetry names it.

    https://opentelemetry.io/docs/specs/semconv/http/http-metrics/. What a client sends never becomes a label: the route is that of
    the rule that matched, empty if none did.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "http_server_request_duration_seconds",
            "Seconds from an HTTP request's arrival to its answer",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=_SECONDS,
            registry=registry,
        )
        for code in ("200", "429", "500", "503", "504"):  # from the start, at 0: see metrics.py
            self._seconds.labels("POST", INFER, code)

    def answered(self, method: str, route: str, code: str, seconds: float) -> None:
        """A request has been answered with this status code."""
        self._seconds.labels(method if method in _METHODS else "_OTHER", route, code).observe(seconds)


def _refusal(status: int, why: str) -> Response:
    return Response(json.dumps({"error": why}), status, mimetype="application/json")


class _Refusal(waitress.task.ErrorTask):  # type: ignore[misc]
    """Tells what waitress refuses by itself as everything else that is refused here is told."""

    def execute(self) -> None:
        error = self.request.error
        why = f"{error.reason.lower()}: {error.body}"
        if error.code == 413:
            why = f"the body is too large: at most {self.channel.server.adj.max_request_body_size - 1} bytes are taken"
        answer = _refusal(error.code, why)
        self.status = answer.status
        self.response_headers.extend(answer.headers.items())
        self.set_close_on_finish()
        self.content_length = answer.content_length
        self.write(answer.get_data())


class _Channel(waitress.channel.HTTPChannel):  # type: ignore[misc]
    error_task_class = _Refusal

    def received(self, data: bytes) -> bool:
        """Takes what has come in, unless a chunk's size, or what follows the chunks, has no end: waitress does not mind."""
        taken: bool = super().received(data)
        body = self.request.body_rcv if self.request is not None else None
        if isinstance(body, ChunkedReceiver) and max(len(body.control_line), len(body.trailer)) > MOST_LINE_BYTES:
            self.handle_close()
        return taken


def _of_another_site(environ: "WSGIEnvironment") -> bool:
    """Whether a browser sent the request for a page that is not of this server: it would unload a model without its user's knowing.

    Sec-Fetch-Site is right behind a proxy too, but browsers send it to https and localhost alone.
    """
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is not None and origin.partition("://")[2] != environ.get("HTTP_HOST")


class HttpServer:
    """Serves the HTTP port. Construct, `start`, and in the end `stop`."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        metrics: HttpMetrics,
        why_not_ready: Callable[[], str],
        app: "WSGIApplication | None",
        max_body_bytes: int,
        why_not_alive: Callable[[], str] = lambda: "",
    ) -> None:
        """Port 0 takes a free one. `why_not_ready` gives an empty text when requests can be answered.

        `why_not_alive` does so unless nothing but another process can help.

        What is in `registry` is exposed; what comes in on the port is counted in `metrics`.
        `app` answers requests for anything but metrics and probes, at most MAX_CONCURRENT_REQUESTS at a time, with bodies of at
        most `max_body_bytes`; without it nothing else is offered.
        """
        self.port = port
        self._host = host
        self._metrics = metrics
        self._expose: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._why_not_ready = why_not_ready
        self._why_not_alive = why_not_alive
        self._app = app
        self._permits = threading.BoundedSemaphore(MAX_CONCURRENT_REQUESTS)
        self._max_body_bytes = max_body_bytes
        self._said_full = -math.inf
        self._channels: dict[int, Any] = {}  # waitress's own book of what it waits for
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Binds the port and serves from threads of its own. Raises UserError if the port cannot be had."""
        # One address: waitress would listen on all that a name stands for, on a port of its own each.
        family, *_, address = socket.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            listener.close()
            raise UserError(
                f"cannot listen for HTTP on {self._host}:{self.port}: {error.strerror or error} (port 0 takes a free one)"
            ) from None
        self.port = listener.getsockname()[1]
        self._server = waitress.create_server(
            self._counted, sockets=[listener], map=self._channels, threads=PROBE_THREADS + MAX_CONCURRENT_REQUESTS, ident="convoy",
            clear_untrusted_proxy_headers=True, connection_limit=1000,
            max_request_body_size=self._max_body_bytes + 1,  # waitress refuses a body of just as many
            channel_timeout=IDLE_SECONDS, cleanup_interval=LOOK_SECONDS,
            asyncore_use_poll=True,  # select() ends at 1,024 files, and gRPC's connections are files too
        )  # fmt: skip
        self._server.channel_class = _Channel
        self._maintain, self._server.maintenance = self._server.maintenance, self._maintenance
        self._accept, self._server.accept = self._server.accept, self._accept_or_wait
        self._thread.start()

    def stop(self) -> None:
        """Closes the port and the connections, idle ones too: a scraper keeps its own open for ever."""
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._server.trigger.pull_trigger(self._close)
        self._thread.join()

    def _maintenance(self, now: float) -> None:
        """Closes idle connections as waitress does, and those whose client does not read: each holds a thread of ours for ever."""
        self._maintain(now)
        for channel in list(self._server.active_channels.values()):
            if channel.total_outbufs_len and channel.last_activity < now - IDLE_SECONDS:
                channel.handle_close()

    def _accept_or_wait(self) -> Any:
        """The next connection. Without files for it waitress would ask again at once, and log a traceback each time."""
        try:
            return self._accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if time.monotonic() > self._said_full + IDLE_SECONDS:
                self._said_full = time.monotonic()
                log.error("HTTP connections have to wait: %s", error.strerror)
            time.sleep(0.1)
            return None

    def _busy(self) -> bool:
        """Whether a connection has a request that is worked on, or an answer that is not all sent."""
        return any(channel.requests or channel.total_outbufs_len for channel in list(self._server.active_channels.values()))

    def _close(self) -> None:
        # On waitress's thread, which ends when nothing is left to wait for.
        for channel in list(self._channels.values()):
            if channel is not self._server.trigger:
                channel.close()
        self._server.task_dispatcher.shutdown(timeout=CLOSE_SECONDS)
        self._channels.clear()

    def _run(self) -> None:
        self._server.run()

    def _counted(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start = time.monotonic()
        route: list[str] = []
        environ[ROUTE] = route
        code = "500"  # what waitress answers if nobody else does

        def start_counted(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            nonlocal code
            code = status[:3]
            return start_response(status, headers, exc_info)

        try:
            return self.application(environ, start_counted)
        finally:
            self._metrics.answered(environ["REQUEST_METHOD"], route[0] if route else "", code, time.monotonic() - start)

    def application(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request, as WSGI has it, without counting it."""
        try:
            endpoint, _ = find(_ROUTES, environ)
        except NotFound:
            endpoint = "app"
        except HTTPException as error:
            return error(environ, start_response)
        if endpoint == "app":
            if self._app is None:
                return _refusal(404, "only /metrics, /livez and /readyz are offered here")(environ, start_response)
            if environ["REQUEST_METHOD"] not in ("GET", "HEAD") and _of_another_site(environ):
                return _refusal(403, "refused: a web page of another site sent this request")(environ, start_response)
            return self._with_permit(self._app, environ, start_response)
        if endpoint == "metrics":
            try:
                return self._expose(environ, start_response)
            except TypeError:  # prometheus_client's, of a version that is no number
                return _refusal(400, "the header Accept asks for a version that is no number")(environ, start_response)
        reason = self._why_not_ready() if endpoint == "readyz" else self._why_not_alive()
        response = Response(f"{reason or 'ok'}\n", status=503 if reason else 200, mimetype="text/plain")
        return response(environ, start_response)

    def _with_permit(
        self, answer: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        if not self._permits.acquire(blocking=False):
            refusal = _refusal(429, f"{MAX_CONCURRENT_REQUESTS} requests are in hand over HTTP; gRPC takes more")
            refusal.headers["Retry-After"] = "1"
            return refusal(environ, start_response)
        try:
            return answer(environ, start_response)
        finally:
            self._permits.release()
