"""The HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for probes, and an application for all other paths.

It has threads of its own beside the gRPC transport's, so that a scrape never waits for a batch or delays one.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram, make_wsgi_app
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Response

from service.config import ServerConfig
from service.errors import RequestError
from service.http.allowed_hosts import AllowedHosts
from service.http.certificates import PEER_CERTIFICATE
from service.http.event_loop import MAX_HEADER_BYTES, EventLoopServer
from service.http.gate import GATE, Gate, check_route
from service.http.http1 import SMALL_BODY_BYTES
from service.http.origins import AllowedOrigins
from service.http.proxy import behind_proxy, checked_root_path, trusts
from service.http.responses import error_response, missing_security_headers, response_to_error
from service.http.wsgi import Headers, Reply, call
from service.process.vital_thread import vital_thread
from service.requests.byte_budget import UNLIMITED, ByteBudget
from service.sockets import listeners
from service.sockets.unix_socket import UnixSocket
from service.tls_files import tls_files

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

MAX_CONCURRENT_REQUESTS = 64
REFUSING_THREADS = 4
"""So many requests of the application run at a time, and so many threads beside them refuse what is too much."""

ROUTE = "convoy.route"
"""The key in a request's environment for the list of rules that it matched, one at most: the route in the metrics."""

ADMITTED = "convoy.admitted"
"""The key in a request's environment, before its body is read, for a list that gets the most bytes that the body may have."""

APP = ("infer", "page")
"""The endpoints of what the application handles."""

INFER = "/v2/models/<model>/infer"
INFER_VERSION = "/v2/models/<model>/versions/<version>/infer"
PAGE_CLASSIFY = "/page/classify/<model>"
PAGE_CLASSIFY_VERSION = "/page/classify/<model>/<version>"
PAGE_EXPLAIN = "/page/explain/<model>"
PAGE_EXPLAIN_VERSION = "/page/explain/<model>/<version>"

_PROBES = ("metrics", "livez", "readyz")

# The application handles inference. Its routes are here too: requests refused before that count for the same route, and they alone
# may have a large body.
_ROUTES = Map(
    [Rule(f"/{name}", endpoint=name) for name in _PROBES]
    + [Rule(path, endpoint="infer") for path in (INFER, INFER_VERSION)]
    + [Rule(path, endpoint="page") for path in (PAGE_CLASSIFY, PAGE_CLASSIFY_VERSION, PAGE_EXPLAIN, PAGE_EXPLAIN_VERSION)],
    merge_slashes=False,
)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def match_route(routes: Map, environ: "WSGIEnvironment") -> tuple[Any, Mapping[str, Any]]:
    """The endpoint and the arguments for a request's path and method.

    Raises werkzeug's HTTPException if no rule matches, and RequestError if `--auth` does not let the client.
    """
    rule, arguments = routes.bind_to_environ(environ).match(return_rule=True)
    environ[ROUTE].append(rule.rule)
    if rule.endpoint not in APP:  # which asks itself
        check_route(rule.rule, arguments, environ)
    return rule.endpoint, arguments


