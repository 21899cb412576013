"""Listens on the HTTP port: an event loop on one thread reads and writes all connections, threads make the answers.

What an open port needs, beside HTTP itself (`http1.py`):

- When the most connections are open, or half of them from one address, the longest idle one is closed for the next (`places.py`).
- When the process is out of file descriptors, the same is done; if no connection is idle, accepting pauses, with one line in the
  log.
- A connection without traffic is closed after a time, and one whose client does not read its response.
- The port closes within HTTP_FLUSH_SECONDS, however many connections are open; running requests are answered until then.
"""

import asyncio
import errno
import logging
import math
import resource
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from werkzeug.http import http_date

from service.errors import Unavailable
from service.http.certificates import PEER_CERTIFICATE
from service.http.http1 import PROBES, Connection
from service.http.places import Places, who
from service.http.responses import error_response
from service.http.wsgi import Headers, Reply, call, connection_environ, to_reply
from service.process.thread_pool import ThreadPool
from service.requests.byte_budget import UNLIMITED, ByteBudget
from service.tls_files import TlsFiles

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

HTTP_FLUSH_SECONDS = 1.0
"""How long sending finished responses may take when the port closes."""

SCRAPE = "metrics"
SCRAPE_THREADS = PROBE_THREADS = 2
"""Scrapes and probes have threads of their own: no other request makes them wait, nor do many scrapes make a probe wait."""

MAX_CONNECTIONS = 1000
"""The most open connections, and at most half of the process's file descriptors: gRPC and models need some too."""

MAX_HEADER_BYTES = 64 * 1024
"""Of a request's header, which is in no budget, unless `--max-metadata-bytes` says otherwise."""

BUFFER_BYTES = 256 * 1024
BACKLOG = 1024
ACCEPTS_AT_ONCE = 64
"""So many connections are accepted before those that are open have their turn."""

CHECK_SECONDS = 1.0
"""How often times are looked at."""

ACCEPT_PAUSE_SECONDS = 0.1
"""How long accepting pauses when there is no room for another connection."""

HANDSHAKE_SECONDS = 10.0
SHUTDOWN_SECONDS = 2.0
"""How long the beginning and the end of TLS may take on a connection."""

LOG_SECONDS = 60
"""How often a shortage of connections or file descriptors is logged."""

_NO_FILES = (errno.EMFILE, errno.ENFILE)
_NOTHING_TO_ACCEPT = (errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.EPROTO)


