"""The sending side of the client's streams: requests are taken as there is room, and kept until they are answered.

When a stream breaks, the next one begins with what was sent and not answered. That is safe because to classify twice does no harm.
A stream is opened when there is something to send on it: one that breaks while it is idle, as by its connection's age, is nobody's
loss. Streams that break one after the other without an answer are given up soon.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import grpc

from service.client.messages import CallFailed, Images, call_failed, classify_request, needs_reading, too_large_bytes
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

_PAUSES_SECONDS = (0.0, 0.1, 0.2, 0.4)
"""Before each stream that follows one without an answer: about as gRPC tries a unary call again."""

_ENDED_WHILE_WRITTEN_TO = "Internal error from Core"
"""All that gRPC's asyncio client says of a stream that the server ended while it was written to (grpc/grpc issue 36066)."""


class _Window:
    """The requests that are unanswered, by number, and those of them that the current stream has yet to send."""

    def __init__(self, most: int) -> None:
        if not isinstance(most, int) or most < 1:
            raise UserError(f"in_flight {most!r}: a stream needs room for at least 1 request")
        self._most = most
        self._unanswered: dict[int, pb.ClassifyStreamRequest] = {}
        self._unsent: deque[int] = deque()
        self._taken = 0
        self._exhausted = False
        self._closed = False
        self._error: BaseException | None = None
        self._streams = 0
        self._failures = 0  # since there was an answer

    @property
    def _room(self) -> bool:
        return self._closed or len(self._unanswered) < self._most

    def _add(self, request: pb.ClassifyRequest) -> None:
        request.id = str(self._taken)
        self._unanswered[self._taken] = pb.ClassifyStreamRequest(request=request)
        self._unsent.append(self._taken)
        self._taken += 1

    def _begin(self) -> int:
        """A new stream, which has sent nothing yet; gives its number. Those before it are over."""
        self._unsent = deque(self._unanswered)
        self._streams += 1
        return self._streams

    def _can_go_on(self, stream: int) -> bool:
        """Whether a stream has something to do: to send, or to stop sending."""
        return bool(self._unsent) or self._exhausted or self._over(stream)

    def _over(self, stream: int) -> bool:
        return self._closed or stream != self._streams

    @property
    def _settled(self) -> bool:
        """Whether it is known if another stream is needed."""
        return bool(self._unanswered) or self._exhausted

    def _remove(self, number: int) -> bool:
        self._failures = 0
        return self._unanswered.pop(number, None) is not None

    def too_large(self, error: grpc.RpcError) -> int | None:
        """The number of the request that was too large for the server, if that is why a stream broke."""
        size_bytes = too_large_bytes(error)
        return next((number for number, sent in list(self._unanswered.items()) if sent.ByteSize() == size_bytes), None)

    def suspect(self, error: grpc.RpcError) -> pb.ClassifyRequest | None:
        """If gRPC has lost why a stream broke: the request to try as a call of its own, whose status is not lost.

        It is the largest, since a request that is too large would end every stream. None if the status says why.
        """
        if call_failed(error).message != _ENDED_WHILE_WRITTEN_TO or not self._unanswered:
            return None
        return max(self._unanswered.values(), key=pb.ClassifyStreamRequest.ByteSize).request

    def pause_seconds(self, error: grpc.RpcError) -> float:
        """After how long to send again what a stream that broke has not answered. Raises CallFailed if it is not worth it."""
        if not self._unanswered:
            return 0.0
        failed = call_failed(error)
        if failed.code not in ("UNAVAILABLE", "CANCELLED"):
            raise failed from None
        self._failures += 1
        if self._failures > len(_PAUSES_SECONDS):
            raise failed from None
        return _PAUSES_SECONDS[self._failures - 1]

    def check(self) -> None:
        """To be called when a stream has ended well: raises what ended the requests early, or what the server left out."""
        if self._error is not None:
            raise self._error
        if self._unanswered:
            raise CallFailed("INTERNAL", f"the server ended the stream with {len(self._unanswered)} requests unanswered")


class Feed(_Window):
    """For the synchronous client. A thread takes the requests; gRPC's own thread sends them."""

    def __init__(self, requests: Iterable[Images], fields: dict[str, Any], most: int) -> None:
        super().__init__(most)
        self._changed = threading.Condition()
        threading.Thread(target=self._take, args=(requests, fields), name="classify-stream", daemon=True).start()

    def _take(self, requests: Iterable[Images], fields: dict[str, Any]) -> None:
        try:
            for images in requests:
                request = classify_request(images, **fields)
                with self._changed:
                    self._changed.wait_for(lambda: self._room)
                    if self._closed:
                        return
                    self._add(request)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised to whoever takes the answers, when those that are due have come
            self._error = error
        finally:
            with self._changed:
                self._exhausted = True
                self._changed.notify_all()

    def waiting(self) -> bool:
        """Whether there is something to send on a new stream, as soon as that is known; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled)
            return bool(self._unanswered)

    def outgoing(self) -> Iterator[pb.ClassifyStreamRequest]:
        """The messages of a new stream."""
        with self._changed:
            stream = self._begin()
            self._changed.notify_all()
        return self._messages(stream)

    def _messages(self, stream: int) -> Iterator[pb.ClassifyStreamRequest]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._can_go_on(stream))
                if self._over(stream) or not self._unsent:
                    return
                message = self._unanswered[self._unsent.popleft()]
            yield message

    def answered(self, number: int) -> bool:
        """A request is answered; False if it was before."""
        with self._changed:
            known = self._remove(number)
            self._changed.notify_all()
        return known

    def close(self) -> None:
        """Lets the threads go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class AsyncFeed(_Window):
    """For the asynchronous client. One task takes the requests, another sends them."""

    def __init__(self, requests: Iterable[Images] | AsyncIterable[Images], fields: dict[str, Any], most: int) -> None:
        super().__init__(most)
        self._changed = asyncio.Condition()
        self._taking = asyncio.create_task(self._take(requests, fields))

    async def _take(self, requests: Iterable[Images] | AsyncIterable[Images], fields: dict[str, Any]) -> None:
        try:
            async for images in _asynchronous(requests):
                if needs_reading(images):
                    request = await asyncio.to_thread(classify_request, images, **fields)
                else:
                    request = classify_request(images, **fields)
                async with self._changed:
                    await self._changed.wait_for(lambda: self._room)
                    self._add(request)
                    self._changed.notify_all()
        except BaseException as error:
            if self._closed and isinstance(error, asyncio.CancelledError):
                raise
            self._error = error
        async with self._changed:
            self._exhausted = True
            self._changed.notify_all()

    async def waiting(self) -> bool:
        """See Feed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._settled)
            return bool(self._unanswered)

    async def write_to(self, call: Any) -> None:
        """Sends the messages of a new stream."""
        stream = self._begin()
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._can_go_on(stream))
                    if self._over(stream):
                        return
                    message = self._unanswered[self._unsent.popleft()] if self._unsent else None
                if message is None:
                    await call.done_writing()
                    return
                await call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the stream is over; whoever reads from it is told why

    async def answered(self, number: int) -> bool:
        """A request is answered; False if it was before."""
        async with self._changed:
            known = self._remove(number)
            self._changed.notify_all()
        return known

    def close(self) -> None:
        """Lets the task go."""
        self._closed = True
        self._taking.cancel()


async def _asynchronous(requests: Iterable[Images] | AsyncIterable[Images]) -> AsyncIterator[Images]:
    if isinstance(requests, AsyncIterable):
        async for images in requests:
            yield images
    else:
        for images in requests:
            yield images
