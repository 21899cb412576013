"""waitress, with four changes that an open port needs.

They override methods that waitress's documentation does not promise to keep: TESTED says which versions the tests are run with.

- Errors that waitress answers by itself are JSON, as all others here (`_JsonError`, by `HTTPChannel.error_task_class`).
- A connection whose chunk header or trailer has no end is closed (`_Connection.received`). waitress bounds neither.
- A connection whose client does not read its response is closed (`_Listener.maintenance`). waitress closes only idle connections,
  and a client that does not read holds a thread for ever.
- When the process is out of file descriptors, accepting pauses, with one line in the log (`_Listener.accept`). waitress tries again
  at once, with a traceback each time.

Closing uses waitress's socket map, its trigger and its task dispatcher: `waitress.server.close` leaves open connections alone.
"""

import errno
import logging
import math
import socket
import time
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.receiver import ChunkedReceiver
from waitress.server import BaseWSGIServer, TcpWSGIServer, UnixWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher

from service.http.responses import error_response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

TESTED = ((3, 0), (3, 0))
"""The lowest and the newest minor version of waitress that the tests are run with."""

HTTP_FLUSH_SECONDS = 1.0
"""How long sending finished responses may take when the port closes."""

MAX_CONNECTIONS = 1000
MAX_CHUNK_HEADER_BYTES = 64 * 1024
IDLE_SECONDS = 75
"""A connection without traffic is closed after so long, unless a response for it is being computed. Load balancers keep theirs for
60 s: closed by us before that, a request just sent might be lost."""

IDLE_CHECK_SECONDS = 5
ACCEPT_PAUSE_SECONDS = 0.1
"""How long accepting pauses when there is no file descriptor for another connection."""


def untested_reason() -> str:
    """Why the installed waitress may not work with this file; empty if it is in the tested range."""
    version = installed_version("waitress")
    major_minor = tuple(int(part) for part in version.split(".")[:2])
    if TESTED[0] <= major_minor <= TESTED[1]:
        return ""
    return f"waitress {version} is untested (tested: {' to '.join('.'.join(map(str, each)) for each in TESTED)})"


class WaitressServer:
    """Serves a WSGI application on listening sockets, with one thread for all connections and a pool of threads for requests."""

    def __init__(self, application: "WSGIApplication", bound: Sequence[socket.socket], threads: int, max_body_bytes: int) -> None:
        """Starts the threads. A body of more than `max_body_bytes` is answered 413."""
        if reason := untested_reason():
            log.warning("the HTTP port may not work: %s", reason)
        adjustments = Adjustments(
            # waitress refuses to mix them, without a need. `listen` is not used.
            sockets=[each for each in bound if each.family != socket.AF_UNIX],
            threads=threads, ident="convoy", clear_untrusted_proxy_headers=True,
            connection_limit=MAX_CONNECTIONS, max_request_body_size=max_body_bytes + 1,  # waitress refuses a body of just as many
            channel_timeout=IDLE_SECONDS, cleanup_interval=IDLE_CHECK_SECONDS,
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
                each.close()
        self._listeners[0].task_dispatcher.shutdown(timeout=HTTP_FLUSH_SECONDS)
        self._sockets.clear()


class _JsonError(ErrorTask):  # type: ignore[misc]
    def execute(self) -> None:
        """Sends the error of a request that waitress refuses: malformed, or too large."""
        error = self.request.error
        message = f"{error.reason.lower()}: {error.body}"
        if error.code == 413:
            message = f"the body is too large: at most {self.channel.server.adj.max_request_body_size - 1} bytes are accepted"
        response = error_response(error.code, message)
        self.status = response.status
        self.response_headers.extend(response.headers.items())
        self.set_close_on_finish()
        self.content_length = response.content_length
        self.write(response.get_data())


class _Connection(HTTPChannel):  # type: ignore[misc]
    error_task_class = _JsonError

    def received(self, data: bytes) -> bool:
        """Parses data from the client; closes the connection if a chunk's header or the trailer has grown too long."""
        accepted: bool = super().received(data)
        body = self.request.body_rcv if self.request is not None else None
        if isinstance(body, ChunkedReceiver) and max(len(body.control_line), len(body.trailer)) > MAX_CHUNK_HEADER_BYTES:
            self.handle_close()
        return accepted


class _Listener(BaseWSGIServer):  # type: ignore[misc]
    channel_class = _Connection
    out_of_files_logged = -math.inf

    def maintenance(self, now: float) -> None:
        """Closes idle connections, and those whose client has not read its response for IDLE_SECONDS. `now` is `time.time()`."""
        super().maintenance(now)
        for connection in list(self.active_channels.values()):
            if connection.total_outbufs_len and connection.last_activity < now - IDLE_SECONDS:
                connection.handle_close()

    def accept(self) -> Any:
        """The next connection; None, after a pause, if the process is out of file descriptors."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if time.monotonic() > self.out_of_files_logged + IDLE_SECONDS:
                self.out_of_files_logged = time.monotonic()
                log.error("out of file descriptors, new HTTP connections wait: %s", error.strerror)
            time.sleep(ACCEPT_PAUSE_SECONDS)
            return None


class _TcpListener(_Listener, TcpWSGIServer):  # type: ignore[misc]
    pass


class _UnixListener(_Listener, UnixWSGIServer):  # type: ignore[misc]
    pass
