"""Requests that are taken from an iterable in the background, and answered as they are ready."""

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

from service.client.images import Images
from service.client.messages import CallFailed, Classification, classification, classify_request
from service.client.stream import checked_in_flight
from service.errors import QueueFull, RequestError
from service.local.engine import Engine, Reply
from service.pb.convoy.v1 import classifier_pb2 as pb


class _End(NamedTuple):
    """No more requests come: so many have been taken, and this has ended them early."""

    requests: int
    error: BaseException | None


class Stream:
    """Keeps at most `in_flight` requests unanswered."""

    def __init__(self, engine: Engine, requests: Iterable[Images], fields: dict[str, Any], in_flight: int) -> None:
        """Begins to take requests. Raises UserError for an invalid value."""
        self._engine = engine
        self._room = threading.Semaphore(checked_in_flight(in_flight))
        self._outcomes: SimpleQueue[tuple[int, bytes | BaseException] | _End] = SimpleQueue()
        self._replies: dict[int, Reply] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._take, args=(requests, fields), name="classify-stream", daemon=True).start()

    def answers(self) -> Iterator[tuple[int, Classification | CallFailed]]:
        """The number of each request and its answer, as they are ready.

        Raises at the end what ended the requests early, and CallFailed once the engine is closed.
        """
        answered, end = 0, None
        while end is None or answered < end.requests:
            outcome = self._outcomes.get()
            if isinstance(outcome, _End):
                end = outcome
                continue
            number, answer = outcome
            self._replies.pop(number, None)
            self._room.release()
            answered += 1
            if isinstance(answer, BaseException):
                yield number, self._engine.call_failed(answer)
            else:
                yield number, classification(pb.ClassifyResponse.FromString(answer))
        if end.error is not None:
            raise end.error

    def close(self) -> None:
        """Takes no more requests and cancels those that are not answered."""
        self._closed.set()
        self._room.release()
        for reply in list(self._replies.values()):
            reply.cancel()

    def _take(self, requests: Iterable[Images], fields: dict[str, Any]) -> None:
        number, error = 0, None
        try:
            for images in requests:
                request = classify_request(images, **fields)
                self._room.acquire()
                if self._closed.is_set():
                    break
                self._submit(number, request)
                number += 1
        except BaseException as raised:  # noqa: BLE001 - `answers` raises it, once the requests before it are answered
            error = raised
        self._outcomes.put(_End(number, error))

    def _submit(self, number: int, request: pb.ClassifyRequest) -> None:
        """Has a request answered, once there is room for it in the queue."""
        reply = self._replies[number] = Reply(lambda outcome: self._outcomes.put((number, outcome)))
        while not self._closed.is_set():
            try:
                self._engine.submit(request, reply)
            except QueueFull as full:
                self._closed.wait(full.retry_after_seconds)
                continue
            except (RequestError, CallFailed) as refused:
                self._outcomes.put((number, refused))
            return
        self._outcomes.put((number, CallFailed("CANCELLED", "the stream is closed")))
