"""State of `classify_many`: which images wait, which are unanswered on which stream, what is sent next. Pure.

The I/O is in aio_many.py.

Images come in from one source and go out packed in requests, over one stream a connection. All streams take from the same queue,
and what has to be sent again goes back to the front of it: a slow or broken connection holds up no more than it was given last.

    source -> unread -> waiting -> in flight on a stream -> done -> caller
                 file read   packed       | refused: `again`, and from there in flight once more

What becomes of a request that is not answered:

- RESOURCE_EXHAUSTED with a time to retry: it is sent again, and the stream's window shrinks (congestion.py).
- UNAVAILABLE, CANCELLED, a stream that breaks: it is sent again, until no server has answered for `wait_seconds`.
- It was on several streams that broke: one of its images may kill its server. It is sent again in halves, while nothing else is in
  flight, and an image that breaks streams even so gets the error.
- INVALID_ARGUMENT of one item: that image gets the error, the others are sent again, in halves.
- Anything else that may be one image's fault (too large, INTERNAL, DEADLINE_EXCEEDED): halves, and an image alone gets the error.
- What concerns all images (no such model, no permission, an invalid field) ends everything.
"""

import math
from collections.abc import Sequence
from types import UnionType
from typing import Any

from service.client.congestion import MAX_REQUEST_IMAGES
from service.client.images import MAX_MESSAGE_BYTES, Image, LargeFile
from service.client.in_flight import STREAM_BYTES, STREAM_REQUESTS, Limits, Stream
from service.client.messages import CallFailed, Classification, Outcome, RequestTooLarge, concerns_all, item_at_fault, of_one_item
from service.client.packing import ENVELOPE_BYTES, MAX_BREAKS, Input, Packing
from service.client.reading import Unread
from service.errors import ConvoyError, UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

HELD_BYTES = 4 * STREAM_BYTES
"""Of images that were taken from the source and not given back yet, and of files and the like that were read and are not answered,
for each stream."""

