"""The HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for probes.

Runs on waitress, a small pool of threads beside the gRPC transport, so that a scrape never waits for a batch or holds one up.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import waitress
from prometheus_client import CollectorRegistry, make_wsgi_app
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Response

from service.errors import UserError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_ROUTES = Map([Rule("/metrics", endpoint="metrics"), Rule("/livez", endpoint="livez"), Rule("/readyz", endpoint="readyz")])


class HttpServer:
    """Serves the HTTP port. Construct, `start`, and in the end `stop`."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        why_not_ready: Callable[[], str],
        elsewhere: "WSGIApplication | None" = None,
    ) -> None:
        """Port 0 takes a free one. `why_not_ready` gives an empty text when requests can be answered.

        `elsewhere` answers requests for anything but metrics and probes.
        """
        self.port = port
        self._host = host
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._why_not_ready = why_not_ready
        self._elsewhere = elsewhere
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
            self.application, sockets=[listener], map=self._channels, threads=4, ident="convoy", clear_untrusted_proxy_headers=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Closes the port and the connections, idle ones too: a scraper keeps its own open for ever."""
        if self._thread.is_alive():
            self._server.trigger.pull_trigger(self._close)
            self._thread.join()

    def _close(self) -> None:
        # On waitress's thread, which ends when nothing is left to wait for.
        for channel in list(self._channels.values()):
            if channel is not self._server.trigger:
                channel.close()
        self._server.task_dispatcher.shutdown()
        self._channels.clear()

    def _run(self) -> None:
        self._server.run()

    def application(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request, as WSGI has it."""
        try:
            endpoint, _ = _ROUTES.bind_to_environ(environ).match()
        except NotFound as error:
            return (self._elsewhere or error)(environ, start_response)
        except HTTPException as error:
            return error(environ, start_response)
        if endpoint == "metrics":
            return self._metrics(environ, start_response)
        reason = self._why_not_ready() if endpoint == "readyz" else ""
        response = Response(f"{reason or 'ok'}\n", status=503 if reason else 200, mimetype="text/plain")
        return response(environ, start_response)
