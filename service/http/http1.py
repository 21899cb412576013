"""One HTTP/1.1 connection, on the event loop's thread; h11 reads and writes the protocol.

A connection goes through these states, and back to HEAD after each request:

    HEAD        waits for a request, and for the end of its header
    BODY        the header has been read, and the request let in; its body arrives, into memory
    ANSWERING   a thread makes the answer; what the client sends meanwhile waits, and little of it is read
    LINGERING   the request was refused before it was read whole. The answer is on its way, nothing more will follow; what arrives
                is thrown away for a while, because closing at once could destroy the answer before the client has read it
    CLOSED

Each request has an h11.Connection of its own, so that a connection that waits holds little.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, cast

import h11

from service.http.connection_owner import Owner
from service.http.request_head import Refused, RequestHead, origin_in, parse_head, take_head
from service.http.wsgi import Body, Reply

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger(__name__)

HEAD, BODY, ANSWERING, LINGERING, CLOSED = "head", "body", "answering", "lingering", "closed"

SMALL_BODY_BYTES = 64 * 1024
"""A body whose length says that it is at most so large is read, whatever it is for. All others are asked for first."""

UNCOUNTED_BYTES = 64 * 1024
"""The most that is read at a time of anything but a body."""

PROBES = ("livez", "readyz", "metrics")
"""The names of what is answered however many connections are open."""

LINGER_SECONDS = 2.0
LINGER_BYTES = 16 * 2**20
"""How long, and how much, to go on reading after a request was refused."""

EVENTS_AT_ONCE = 256
"""So many chunks of a body are read before other connections have their turn."""

SLOW_CLIENT_SECONDS = 30.0
"""A client that has read nothing of its response for so long counts as idle."""


class Connection(asyncio.BufferedProtocol):
    """One connection. All of it runs on the event loop's thread."""

    def __init__(self, owner: Owner) -> None:
        self.state = HEAD
        self.environ: WSGIEnvironment = {}
        """What all of its requests have in common."""
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()  # what was received and not yet looked at
        self._searched = 0  # of the buffer, for the end of the header
        self._h11: h11.Connection | None = None
        self._request: WSGIEnvironment = {}
        self._method = b""
        self._has_body = False
        self._body = Body()
        self._body_limit = 0
        self._body_bytes = 0
        self._taken = 0  # of the budget
        self._active = owner.loop.time()  # when something last came from the client, or went to it
        self._began: float | None = None  # when the first byte of the unfinished request came
        self._linger_until = 0.0
        self._linger_bytes = 0
        self._unsent = 0  # at the last look
        self._reading = True
        self._client_reads = True  # False while more than a little of a response is unsent
        self._client_ended = False  # it sends no more

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._owner.connected(self, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """See asyncio.BaseProtocol."""
        answering = self.state is ANSWERING
        self.state = CLOSED
        self._transport = self._h11 = None
        self._buffer = bytearray()
        if not answering:  # else the body is still in use
            self._forget_request()
        self._owner.lost(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """See asyncio.BufferedProtocol. All connections have the same: what it holds is taken out at once.

        Of bytes that no budget counts, such as requests that wait for the one before, little is read at a time.
        """
        return self._owner.buffer if self.state is BODY else self._owner.buffer[:UNCOUNTED_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self._active = self._owner.loop.time()
        if self.state is LINGERING:
            self._linger_bytes += nbytes
            if self._linger_bytes > LINGER_BYTES:
                self.abort()
            return
        self._buffer += self._owner.buffer[:nbytes]
        if self.state is ANSWERING or not self._client_reads:
            self._pause_reading()
        else:
            self._advance()

    def eof_received(self) -> bool:
        """See asyncio.Protocol: a client that has sent its request may end its side and wait for the answer."""
        self._client_ended = True
        return self.state is ANSWERING and self.environ["wsgi.url_scheme"] == "http"  # TLS has no half of a connection

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._client_reads = False

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._client_reads = True
        if self.state is HEAD:
            self._next_request()

    # What the server calls.

    @property
    def is_idle(self) -> bool:
        """Whether it waits for its client, so that it may be closed for another."""
        if self.state is ANSWERING:
            return False
        return self._client_reads or self._owner.loop.time() > self._active + SLOW_CLIENT_SECONDS

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered, or its answer is on its way."""
        return self.state is ANSWERING or (self._transport is not None and self._transport.get_write_buffer_size() > 0)

    def check(self, now: float) -> None:
        """Closes the connection if one of its times is over. Called every now and then."""
        transport = self._transport
        if transport is None or self.state is ANSWERING:
            return
        if (unsent := transport.get_write_buffer_size()) != self._unsent:
            self._unsent, self._active = unsent, now
        if now > self._active + self._owner.idle_seconds or (self.state is LINGERING and not unsent and now > self._linger_until):
            if unsent:
                transport.abort()
            else:
                transport.close()
        elif self._began is not None and now > self._began + self._owner.request_seconds and self.state in (HEAD, BODY):
            self._refuse(408, f"the request did not arrive within {self._owner.request_seconds:g} s")

    def abort(self) -> None:
        """Closes the connection now, whatever is unsent."""
        if self._transport is not None:
            self._transport.abort()

    def respond(self, reply: Reply) -> None:
        """Sends the answer to the running request."""
        self._forget_request()
        if self.state is not ANSWERING:  # it has been closed
            return
        self._send(reply, close=self._client_ended)
        self._method = b""
        self._owner.used(self)
        if self._h11 is None or self._h11.our_state is not h11.DONE:
            self.state = LINGERING
            if self._transport is not None:
                self._transport.close()  # once the answer has left
            return
        self._h11 = None
        self.state = HEAD
        self._next_request()

    # Reading a request.

    def _next_request(self) -> None:
        if not self._client_reads:
            return
        self._advance()
        if self.state in (HEAD, BODY):
            self._resume_reading()

    def _advance(self) -> None:
        """Reads on in what has been received."""
        if self.state is HEAD and self._buffer and self._began is None:
            self._began = self._owner.loop.time()
            self._owner.used(self)
        head: bytes | None = None
        try:
            if self.state is HEAD:
                head = take_head(self._buffer, self._searched, self._owner.max_header_bytes)
                self._searched = len(self._buffer) if head is None else 0
                if head is not None:
                    self._begin(parse_head(head, self.environ))
            if self.state is BODY:
                self._read_body()
        except Refused as refused:
            self._refuse(refused.status, str(refused), head)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, f"bad request: {str(error)[:200]}")

    def _begin(self, head: RequestHead) -> None:
        """Lets a request in. Raises Refused."""
        self._h11 = protocol = head.protocol
        self._request, self._method, self._has_body = head.environ, head.method, head.has_body
        self._body_limit = SMALL_BODY_BYTES
        if self._owner.is_crowded and head.environ["PATH_INFO"].rpartition("/")[2] not in PROBES:
            raise Refused(503, "too many HTTP connections are open, all of them in use")
        if head.length is None or head.length > SMALL_BODY_BYTES or protocol.they_are_waiting_for_100_continue:
            admitted = self._owner.admit(head.environ)
            if isinstance(admitted, Reply):
                self._refuse_with(admitted)
                return
            self._body_limit = admitted
        if (head.length or 0) > self._body_limit:
            raise self._too_large()
        if protocol.they_are_waiting_for_100_continue and not self._buffer:
            self._write(protocol.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")))
        self.state = BODY

    def _read_body(self) -> None:
        """Takes in what has arrived of the body; once it is complete, has the request answered. Raises as `_begin` does."""
        protocol, owner = self._h11, self._owner
        if protocol is None:
            return
        if self._buffer and self._has_body:
            protocol.receive_data(bytes(self._buffer))
            self._buffer.clear()
        for _ in range(EVENTS_AT_ONCE):
            event = protocol.next_event()
            if type(event) is h11.Data:
                count = len(event.data)
                self._body_bytes += count
                if self._body_bytes > self._body_limit:
                    raise self._too_large()
                if not owner.take(count):
                    raise Refused(429, owner.no_room)
                self._taken += count
                self._body.write(event.data)
            elif type(event) is h11.EndOfMessage:
                if self._has_body:
                    self._buffer += protocol.trailing_data[0]
                self._answer()
                return
            else:  # it waits for more
                return
        self._pause_reading()
        owner.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self.state is BODY:
            self._resume_reading()
            self._advance()

    def _answer(self) -> None:
        environ = self._request
        environ["CONTENT_LENGTH"] = str(self._body_bytes)
        environ["wsgi.input"] = Body(self._body.getvalue())
        self._body = Body()
        self._owner.answer(self, environ)
        # Last: if that raised, the connection goes on to be checked, and gives back what the request took.
        self.state, self._began = ANSWERING, None

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is too large: at most {self._body_limit} bytes are accepted")

    # Sending a response.

    def _refuse(self, status: int, message: str, head: bytes | None = None) -> None:
        origin = self._request.get("HTTP_ORIGIN") or origin_in(head or self._buffer)
        self._refuse_with(self._owner.refusal(status, message, origin))

    def _refuse_with(self, reply: Reply) -> None:
        """Sends a reply, and closes the connection once the client has had time to read it."""
        self._send(reply, close=True)
        self._forget_request()
        self._buffer.clear()
        self.state = LINGERING
        self._linger_until = self._owner.loop.time() + LINGER_SECONDS
        self._resume_reading()
        transport = self._transport
        if transport is not None and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()

    def _send(self, reply: Reply, *, close: bool) -> None:
        protocol = self._h11
        if protocol is None:
            self._h11 = protocol = h11.Connection(h11.SERVER)
        status, _, reason = reply.status.partition(" ")
        headers = reply.headers + self._owner.common_headers()
        if status not in ("204", "304") and not any(name.lower() == "content-length" for name, _ in reply.headers):
            headers.append(("Content-Length", str(len(reply.body))))
        if close:
            headers.append(("Connection", "close"))
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        try:
            data = protocol.send(h11.Response(status_code=int(status), reason=reason.encode("latin-1"), headers=encoded))
            if reply.body and self._method != b"HEAD":
                data += protocol.send(h11.Data(data=reply.body))
            protocol.send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            log.exception("a response cannot be sent")
            self.abort()
            return
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _forget_request(self) -> None:
        """Gives back what the request took."""
        self._owner.give_back(self._taken)
        self._taken = self._body_bytes = 0
        self._request, self._body, self._began = {}, Body(), None

    def _pause_reading(self) -> None:
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and self._transport is not None and not self._client_ended:
            self._reading = True
            self._transport.resume_reading()