def max_connections() -> int:
    """The most open connections of this process."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


class EventLoopServer:
    """Serves a WSGI application on bound sockets. Construct, `run` on a thread, and in the end `close`."""

    def __init__(
        self,
        application: "WSGIApplication",
        bound: Sequence[socket.socket],
        threads: int,
        max_body_bytes: int,
        idle_seconds: float,
        max_header_bytes: int = MAX_HEADER_BYTES,
        request_seconds: float = 30.0,
        admit: "Callable[[WSGIEnvironment], int | Reply] | None" = None,
        refusal_headers: Callable[[str | None], Headers] = lambda _: [],
        has_places_by_address: Callable[[str], bool] = lambda _: True,
        budget: ByteBudget = UNLIMITED,
        tls: TlsFiles | None = None,
        client_certificates: ssl.VerifyMode = ssl.CERT_OPTIONAL,
    ) -> None:
        """Listens on the sockets; they are the server's from now on.

        Args:
            application: makes the answers, on threads.
            bound: sockets that are bound.
            threads: how many requests are answered at a time, beside probes and scrapes.
            max_body_bytes: the limit of a body, answered 413.
            idle_seconds: a connection without traffic is closed after this time, unless a response for it is being computed.
            max_header_bytes: the limit of a header, answered 431.
            request_seconds: how long a request may take to arrive, from its first byte to its last; then it is answered 408.
            admit: see `http1.Owner`.
            refusal_headers: the headers of a refusal, by the header Origin of the request.
            has_places_by_address: whether an address has a limited number of places.
            budget: bodies are taken out of it as they arrive, and given back when the request has been answered.
            tls: the certificate files, without which HTTP is plain.
            client_certificates: whether clients need one, if the files say of whom.

        Raises:
            UserError: the certificate files cannot be used.
        """
        self._tls = tls
        self._client_certificates = client_certificates
        self._context = None if tls is None else self._prepared(tls, tls.context())
        self._budget = budget
        self.no_room = str(budget.refusal())
        self.max_header_bytes = max_header_bytes
        self.idle_seconds = idle_seconds
        self.request_seconds = request_seconds
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.loop = asyncio.new_event_loop()
        self._application = application
        self._listeners = list(bound)
        self._max_body_bytes = max_body_bytes
        self._admit = admit
        self._refusal_headers = refusal_headers
        self._has_places_by_address = has_places_by_address
        self._places: Places[Connection] = Places(max_connections())
        self._opening: dict[Connection, asyncio.Task[Any]] = {}
        self._threads = ThreadPool(threads, "http")
        self._scrape_threads = ThreadPool(SCRAPE_THREADS, "http-scrape")
        self._probe_threads = ThreadPool(PROBE_THREADS, "http-probe")
        self._common_headers: tuple[int, Headers] = (0, [])
        self._logged_at = -math.inf
        self._closing_since: float | None = None
        for each in self._listeners:
            each.setblocking(False)
            if each.family != socket.AF_UNIX:
                # Accepted sockets inherit it. Without it, those that wait for their end keep the port from the next server.
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.listen(BACKLOG)

    @property
    def connections(self) -> list[Connection]:
        """The open connections."""
        return self._places.clients()

    def run(self) -> None:
        """Serves until `close`, called by another thread."""
        self._accept_again()
        self._check()
        self.loop.run_forever()
        self.loop.close()
        until = time.monotonic() + HTTP_FLUSH_SECONDS
        for each in (self._probe_threads, self._scrape_threads, self._threads):
            each.close(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """Ends `run`: waits up to HTTP_FLUSH_SECONDS for running requests and unsent responses, then closes all connections."""
        self.loop.call_soon_threadsafe(self._close)

    # Accepting.

    def _accept_again(self) -> None:
        if self._closing_since is not None:
            return
        for listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                accepted, address = listener.accept()
            except OSError as error:
                if error.errno in _NO_FILES:
                    self._log_seldom(logging.ERROR, "out of file descriptors, new HTTP connections wait: %s", error.strerror)
                    if not self._close_for_another(self._places.longest_idle()):
                        self._pause_accepting()
                elif error.errno not in _NOTHING_TO_ACCEPT:
                    log.exception("an HTTP connection cannot be accepted")
                    self._pause_accepting()
                return
            try:
                self._open(accepted, None if listener.family == socket.AF_UNIX else address, listener)
            except BaseException:
                accepted.close()
                raise

    def _open(self, accepted: socket.socket, address: Any, listener: socket.socket) -> None:
        """Makes a connection of an accepted socket, closing another one for it if it must; or closes it if there is no place."""
        client = who(address[0]) if address is not None and self._has_places_by_address(address[0]) else None
        if self._places.are_taken:
            message = "%d HTTP connections are open, the most: the longest idle one is closed for the next"
            self._log_seldom(logging.WARNING, message, self._places.most)
        self._close_for_another(self._places.to_close_for(client))
        if not self._places.may_add(client):
            accepted.close()
            return
        connection = Connection(self)
        server = ("localhost", 0) if address is None else listener.getsockname()[:2]
        context = self._current_context()
        connection.environ = connection_environ(
            None if address is None else address[:2], server, "http" if context is None else "https"
        )
        times = {} if context is None else {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": SHUTDOWN_SECONDS}
        opening = self.loop.create_task(
            self.loop.connect_accepted_socket(lambda: connection, accepted, ssl=context, **times)
        )  # fmt: skip
        self._places.add(connection, client)  # once a task is there that gives the place back
        self._opening[connection] = opening
        opening.add_done_callback(partial(self._opened, connection, accepted))

    def _current_context(self) -> ssl.SSLContext | None:
        if self._tls is not None and (renewed := self._tls.renewed_context()) is not None:
            self._context = self._prepared(self._tls, renewed)
        return self._context

    def _prepared(self, tls: TlsFiles, context: ssl.SSLContext) -> ssl.SSLContext:
        if tls.asks_clients:
            context.verify_mode = self._client_certificates
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _opened(self, connection: Connection, accepted: socket.socket, opening: asyncio.Task[Any]) -> None:
        del self._opening[connection]
        if opening.cancelled() or opening.exception() is not None:
            accepted.close()
            self.lost(connection)

    def _close_for_another(self, connection: Connection | None) -> bool:
        if connection is None:
            return False
        self._places.remove(connection)
        self._hang_up(connection)
        return True

    def _hang_up(self, connection: Connection) -> None:
        if (opening := self._opening.get(connection)) is not None:
            opening.cancel()
        connection.abort()

    def _pause_accepting(self) -> None:
        self.loop.call_later(ACCEPT_PAUSE_SECONDS, self._accept_again)
        for listener in self._listeners:
            self.loop.remove_reader(listener)

    def _log_seldom(self, level: int, message: str, *arguments: object) -> None:
        if self.loop.time() > self._logged_at + LOG_SECONDS:
            self._logged_at = self.loop.time()
            log.log(level, message, *arguments)

    # What its connections need: see http1.Owner.

    def connected(self, connection: Connection, transport: asyncio.BaseTransport) -> None:
        """See http1.Owner."""
        encrypted: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        certificate = None if encrypted is None else encrypted.getpeercert(binary_form=True)
        if certificate is not None:
            connection.environ[PEER_CERTIFICATE] = certificate

    def used(self, connection: Connection) -> None:
        """See http1.Owner."""
        self._places.used(connection)

    def lost(self, connection: Connection) -> None:
        """See http1.Owner."""
        self._places.remove(connection)

    def admit(self, environ: "WSGIEnvironment") -> int | Reply:
        """See http1.Owner."""
        return self._max_body_bytes if self._admit is None else self._admit(environ)

    def refusal(self, status: int, message: str, origin: str | None) -> Reply:
        """See http1.Owner."""
        retry = [("Retry-After", "1")] if status in (429, 503) else []
        return to_reply(error_response(status, message), [*retry, *self._refusal_headers(origin)])

    @property
    def is_crowded(self) -> bool:
        """See http1.Owner."""
        return self._places.are_exceeded

    def take(self, count: int) -> bool:
        """See http1.Owner."""
        return self._budget.take(count)

    def give_back(self, count: int) -> None:
        """See http1.Owner."""
        if count:
            self._budget.give_back(count)

    def answer(self, connection: Connection, environ: "WSGIEnvironment") -> None:
        """See http1.Owner."""
        name = environ["PATH_INFO"].rpartition("/")[2]
        threads = self._scrape_threads if name == SCRAPE else self._probe_threads if name in PROBES else self._threads
        try:
            threads.submit(partial(call, self._application, environ), partial(self._pass_on, connection))
        except Unavailable as error:
            reply = self.refusal(503, str(error), environ.get("HTTP_ORIGIN"))
            self.loop.call_soon(self._respond, connection, reply)  # not now: after it the next request comes

    def _pass_on(self, connection: Connection, reply: Reply) -> None:
        # On a thread.
        try:
            self.loop.call_soon_threadsafe(self._respond, connection, reply)
        except RuntimeError:  # the port was closed
            return

    def _respond(self, connection: Connection, reply: Reply) -> None:
        try:
            connection.respond(reply)
        except Exception:
            log.exception("an HTTP response could not be sent")
            connection.abort()

    def common_headers(self) -> Headers:
        """See http1.Owner."""
        now = int(time.time())
        if now != self._common_headers[0]:
            self._common_headers = now, [("Date", http_date(now)), ("Server", "convoy")]
        return self._common_headers[1]

    # Closing.

    def _check(self) -> None:
        self.loop.call_later(min(CHECK_SECONDS, self.idle_seconds), self._check)  # first, so that no error can end it
        now = self.loop.time()
        for connection in self._places.clients():
            try:
                connection.check(now)
            except Exception:
                log.exception("an HTTP connection is closed")
                connection.abort()

    def _close(self) -> None:
        """Stops accepting, and closes each connection as soon as it is not busy."""
        again = self.loop.call_later(0.01, self._close)  # first, so that no error can end it
        now = self.loop.time()
        if self._closing_since is None:
            self._closing_since = now
            for listener in self._listeners:
                self.loop.remove_reader(listener)
                listener.close()
        late = now > self._closing_since + HTTP_FLUSH_SECONDS
        for connection in self._places.clients():
            if late or not connection.is_busy:
                self._hang_up(connection)
        if len(self._places) == 0 and not self._opening:
            self.loop.call_later(0.01, self.loop.stop)  # sockets are closed in the round after that in which they were let go
            again.cancel()