class HttpMetrics:
    """The metrics of HTTP requests, named as OpenTelemetry names them.

    https://opentelemetry.io/docs/specs/semconv/http/http-metrics/. Labels have no text of the client's: the route is that of the
    rule that matched, empty if none did.
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
        """Counts a request that was answered with this status code."""
        self._seconds.labels(method if method in _METHODS else "_OTHER", route, code).observe(seconds)


class HttpServer:
    """Serves the HTTP port. Construct, `start`, and in the end `stop`."""

    def __init__(
        self,
        config: ServerConfig,
        registry: CollectorRegistry,
        metrics: HttpMetrics,
        not_ready_reason: Callable[[], str],
        app: "WSGIApplication | None",
        max_body_bytes: int,
        not_alive_reason: Callable[[], str] = lambda: "",
        gate: Gate | None = None,
        budget: ByteBudget = UNLIMITED,
    ) -> None:
        """Raises UserError for a setting that is not accepted.

        Args:
            config: what to listen on (port 0 takes a free one), limits, and how proxies and web pages are treated.
            registry: the metrics that `/metrics` exposes.
            metrics: counts the requests to this port.
            not_ready_reason: returns why requests cannot be answered; an empty string if they can.
            app: answers all other paths, at most MAX_CONCURRENT_REQUESTS at a time; without it they are answered 404.
            max_body_bytes: the limit of a request's body.
            not_alive_reason: returns why the process must be restarted; an empty string if it need not.
            gate: is asked about every request; without it all are let in.
            budget: what the bodies of requests are taken out of.
        """
        self.port = config.http_port
        self.addresses: Sequence[str] = ()
        """What it listens on, once started: `HOST:PORT` and `unix:PATH`."""
        self._hosts = config.host
        self._unix_socket = None if config.http_socket is None else UnixSocket(config.http_socket, "--http-socket")
        self._metrics = metrics
        self._expose: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._not_ready_reason = not_ready_reason
        self._not_alive_reason = not_alive_reason
        self._gate = gate
        self._app = app
        self._permits = threading.BoundedSemaphore(MAX_CONCURRENT_REQUESTS)
        self._max_body_bytes = max_body_bytes
        self._idle_seconds = config.http_idle_seconds
        self._max_header_bytes = config.max_metadata_bytes or MAX_HEADER_BYTES
        self._page_offered = config.page_offered
        self._request_seconds = config.http_request_seconds
        self._budget = budget
        self._trusts = trusts(config.trusted_proxies)
        self._tls = tls_files(config)
        self._needs_certificate = config.tls_client_ca is not None
        self.admin_port = config.admin_port
        """The port of probes and metrics alone, once started; None without."""
        self._root_path = checked_root_path(config.root_path)
        self._origins = AllowedOrigins(config.allowed_origins)
        self._cross_site_logged = False
        allowed_hosts = AllowedHosts(config.allowed_hosts, config.host, self._origins.allows)
        self._entrance, self._admission = (
            behind_proxy(allowed_hosts.wrap(self._origins.wrap(inner)), config.trusted_proxies, self._root_path)
            for inner in (self.application, self._admit)
        )
        self._thread = vital_thread(self._run, "http")
        self._admin: EventLoopServer | None = None
        self._admin_thread = vital_thread(self._run_admin, "http-admin")

    def start(self) -> None:
        """Binds the addresses and serves from threads of its own. Raises UserError if one cannot be bound; then none is."""
        bound = listeners.bind(self._hosts, self.port, "HTTP")
        addresses = [listeners.address_of(each) for each in bound]
        if self._unix_socket is not None:
            try:
                bound.append(self._unix_socket.listen())
            except BaseException:
                for each in bound:
                    each.close()
                raise
            addresses.append(f"unix:{self._unix_socket.path}")
        self.port, self.addresses = bound[0].getsockname()[1], addresses
        try:
            admin = listeners.bind(self._hosts, self.admin_port, "administration") if self.admin_port is not None else []
            self._server = EventLoopServer(
                self._serve_counted, bound, MAX_CONCURRENT_REQUESTS + REFUSING_THREADS, self._max_body_bytes, self._idle_seconds,
                self._max_header_bytes, self._request_seconds, self.admit, self._origins.headers,
                has_places_by_address=lambda address: not self._trusts(address), budget=self._budget, tls=self._tls,
                client_certificates=ssl.CERT_REQUIRED if admin else ssl.CERT_OPTIONAL,
            )  # fmt: skip
        except BaseException:
            for each in bound:
                each.close()
            raise
        if admin:
            self.admin_port = admin[0].getsockname()[1]
            self._admin = EventLoopServer(
                self._serve_admin, admin, 1, SMALL_BODY_BYTES, self._idle_seconds, self._max_header_bytes,
                self._request_seconds,
            )  # fmt: skip
            self._admin_thread.start()
        self._thread.start()

    @property
    def url(self) -> str:
        """The URL of the page on this machine, once started."""
        host = self.addresses[0].rpartition(":")[0]
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{'127.0.0.1' if host in ('[::]', '0.0.0.0') else host}:{self.port}{self._root_path}/"  # noqa: S104 - compared

    def stop(self) -> None:
        """Closes the port and all connections, idle ones too: a scraper keeps its own open for ever."""
        if self._thread.is_alive():
            if self._unix_socket is not None:
                self._unix_socket.remove()
            self._server.close()
            self._thread.join()
        if self._admin is not None and self._admin_thread.is_alive():
            self._admin.close()
            self._admin_thread.join()

    def _run(self) -> None:
        self._server.run()

    def _run_admin(self) -> None:
        if self._admin is not None:
            self._admin.run()

    def admit(self, environ: "WSGIEnvironment") -> int | Reply:
        """The most bytes that a request's body may have, or the reply that refuses the request before its body is read."""
        start = time.monotonic()
        admitted: list[int] = []
        asked = environ | {ROUTE: [], ADMITTED: admitted}
        reply = call(self._admission, asked)
        if admitted:
            return admitted[0]
        self._count(asked, reply.status, start)
        return reply._replace(headers=reply.headers + missing_security_headers(reply.headers))

    def _admit(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Refuses as `application` and its application would, or notes how large the body may be."""
        endpoint = ""
        if self._gate is not None:
            environ[GATE] = self._gate
        try:
            endpoint, arguments = match_route(_ROUTES, environ)
            if endpoint in APP:
                check_route(environ[ROUTE][0], arguments, environ)
        except NotFound:
            if not environ["PATH_INFO"].startswith(("/v2/", "/page/")):
                return error_response(404, "this path takes no body")(environ, start_response)
        except (HTTPException, RequestError) as error:
            return response_to_error(error, environ)(environ, start_response)
        refusal = self._without_certificate(endpoint, environ)
        if refusal is None and endpoint not in _PROBES:
            refusal = self._refusal(environ)
        if refusal is not None:
            return refusal(environ, start_response)
        has_large = environ["REQUEST_METHOD"] == "POST" and (endpoint == "infer" or (endpoint == "page" and self._page_offered))
        environ[ADMITTED].append(self._max_body_bytes if has_large else min(SMALL_BODY_BYTES, self._max_body_bytes))
        return Response(status=204)(environ, start_response)

    def _serve_counted(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start = time.monotonic()
        environ[ROUTE] = []
        code = "500"  # the response if the application raises

        def start_counted(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
            nonlocal code
            code = status
            return start_response(status, headers + missing_security_headers(headers), exc_info)

        try:
            return self._entrance(environ, start_counted)
        finally:
            self._count(environ, code, start)

    def _count(self, environ: "WSGIEnvironment", status: str, start: float) -> None:
        route = environ[ROUTE]
        self._metrics.answered(environ["REQUEST_METHOD"], route[0] if route else "", status[:3], time.monotonic() - start)

    def application(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request, without counting it; see PEP 3333."""
        if self._gate is not None:
            environ[GATE] = self._gate
        try:
            endpoint, _ = match_route(_ROUTES, environ)
        except NotFound:
            endpoint = "app"
        except (HTTPException, RequestError) as error:
            return response_to_error(error, environ)(environ, start_response)
        if (refusal := self._without_certificate(endpoint, environ)) is not None:
            return refusal(environ, start_response)
        if endpoint not in _PROBES:
            return self._answer_with_app(environ, start_response)
        if endpoint == "metrics" and self.admin_port is not None:
            return error_response(404, "the metrics are on the port of --admin-port")(environ, start_response)
        return self._answer_probe(endpoint, environ, start_response)

    def _serve_admin(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers a request on the port of its own for probes and metrics, which asks nobody who they are."""

        def start(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
            return start_response(status, headers + missing_security_headers(headers), exc_info)

        endpoint = environ["PATH_INFO"].removeprefix("/")
        if endpoint not in _PROBES:
            return error_response(404, "this port serves only /metrics, /livez and /readyz")(environ, start)
        return self._answer_probe(endpoint, environ, start)

    def _answer_probe(self, endpoint: str, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "OPTIONS":
            return Response(status=204, headers={"Allow": "GET, HEAD, OPTIONS"})(environ, start_response)
        if endpoint == "metrics":
            try:
                if environ["REQUEST_METHOD"] == "HEAD":  # prometheus_client refuses it
                    return Response.from_app(self._expose, environ | {"REQUEST_METHOD": "GET"})(environ, start_response)
                return self._expose(environ, start_response)
            except TypeError:  # prometheus_client's, for a version that is not a number
                return error_response(400, "the version in the header Accept is not a number")(environ, start_response)
        reason = self._not_ready_reason() if endpoint == "readyz" else self._not_alive_reason()
        response = Response(f"{reason or 'ok'}\n", status=503 if reason else 200, mimetype="text/plain")
        return response(environ, start_response)

    def _without_certificate(self, endpoint: str, environ: "WSGIEnvironment") -> Response | None:
        """The response to a client that shows no certificate where one is needed: for all but probes."""
        if not self._needs_certificate or PEER_CERTIFICATE in environ or endpoint in ("livez", "readyz"):
            return None
        return error_response(401, "a client certificate is needed (--tls-client-ca)")

    def _refusal(self, environ: "WSGIEnvironment") -> Response | None:
        """The response to a request that the application does not get."""
        if self._app is None:
            return error_response(404, "this port serves only /metrics, /livez and /readyz")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") and self._origins.is_cross_site(environ):
            self._log_cross_site(environ)
            return error_response(403, "refused: a web page of another site sent this request")
        return None

    def _answer_with_app(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        refusal = self._refusal(environ)
        if refusal is not None or self._app is None:
            return (refusal or Response(status=404))(environ, start_response)
        if not self._permits.acquire(blocking=False):
            response = error_response(429, f"too many concurrent HTTP requests (limit {MAX_CONCURRENT_REQUESTS}); gRPC takes more")
            response.headers["Retry-After"] = "1"
            return response(environ, start_response)
        try:
            return self._app(environ, start_response)
        finally:
            self._permits.release()

    def _log_cross_site(self, environ: "WSGIEnvironment") -> None:
        """Once: an operator who sees it knows whether the page is this server's own."""
        if not self._cross_site_logged:
            self._cross_site_logged = True
            log.warning(
                "refused a request of a web page of %.200r, which was sent to %.200r: if that page may send requests, see "
                "--allowed-origins, and behind a proxy --trusted-proxies",
                environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST"),
            )  # fmt: skip
