"""A stream of requests that have nothing to do with each other: many in hand at once, each answered when its answer is ready.

How much a stream may hold in memory. The next request is read only while fewer than UNANSWERED_REQUESTS of the stream are
unanswered and what came with them is less than UNANSWERED_BYTES. A request counts until the transport has taken its answer, so that
a client that writes and does not read is held back too: what is not read stays in HTTP/2's flow-control window, with the client.

How it ends. With OK when the client has half-closed it and every request is answered. When its client is gone, what is in hand
is cancelled. When the server drains, nothing more is read, what was read is answered, and the stream ends with UNAVAILABLE: the
client sees by the answers which requests it has to send again elsewhere.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from service.errors import ConvoyError, InvalidRequest, Unavailable
from service.rpc.call import StreamCall

log = logging.getLogger(__name__)

UNANSWERED_REQUESTS = 64
UNANSWERED_BYTES = 16 * 1024 * 1024


class Request:
    """One request of a stream, `index` of them after the first. It is answered once, from any thread."""

    __slots__ = ("_size_bytes", "_stream", "cancel", "index")

    def __init__(self, stream: "RequestStream", index: int, size_bytes: int) -> None:
        self.index = index
        self.cancel: Callable[[], None] = _nothing_to_cancel
        self._stream = stream
        self._size_bytes = size_bytes

    def answer(self, payload: bytes) -> bool:
        """Sends the one serialised answer; False if the stream has ended."""
        return self._stream.send(self, payload, self._answered)

    def fail(self, error: BaseException, refusal: bytes) -> None:
        """Sends the serialised answer to a request that failed. An error that nobody raised on purpose is told in the log."""
        self._stream.failed(error)
        self.answer(refusal)

    def _answered(self) -> None:
        self._stream.answered(self._size_bytes)


Begin = Callable[[Any, Request], Callable[[], None]]
"""Takes a message and sees to it that its request is answered; gives what cancels it. What it raises is the answer."""

Refuse = Callable[[Any, int, Exception], bytes]
"""The serialised answer to a request that failed: its message, or None if it could not be parsed, its index, and the error."""


class RequestStream:
    """The receiver of one stream."""

    def __init__(self, call: StreamCall, begin: Begin, refuse: Refuse) -> None:
        """Begins to read. To be called by the `open` of a `lenient` method."""
        self._call = call
        self._begin = begin
        self._refuse = refuse
        self._lock = threading.Lock()
        self._count = 0  # of the requests that have come
        self._in_hand: set[Request] = set()
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._reading = True
        self._half_closed = False
        self._draining = False
        call.on_cancelled(self._cancel_all)
        call.receive()

    def message(self, message: Message | InvalidRequest) -> None:
        """See Receiver."""
        size_bytes = 0 if isinstance(message, InvalidRequest) else message.ByteSize()
        with self._lock:
            if self._draining:
                return
            request = Request(self, self._count, size_bytes)
            self._count += 1
            self._in_hand.add(request)
            self._unanswered += 1
            self._unanswered_bytes += size_bytes
            read_on = self._reading = self._may_read()
        if read_on:
            self._call.receive()
        if isinstance(message, InvalidRequest):
            request.fail(message, self._refuse(None, request.index, message))
            return
        try:
            request.cancel = self._begin(message, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to this request, and the stream goes on
            request.fail(error, self._refuse(message, request.index, error))

    def half_closed(self) -> None:
        """See Receiver."""
        with self._lock:
            self._half_closed = True
            self._reading = False
        self._end_if_over()

    def finish(self) -> None:
        """Reads no more, and ends the stream when what was read is answered."""
        with self._lock:
            self._draining = True
        self._end_if_over()

    def send(self, request: Request, payload: bytes, sent: Callable[[], None]) -> bool:
        """For a request: sends its answer."""
        with self._lock:
            self._in_hand.discard(request)
        return self._call.send(payload, sent)

    def failed(self, error: BaseException) -> None:
        """For a request: it is answered with an error."""
        if not isinstance(error, ConvoyError):
            log.error("%s failed on one of its requests", self._call.method.path, exc_info=error)

    def answered(self, size_bytes: int) -> None:
        """For a request: its answer has been taken by the transport."""
        with self._lock:
            self._unanswered -= 1
            self._unanswered_bytes -= size_bytes
            read_on = not (self._reading or self._half_closed or self._draining) and self._may_read()
            self._reading |= read_on
            last = self._unanswered == 0
        if read_on:
            self._call.receive()
        elif last:
            self._end_if_over()

    def _may_read(self) -> bool:
        return self._unanswered < UNANSWERED_REQUESTS and self._unanswered_bytes < UNANSWERED_BYTES

    def _end_if_over(self) -> None:
        if self._unanswered:
            return
        if self._half_closed:
            self._call.finish()
        elif self._draining:
            self._call.fail(Unavailable("the server is draining; send what is not answered again on a new stream"))

    def _cancel_all(self) -> None:
        with self._lock:
            requests = list(self._in_hand)
        for request in requests:
            request.cancel()


def _nothing_to_cancel() -> None:
    pass
