"""State of a client's stream: which requests are unanswered, and what to do when its RPC breaks. Pure; the I/O is in aio.py.

A stream of requests outlives its RPCs. When one breaks because its server drains or its connection has reached its maximum age,
the next RPC begins with everything that was sent and not answered. That is safe: classifying twice does no harm. An RPC is started
only when there is something to send, so one that breaks while idle costs nothing. RPCs that break one after the other without an
answer in between are retried for about a second.
"""

from collections import deque

from service.client.messages import CallFailed, RequestTooLarge
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

IN_FLIGHT = 64
"""How many requests of a stream a server reads before it has answered one."""

BACKOFF_SECONDS = (0.0, 0.1, 0.2, 0.4)
"""Before each RPC that follows one without an answer: about as gRPC retries a unary call."""

_STATUS_LOST = "Internal error from Core"
"""All that gRPC's asyncio client reports of an RPC that the server ended while it was written to (grpc/grpc issue 36066)."""


def checked_in_flight(in_flight: int) -> int:
    """How many requests may be unanswered. Raises UserError if it is not a positive integer."""
    if isinstance(in_flight, int) and in_flight >= 1:
        return in_flight
    raise UserError(f"invalid value for in_flight: {in_flight!r} (give a positive integer)")


def status_lost(failed: CallFailed) -> bool:
    """Whether gRPC has lost why an RPC broke."""
    return failed.message == _STATUS_LOST


class Window:
    """The unanswered requests, by number, and those of them that the current RPC has yet to send. At most `in_flight`."""

    def __init__(self, in_flight: int) -> None:
        self._in_flight = checked_in_flight(in_flight)
        self._unanswered: dict[int, pb.ClassifyStreamRequest] = {}
        self._unsent: deque[int] = deque()
        self._added = 0
        self._rpc = 0  # number of the current one
        self._failures = 0  # RPCs that broke since the last answer
        self.closed = False
        self.exhausted = False  # no more requests come
        self.error: BaseException | None = None
        """What ended the requests early; raised by `check_complete`."""

    def has_room(self) -> bool:
        """Whether another request may be added; yes once closed, so that nobody waits for room."""
        return self.closed or len(self._unanswered) < self._in_flight

    def add(self, request: pb.ClassifyRequest) -> None:
        """Numbers a request and queues it for sending."""
        request.id = str(self._added)
        self._unanswered[self._added] = pb.ClassifyStreamRequest(request=request)
        self._unsent.append(self._added)
        self._added += 1

    def has_unanswered(self) -> bool:
        """Whether there is something to send on a new RPC."""
        return bool(self._unanswered)

    def begin(self) -> int:
        """Starts an RPC, which has all unanswered requests to send; returns its number. Those before it have ended."""
        self._unsent = deque(self._unanswered)
        self._rpc += 1
        return self._rpc

    def can_send(self, rpc: int) -> bool:
        """Whether `next_message` of this RPC has a message, or knows that there is none."""
        return bool(self._unsent) or self.exhausted or self.ended(rpc)

    def ended(self, rpc: int) -> bool:
        """Whether the RPC has nothing to do any more: a later one has begun, or the stream is closed."""
        return self.closed or rpc != self._rpc

    def next_message(self, rpc: int) -> pb.ClassifyStreamRequest | None:
        """What to send next, None at the end of the requests or of the RPC. To be called once `can_send`."""
        if self.ended(rpc) or not self._unsent:
            return None
        return self._unanswered[self._unsent.popleft()]

    def remove(self, number: int) -> bool:
        """Removes a request that is answered; False if it was removed before, as after a retry that both servers answered."""
        self._failures = 0
        return self._unanswered.pop(number, None) is not None

    def too_large(self, failed: CallFailed) -> int | None:
        """The number of the request that broke the RPC because it is too large for the server; None if something else did."""
        if not isinstance(failed, RequestTooLarge):
            return None
        return next((number for number, sent in list(self._unanswered.items()) if sent.ByteSize() == failed.size_bytes), None)

    def suspect(self, failed: CallFailed) -> pb.ClassifyRequest | None:
        """If gRPC has lost why an RPC broke: the request to retry as a unary call, whose status is not lost.

        It is the largest one, since a request that is too large would break every RPC. None if the status is known.
        """
        if not status_lost(failed) or not self._unanswered:
            return None
        return max(self._unanswered.values(), key=pb.ClassifyStreamRequest.ByteSize).request

    def backoff_seconds(self, failed: CallFailed) -> float:
        """How long to wait before the next RPC. Raises CallFailed if another would not help, or too many have broken."""
        if not self._unanswered:
            return 0.0
        self._failures += 1
        if failed.code not in ("UNAVAILABLE", "CANCELLED") or self._failures > len(BACKOFF_SECONDS):
            raise failed from None
        return BACKOFF_SECONDS[self._failures - 1]

    def check_complete(self) -> None:
        """After an RPC that ended well: raises what ended the requests early, or CallFailed for missing answers."""
        if self.error is not None:
            raise self.error
        if self._unanswered:
            raise CallFailed("INTERNAL", f"the server ended the stream with {len(self._unanswered)} requests unanswered")
