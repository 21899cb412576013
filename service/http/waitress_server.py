"""waitress, with six changes that an open port needs.

They override methods that waitress's documentation does not promise to keep: TESTED says which versions the tests are run with.

- Errors that waitress answers by itself are JSON, as all others here (`_JsonError`, by `HTTPChannel.error_task_class`).
- A request that a proxy in front may read otherwise is refused, and its connection closed (`_Parser`): with two lengths of its
  body, or without exactly one host. waitress takes one of the two.
- A connection whose chunk header or trailer has no end is closed (`_Connection.received`). waitress bounds neither.
- A connection whose client does not read its response is closed after a time (`_Listener.maintenance`), and at once if it has sent
  more requests before (`_Connection._flush_outbufs_below_high_watermark`). waitress closes only idle connections, and a thread of
  it waits for that client.
- When the most connections are open, the longest idle one is closed for the next (`_Listener.handle_accept`). waitress stops
  accepting, and probes find no server.
- When the process is out of file descriptors, the same is done (`_Listener.accept`); if no connection is idle, accepting pauses,
  with one line in the log. waitress tries again at once, with a traceback each time.

Closing uses waitress's socket map, its trigger and its task dispatcher: `waitress.server.close` leaves open connections alone.
"""

import contextlib
import errno
import logging
import math
import resource
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver
from waitress.server import BaseWSGIServer, TcpWSGIServer, UnixWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher

from service.http.responses import error_response, missing_security_headers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

TESTED = ((3, 0), (3, 0))
"""The lowest and the newest minor version of waitress that the tests are run with."""

HTTP_FLUSH_SECONDS = 1.0
"""How long sending finished responses may take when the port closes."""

MAX_CONNECTIONS = 1000
"""The most open connections, and at most half of the process's file descriptors: gRPC, models and large bodies need some too."""

MAX_HEADER_BYTES = 256 * 1024
"""Of a request, unless `--max-metadata-bytes` says otherwise."""

MAX_CHUNK_HEADER_BYTES = 64 * 1024
IDLE_CHECK_SECONDS = 5
SLOW_CLIENT_SECONDS = 30
"""When all places are taken: a client that has been sending its request for so long counts as idle from then on, and one that has
read nothing of its response for so long."""

ACCEPT_PAUSE_SECONDS = 0.1
"""How long accepting pauses when there is no file descriptor for another connection."""

LOG_SECONDS = 60
"""How often a shortage of connections or file descriptors is logged."""


def untested_reason() -> str:
    """Why the installed waitress may not work with this file; empty if it is in the tested range."""
    version = installed_version("waitress")
    major_minor = tuple(int(part) for part in version.split(".")[:2])
    if TESTED[0] <= major_minor <= TESTED[1]:
        return ""
    return f"waitress {version} is untested (tested: {' to '.join('.'.join(map(str, each)) for each in TESTED)})"


class WaitressServer:
    """Serves a WSGI application on listening sockets, with one thread for all connections and a pool of threads for requests."""

    def __init__(
        self, application: "WSGIApplication", bound: Sequence[socket.socket], threads: int, max_body_bytes: int,
        idle_seconds: float, max_header_bytes: int = MAX_HEADER_BYTES,
    ) -> None:  # fmt: skip
        """Starts the threads.

        A body of more than `max_body_bytes` is answered 413, a header of more than `max_header_bytes` 431. A connection without
        traffic is closed after `idle_seconds`, unless a response for it is being computed.
        """
        if reason := untested_reason():
            log.warning("the HTTP port may not work: %s", reason)
        adjustments = Adjustments(
            # waitress refuses to mix them, without a need. `listen` is not used.
            sockets=[each for each in bound if each.family != socket.AF_UNIX],
            threads=threads, ident="convoy", clear_untrusted_proxy_headers=False,  # see proxy.py
            max_request_body_size=max_body_bytes + 1,  # waitress refuses a body of just as many
            max_request_header_size=max_header_bytes + 1,
            connection_limit=sys.maxsize,  # _Listener has a limit of its own
            channel_timeout=idle_seconds, cleanup_interval=min(IDLE_CHECK_SECONDS, idle_seconds),
            asyncore_use_poll=True,  # select() ends at 1,024 files, and gRPC's connections are files too
        )  # fmt: skip
        self._sockets: dict[int, Any] = {}
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(threads)
        self._listeners = [
            (_UnixListener if each.family == socket.AF_UNIX else _TcpListener)(
                application, map=self._sockets, _sock=each, sockinfo=(each.family, each.type, each.proto, each.getsockname()),
                bind_socket=False, adj=adjustments, dispatcher=dispatcher,
            )
            for each in bound
        ]  # fmt: skip

    @property
    def connections(self) -> list[Any]:
        """The open connections."""
        return [connection for each in self._listeners for connection in list(each.active_channels.values())]

    def run(self) -> None:
        """Serves until `close`, called by another thread."""
        self._listeners[0].run()

    def close(self) -> None:
        """Waits up to HTTP_FLUSH_SECONDS for running requests and unsent responses, then closes the port and all connections."""
        deadline = time.monotonic() + HTTP_FLUSH_SECONDS
        while self._busy() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._listeners[0].trigger.pull_trigger(self._close)

    def _busy(self) -> bool:
        return any(connection.requests or connection.total_outbufs_len for connection in self.connections)

    def _close(self) -> None:
        # On the thread of `run`, which ends when the map is empty.
        for each in list(self._sockets.values()):
            if each is not self._listeners[0].trigger:
                (each.handle_close if isinstance(each, _Connection) else each.close)()  # with the files of unsent responses
        self._listeners[0].task_dispatcher.shutdown(timeout=HTTP_FLUSH_SECONDS)
        self._sockets.clear()