BACKOFF_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Before a stream that follows one without an answer; the last is repeated."""

MIN_ANSWER_SECONDS = 1.0
"""Of the call that begins a stream, however short `wait_seconds`: gRPC tries it again, for most of a second."""

PASSING = {"UNAVAILABLE", "CANCELLED"}


def check_arguments(images: Any, kinds: type | UnionType, wait_seconds: float) -> None:
    """Raises UserError for images that are no iterable of these kinds, or are one image, and for an invalid time."""
    if isinstance(images, str | bytes) or not isinstance(images, kinds):
        raise UserError(f"images are a list or another iterable, even for one image, not {type(images).__name__}")
    if not isinstance(wait_seconds, int | float) or not wait_seconds >= 0:
        raise UserError(f"invalid value for wait_seconds: {wait_seconds!r} (give 0 or a positive number)")


class Flow:
    """All of one `classify_many`. Times are seconds of any clock that only goes forward."""

    def __init__(self, request: pb.ClassifyRequest, streams: int, *, ordered: bool, wait_seconds: float) -> None:
        """`request`: what all requests have, without items."""
        self.streams = [Stream() for _ in range(streams)]
        self.closed = False
        self.exhausted = False  # the source has no more
        self.error: BaseException | None = None
        """Raised once all that came before is answered: of the source."""
        self.fatal: BaseException | None = None
        """Raised at once: it concerns all images."""
        self.request = request
        self._ordered = ordered
        self._wait_seconds = wait_seconds
        self._failing_since = math.inf
        self._suspected: Stream | None = None  # the last request was sent on it, and may kill the server
        self._largest_bytes = MAX_MESSAGE_BYTES - request.ByteSize() - ENVELOPE_BYTES
        self._unread = Unread()
        self._packing = Packing(request)
        self._taken = 0  # from the source
        self._held = 0  # taken, and not given back
        self._held_bytes = 0
        self._unanswered_bytes = 0  # of items that are read
        self._answered = 0
        self._done: dict[int, tuple[Outcome, int]] = {}  # by index, with the bytes it holds
        self._given = 0  # back to the caller

    # The source.

    def has_room(self) -> bool:
        """Whether another image may be added; yes at the end, so that nobody waits for room."""
        if self.over():
            return True
        room = sum(2 * stream.largest_window + 2 * MAX_REQUEST_IMAGES for stream in self.streams)
        return self._held < room and self._held_bytes < HELD_BYTES * len(self.streams)

    def add(self, image: Image, item: dict[str, bytes] | None) -> bool:
        """Takes the next image, with its item, or a path to be read. Whether anybody waits for it: not if only a request grows."""
        each = self._next_input(image)
        if item is None:
            return self._unread.add(each)
        each.read(item)
        bytes_before = self._packing.waiting_bytes
        self._ready(each)
        images = self._packing.waiting_images()
        return (
            images == 1
            or each.size_bytes > self._largest_bytes
            or bytes_before < self._packing.request_bytes <= self._packing.waiting_bytes
            or images in [stream.request_images() for stream in self.streams]
        )

    def unreadable(self, image: Image, error: ConvoyError) -> None:
        """Takes the next image, which cannot be sent."""
        self._finish(self._next_input(image), error)

    def _next_input(self, image: Image) -> Input:
        each = Input(self._taken, image)
        self._taken += 1
        self._held += 1
        self._held_bytes += each.kept_bytes
        return each

    def end(self, error: BaseException | None = None) -> None:
        """The source has no more, or has raised."""
        self.exhausted = True
        self.error = error

    # Readers of files.

    def can_read(self) -> bool:
        """Whether `to_read` has something, or there will be nothing more."""
        if self.over() or (self.exhausted and not self._unread):
            return True
        unread = self._unread
        idle = not self._packing and not unread.reading and not any(each.in_flight for each in self.streams)
        return bool(unread) and (idle or self._unanswered_bytes + unread.reading_bytes < HELD_BYTES * len(self.streams))

    def to_read(self) -> list[Input]:
        """The next images for one reader; none at the end. To be called once `can_read`."""
        if self.over():
            return []
        return self._unread.next_inputs()

    def read(self, inputs: Sequence[Input], contents: Sequence[dict[str, bytes] | ConvoyError | LargeFile]) -> None:
        """What came of reading files. What is a large file, and those without contents, will be read when there is room."""
        for each, content in self._unread.read(inputs, contents):
            if isinstance(content, ConvoyError):
                self._finish(each, content)
            else:
                each.read(content)
                self._ready(each)

    def _ready(self, each: Input) -> None:
        if not self._has_unanswered():
            self._failing_since = math.inf  # nobody was asked meanwhile
        self._held_bytes += each.own_bytes
        self._unanswered_bytes += each.size_bytes
        if each.size_bytes > self._largest_bytes:
            self._finish(each, UserError(f"an image of {each.size_bytes} bytes: a request holds at most {MAX_MESSAGE_BYTES}"))
        else:
            self._packing.add(each)

    # Streams.

    def finished(self) -> bool:
        """Whether all is answered."""
        return self.exhausted and self._answered == self._taken

    def over(self) -> bool:
        """Whether there is nothing more to do."""
        return self.closed or self.fatal is not None or self.finished()

    def has_work(self) -> bool:
        """Whether there is anything to open a stream for."""
        return bool(self._packing)

    def begin(self, stream: Stream, limits: Limits) -> int:
        """Starts an RPC; returns its number. Those before it have ended."""
        stream.limit(limits)
        stream.rpc += 1
        stream.placed = 0
        stream.expired = False
        return stream.rpc

    def ended(self, stream: Stream, rpc: int) -> bool:
        """Whether an RPC has nothing more to send."""
        return rpc != stream.rpc or self.over()

    def can_send(self, stream: Stream) -> bool:
        """Whether a request is ready for the stream, and has room on it, pauses aside.

        While something is unanswered, images are waited for until a request is full: like Nagle's algorithm, it delays nothing by
        more than a round trip, and a source that is slow is still sent image by image.
        """
        if not self._packing or (self._suspected is not None and self._suspected.in_flight):
            return False
        if self._packing.next_is_suspect():
            return not any(each.in_flight for each in self.streams)
        if not stream.in_flight:
            return True
        images = stream.request_images()
        full = self.exhausted or self._packing.has_full(images)
        return bool(
            full
            and stream.images + images <= stream.window.images
            and len(stream.in_flight) < STREAM_REQUESTS
            and stream.bytes < STREAM_BYTES - self._packing.request_bytes
        )

    def pause_seconds(self, stream: Stream, now: float) -> float:
        """How long the stream must not send yet."""
        return max(0.0, stream.paused_until - now)

    def next_message(self, stream: Stream) -> pb.ClassifyStreamRequest:
        """What the stream is to send. To be called once `can_send`."""
        self._suspected = stream if self._packing.next_is_suspect() else None
        inputs = self._packing.next_inputs(stream.request_images())
        stream.place(inputs)
        return self._packing.message(inputs)

    def answered(self, stream: Stream, place: int, rows: Sequence[Classification]) -> None:
        """A request was answered, with one row an image."""
        unanswered, pack = stream.images, stream.remove(place)
        if pack is None:
            return
        self._heard(stream)
        if len(rows) != len(pack.inputs):
            self._halve(pack.inputs, CallFailed("INTERNAL", f"{len(rows)} results for {len(pack.inputs)} images"))
            return
        stream.window.answered(len(rows), unanswered)
        stream.max_items = min(stream.max_items + 1, stream.largest_request)
        for each, row in zip(pack.inputs, rows, strict=True):
            self._finish(each, row)

    def refused(self, stream: Stream, place: int, failed: CallFailed, now: float) -> None:
        """A request was answered with an error."""
        pack = stream.remove(place)
        if pack is None:
            return
        inputs, code = pack.inputs, failed.code
        if code == "UNAUTHENTICATED" and (stream.expired or self._may_have_expired(stream)):
            stream.expired = True
            stream.rpc += 1  # the next RPC may have another token
            self._packing.send_again(inputs)
            return
        if concerns_all(failed):
            self.fatal = failed
            return
        if code in PASSING:
            self._packing.send_again(inputs)
            self._fail(stream, failed, now)
            return
        self._heard(stream)
        at = item_at_fault(failed)
        if code == "RESOURCE_EXHAUSTED" and failed.retry_after_seconds > 0:
            stream.window.pushed_back(pack.sent)
            stream.paused_until = now + failed.retry_after_seconds
            self._packing.send_again(inputs)
        elif at is not None and at < len(inputs):
            self._finish(inputs[at], of_one_item(failed))
            self._packing.send_halves([*inputs[:at], *inputs[at + 1 :]])
        else:
            if code == "DEADLINE_EXCEEDED":
                stream.window.pushed_back(pack.sent)
            if failed.field == "items":  # there may be too many
                stream.max_items = max(1, min(stream.max_items, len(inputs) // 2))
            self._halve(inputs, failed)

    def broken(self, stream: Stream, failed: CallFailed, now: float) -> None:
        """The stream's RPC has ended, or could not begin, with requests unanswered or not."""
        expired, stream.expired = stream.expired, False
        answered, stream.answered = stream.answered, False
        too_large = self._too_large(stream, failed)
        pack = stream.remove(too_large) if too_large is not None else None
        left = [stream.in_flight[place].inputs for place in sorted(stream.in_flight, reverse=True)]
        stream.in_flight.clear()
        # A server that says when to come back has not died of a request.
        died = pack is None and not concerns_all(failed) and not failed.retry_after_seconds
        alone = len(left) == 1 and not any(each.in_flight for each in self.streams)
        for inputs in left:
            if died:
                self._survived(inputs, failed, alone=alone)
            else:
                self._packing.send_again(inputs)
        stream.images = stream.bytes = 0
        stream.rpc += 1  # nothing more is sent on the one that broke
        if pack is not None:
            self._heard(stream)
            self._halve(pack.inputs, failed)
        elif expired or (failed.code == "UNAUTHENTICATED" and self._may_have_expired(stream)):
            pass  # the next RPC may have another token
        elif concerns_all(failed) or failed.code == "INVALID_ARGUMENT":
            self.fatal = failed
        elif not self.over():
            self._fail(stream, failed, now, answered=answered)

    def largest(self, stream: Stream) -> tuple[int, pb.ClassifyRequest] | None:
        """The largest request in flight, and its place: the one to suspect if an RPC broke and it is not known why."""
        if not stream.in_flight:
            return None
        place = max(stream.in_flight, key=lambda place: sum(each.size_bytes for each in stream.in_flight[place].inputs))
        return place, self._packing.message(stream.in_flight[place].inputs).request

    def _too_large(self, stream: Stream, failed: CallFailed) -> int | None:
        """The place of the request that broke an RPC because it is too large for the server; None if something else did."""
        if not isinstance(failed, RequestTooLarge):
            return None
        sizes = {self._packing.message(pack.inputs).ByteSize(): place for place, pack in stream.in_flight.items()}
        return sizes.get(failed.size_bytes)

    def _heard(self, stream: Stream) -> None:
        stream.answers += 1
        stream.answered = True
        stream.failures = 0
        self._failing_since = math.inf

    def _survived(self, inputs: Sequence[Input], failed: CallFailed, *, alone: bool) -> None:
        """Has images sent again that were on a stream that broke, `alone` or not; one that breaks all of them gets the error."""
        for each in inputs:
            each.breaks += 1
        if alone and len(inputs) == 1:
            inputs[0].breaks_alone += 1
            if inputs[0].breaks_alone >= MAX_BREAKS:
                message = f"the server was lost {MAX_BREAKS} times when it had this image alone: {failed.message}"
                self._finish(inputs[0], CallFailed(failed.code, message))
                return
        self._packing.send_after_break(inputs)

    def _may_have_expired(self, stream: Stream) -> bool:
        """Whether a token that is refused was accepted before. A second one in a row is refused for good."""
        answers, stream.answers = stream.answers, 0
        return answers > 0

    def _has_unanswered(self) -> bool:
        """Whether a server is needed: something is in flight, or ready to be sent."""
        return bool(self._packing) or any(stream.in_flight for stream in self.streams)

    def answer_seconds(self, now: float) -> float:
        """How long a server that is asked now may take to answer."""
        return max(MIN_ANSWER_SECONDS, min(self._failing_since, now) + self._wait_seconds - now)

    def _fail(self, stream: Stream, failed: CallFailed, now: float, *, answered: bool = False) -> None:
        """Waits with the stream; gives up if it is as long as that since any server answered one who has something to send.

        An RPC that was `answered` until it ended says nothing of the server: only the next one does, even if nobody wants to wait.
        """
        if self._has_unanswered():
            self._failing_since = min(self._failing_since, now)
        give_up_at = self._failing_since + self._wait_seconds
        backoff_seconds = BACKOFF_SECONDS[min(stream.failures, len(BACKOFF_SECONDS) - 1)]
        stream.failures += not answered
        stream.paused_until = max(stream.paused_until, min(now + max(backoff_seconds, failed.retry_after_seconds), give_up_at))
        if now >= give_up_at and all(each.failures for each in self.streams):
            self.fatal = failed

    def _halve(self, inputs: Sequence[Input], failed: CallFailed) -> None:
        """Of several images, finds those at fault; one gets the error."""
        if isinstance(failed, RequestTooLarge):
            self._packing.refused(failed)
        if len(inputs) > 1:
            self._packing.send_halves(inputs)
        else:
            self._finish(inputs[0], failed)

    def _finish(self, each: Input, answer: Classification | ConvoyError) -> None:
        self._answered += 1
        self._held_bytes -= each.own_bytes
        self._unanswered_bytes -= each.size_bytes
        self._done[each.index] = Outcome(each.index, each.image, answer), each.kept_bytes

    # The caller.

    def has_outcomes(self) -> bool:
        """Whether `outcomes` has something, or there will be nothing more."""
        return (self._given in self._done if self._ordered else bool(self._done)) or self.over()

    def outcomes(self) -> list[Outcome]:
        """What is ready to be given back. None at the end; raises what has ended it."""
        found: list[tuple[Outcome, int]] = []
        if self._ordered:
            while (done := self._done.pop(self._given, None)) is not None:
                self._given += 1
                found.append(done)
        else:
            found, self._done = list(self._done.values()), {}
        self._held -= len(found)
        self._held_bytes -= sum(kept_bytes for _, kept_bytes in found)
        if not found and self.over():
            for error in (self.fatal, self.error):
                if error is not None:
                    raise error
        return [outcome for outcome, _ in found]
