"""A stream of independent requests: many are pending at once, each is answered when its response is ready.

Memory of a stream: the next request is read only while fewer than UNANSWERED_REQUESTS of the stream are unanswered and their
messages are smaller than UNANSWERED_BYTES together. A request counts until the transport has taken its response, so a client that
writes and does not read is held back too: unread messages stay with the client, by HTTP/2's flow control.

End of a stream: OK when the client has half-closed it and every request is answered. When the client cancels, pending requests are
cancelled. When the server drains, nothing more is read, pending requests are answered, and the stream ends with UNAVAILABLE: the
client sees from the responses which requests to send again, to another server.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from service.errors import ConvoyError, RequestError, Unavailable, forget_traceback
from service.rpc.call import StreamCall

log = logging.getLogger(__name__)

UNANSWERED_REQUESTS = 64
UNANSWERED_BYTES = 16 * 1024 * 1024


class StreamRequest:
    """One request of a stream. It is answered once, by `reply` or `fail`, from any thread.

    `index` counts the requests of the stream from 0. `id` is the client's, set by StartRequest.
    """

    __slots__ = ("_size_bytes", "_stream", "cancel", "id", "index")

    def __init__(self, stream: "RequestStream", index: int, size_bytes: int) -> None:
        self.index = index
        self.id = ""
        self.cancel: Callable[[], None] = _nothing_to_cancel
        self._stream = stream
        self._size_bytes = size_bytes

    def reply(self, payload: bytes) -> bool:
        """Sends the serialised response; False if the stream has ended."""
        stream = self._stream
        stream.pending.discard(self)
        return stream.call.send(payload, self._sent)

    def fail(self, error: BaseException) -> bool:
        """Sends the response that says why the request failed; an unexpected error is logged."""
        return self.reply(self._stream.error_response(self, error))

    def _sent(self) -> None:
        self._stream.answered(self._size_bytes)


StartRequest = Callable[[Any, StreamRequest], Callable[[], None]]
"""Starts work on a message, whose request is answered later; returns a function that cancels it. An exception fails the request."""

WriteError = Callable[[str, int, BaseException], bytes]
"""The serialised response to a request that failed, from its id, its index and the error."""


class RequestStream:
    """The receiver of one stream.

    Other threads than the transport's call `finish` and what StreamRequest does: what these do not touch needs no lock.

    Attributes:
        call: the stream's.
        pending: requests that have no response yet. Threads take theirs out without a lock: a set is changed in one step.
    """

    def __init__(self, call: StreamCall, start_request: StartRequest, write_error: WriteError) -> None:
        """Begins to read. To be called by the `open` of a `lenient` method."""
        self.call = call
        self.pending: set[StreamRequest] = set()
        self._start_request = start_request
        self._write_error = write_error
        self._lock = threading.Lock()  # held to count a message, so that `finish` knows whether one is unanswered
        self._next_index = 0
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._reading = True
        self._half_closed = False
        self._draining = False
        call.on_cancelled(self._cancel_all)
        call.receive()

    def on_message(self, message: Any) -> bool:
        """See Receiver."""
        call = self.call
        with self._lock:
            if self._draining:
                return False
            self._unanswered += 1
        size_bytes = call.message_bytes
        call.message_bytes = 0  # `answered` gives them back
        request = StreamRequest(self, self._next_index, size_bytes)
        self._next_index += 1
        self.pending.add(request)
        self._unanswered_bytes += size_bytes
        self._reading = self._unanswered < UNANSWERED_REQUESTS and self._unanswered_bytes < UNANSWERED_BYTES
        if self._reading:
            call.receive()
        if isinstance(message, RequestError):
            request.fail(message)
            return False
        try:
            request.cancel = self._start_request(message, request)
        except Exception as error:  # noqa: BLE001 - any error fails this request alone, and the stream goes on
            if self._draining and isinstance(error, Unavailable):
                # The drain began since this message was counted: it stays unanswered, so that the client sends it again.
                self.pending.discard(request)
                self.answered(size_bytes)
            else:
                request.fail(error)
            return False
        return True

    def on_half_close(self) -> None:
        """See Receiver."""
        self._half_closed = True
        self._reading = False
        self._end_if_done()

    def finish(self) -> None:
        """Reads no more, and ends the stream when its pending requests are answered."""
        with self._lock:
            self._draining = True
        self._end_if_done()

    def error_response(self, request: StreamRequest, error: BaseException) -> bytes:
        """For a request: the response that says why it failed."""
        if not isinstance(error, ConvoyError):
            log.error("%s: a request of the stream failed", self.call.method.path, exc_info=error)
        self.call.count_refusal(error)
        forget_traceback(error)
        return self._write_error(request.id, request.index, error)

    def answered(self, size_bytes: int) -> None:
        """For a request, on the transport's thread: the transport has taken its response."""
        self.call.holding.give_back(size_bytes)
        self._unanswered -= 1
        self._unanswered_bytes -= size_bytes
        if not (self._reading or self._half_closed or self._draining):
            if self._unanswered < UNANSWERED_REQUESTS and self._unanswered_bytes < UNANSWERED_BYTES:
                self._reading = True
                self.call.receive()
        elif not self._unanswered:
            self._end_if_done()

    def _end_if_done(self) -> None:
        if self._unanswered:
            return
        if self._half_closed:
            self.call.finish()
        elif self._draining:
            self.call.fail(Unavailable("the server is draining; send unanswered requests again on a new stream"))

    def _cancel_all(self) -> None:
        for request in list(self.pending):
            request.cancel()


def _nothing_to_cancel() -> None:
    pass