def _max_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


class _JsonError(ErrorTask):  # type: ignore[misc]
    def execute(self) -> None:
        """Sends the error of a request that waitress refuses: malformed, or too large."""
        error = self.request.error
        message = f"{error.reason.lower()}: {error.body}"
        limits = self.channel.server.adj
        if error.code == 413:
            message = f"the body is too large: at most {limits.max_request_body_size - 1} bytes are accepted"
        elif error.code == 431:
            message = f"the header is too large: at most {limits.max_request_header_size - 1} bytes are accepted"
        response = error_response(error.code, message)
        self.status = response.status
        self.response_headers.extend([*response.headers.items(), *missing_security_headers(())])
        self.set_close_on_finish()
        self.content_length = response.content_length
        self.write(response.get_data())


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    def parse_header(self, header_plus: bytes) -> None:
        """Raises ParsingError for requests whose host or end is ambiguous: RFC 9112, sections 3.2 and 6.3."""
        super().parse_header(header_plus)
        if (self.chunked and "CONTENT_LENGTH" in self.headers) or "TRANSFER_ENCODING" in self.headers:  # popped if HTTP/1.1 has it
            raise ParsingError("Content-Length with Transfer-Encoding, or Transfer-Encoding in HTTP/1.0")
        hosts = self.headers.get("HOST")
        if (hosts is None and self.version == "1.1") or (hosts is not None and "," in hosts):
            raise ParsingError("one Host is needed")


class _Connection(HTTPChannel):  # type: ignore[misc]
    error_task_class = _JsonError
    parser_class = _Parser
    request_began = 0.0
    hung_up = False

    def received(self, data: bytes) -> bool:
        """Parses data from the client; closes the connection if a chunk's header or the trailer has grown too long."""
        if self.request is None:
            self.request_began = self.last_activity
        accepted: bool = super().received(data)
        body = self.request.body_rcv if self.request is not None else None
        if isinstance(body, ChunkedReceiver) and max(len(body.control_line), len(body.trailer)) > MAX_CHUNK_HEADER_BYTES:
            self.handle_close()
        return accepted

    def _flush_outbufs_below_high_watermark(self) -> None:
        """Closes the connection if its client leaves 16 MiB of responses unread, where waitress would wait for it."""
        if self.total_outbufs_len > self.adj.outbuf_high_watermark:
            self._flush_exception(self._flush_some, do_close=False)
        if self.total_outbufs_len > self.adj.outbuf_high_watermark:
            self.will_close = True
            self.hang_up()

    def hang_up(self) -> None:
        """Has the server close the connection in its next round, from any thread.

        Closed at once, its file descriptor might belong to a new connection while the events of this round are still handled.
        """
        self.hung_up = True
        if (connected := self.socket) is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    @property
    def idle_since(self) -> float:
        """The `time.time()` since when it has waited for its client; infinite while a request is being answered."""
        last_activity: float = self.last_activity
        if self.hung_up:
            return -math.inf
        if self.requests:
            return math.inf
        if self.total_outbufs_len:
            return last_activity + SLOW_CLIENT_SECONDS
        return last_activity if self.request is None else min(last_activity, self.request_began + SLOW_CLIENT_SECONDS)


class _Listener(BaseWSGIServer):  # type: ignore[misc]
    channel_class = _Connection
    logged_at = -math.inf

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._max_connections = _max_connections()

    def maintenance(self, now: float) -> None:
        """Closes idle connections, also those whose client does not read its response. `now` is `time.time()`."""
        super().maintenance(now)
        for connection in self.active_channels.values():
            if connection.total_outbufs_len and connection.last_activity < now - self.adj.channel_timeout:
                connection.hang_up()

    def readable(self) -> bool:
        """Whether another connection can be accepted, or has one to be closed for it."""
        return bool(super().readable()) and (not self._is_full() or self._longest_idle() is not None)

    def handle_accept(self) -> None:
        """Accepts a connection, or in this round makes a place for it."""
        if self._is_full():
            message = "%d HTTP connections are open, the most: the longest idle one is closed for the next"
            self._log_seldom(logging.WARNING, message, self._max_connections)
            self._hang_up_longest_idle()
        else:
            super().handle_accept()

    def accept(self) -> Any:
        """The next connection; None if the process is out of file descriptors, after an idle connection was closed or a pause."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._log_seldom(logging.ERROR, "out of file descriptors, new HTTP connections wait: %s", error.strerror)
            if not self._hang_up_longest_idle():
                time.sleep(ACCEPT_PAUSE_SECONDS)
            return None

    def _is_full(self) -> bool:
        return len(self._map) >= self._max_connections

    def _longest_idle(self) -> _Connection | None:
        """The connection that has been idle for longest; one that is being closed comes first."""
        idle = {each: each.idle_since for each in self._map.values() if isinstance(each, _Connection)}
        longest = min(idle, key=idle.__getitem__, default=None)
        return None if longest is None or idle[longest] > time.time() else longest

    def _hang_up_longest_idle(self) -> bool:
        longest = self._longest_idle()
        if longest is not None:
            longest.hang_up()
        return longest is not None

    def _log_seldom(self, level: int, message: str, *arguments: object) -> None:
        if time.monotonic() > self.logged_at + LOG_SECONDS:
            self.logged_at = time.monotonic()
            log.log(level, message, *arguments)


class _TcpListener(_Listener, TcpWSGIServer):  # type: ignore[misc]
    pass


class _UnixListener(_Listener, UnixWSGIServer):  # type: ignore[misc]
    pass
