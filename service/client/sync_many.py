"""The I/O of `classify_many`, with threads. Generated from aio_many.py by `make sync-client`: edit that."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc

from service.client.connection import ChannelSettings, Connection, Stubs, deadline_seconds
from service.client.flow import Flow, check_arguments
from service.client.images import Image, is_path, item
from service.client.in_flight import Limits, Stream
from service.client.messages import CallFailed, Outcome, filled, refusal, rows
from service.client.reading import contents
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

READERS = 4
"""How many files are read at the same time."""

END_SECONDS = 0.5
"""How long it waits for streams to end by themselves."""


class ManyImages(Flow):
    """A Flow that is filled from the caller's source and emptied through connections."""

    def __init__(
        self,
        images: Iterable[Image],
        request: pb.ClassifyRequest,
        connections: Sequence[tuple[ChannelSettings, Connection]],
        *,
        ordered: bool,
        wait_seconds: float,
        timeout_seconds: float,
    ) -> None:
        """`connections`: with the settings of their channels; `timeout_seconds`: of other calls than streams. Raises UserError.

        It begins with `start`, and is to be closed whether that works or not.
        """
        check_arguments(images, Iterable, wait_seconds)
        super().__init__(request, len(connections), ordered=ordered, wait_seconds=wait_seconds)
        self._images = images
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._calls: dict[Stream, Any] = {}
        self._jobs: list[threading.Thread] = []
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begins to take images. Raises RuntimeError if there is no thread for it."""
        for stream, (settings, connection) in zip(self.streams, self._connections, strict=True):
            self._start(self._converse, stream, settings, connection)
        self._start(self._take)

    def _start(self, job: Callable[..., Any], *arguments: Any) -> None:
        thread = threading.Thread(target=self._run, args=(job, *arguments), name="classify-many", daemon=True)
        thread.start()
        self._jobs.append(thread)

    def _run(self, job: Callable[..., Any], *arguments: Any) -> None:
        ended: BaseException | None = None
        try:
            job(*arguments)
        except BaseException as error:  # noqa: BLE001 - the caller gets it, and does not wait for ever
            ended = error
        if ended is not None:
            with self._changed:
                self.fatal = self.fatal or ended
                self._changed.notify_all()

    def _take(self) -> None:
        error: BaseException | None = None
        reading = False
        try:
            for image in self._images:
                failed: UserError | None = None
                content: dict[str, bytes] | None = None
                try:
                    if not is_path(image):  # the caller may use its memory for the next one
                        content = item(image)
                    elif not reading:
                        self._start_readers()
                        reading = True
                except UserError as unusable:
                    failed = unusable
                with self._changed:
                    self._changed.wait_for(self.has_room)
                    if self.over():
                        return
                    if failed is not None:
                        self.unreadable(image, failed)
                        self._changed.notify_all()
                    elif self.add(image, content):
                        self._changed.notify_all()
        except BaseException as raised:  # noqa: BLE001 - raised to the caller, once the images before it are answered
            error = raised
        finally:
            with self._changed:
                self.end(error)
                self._changed.notify_all()

    def _start_readers(self) -> None:
        for number in range(READERS):
            try:
                self._start(self._read_files)
            except RuntimeError:  # there may be no more threads; it goes on with those that there are
                if number == 0:
                    raise
                return

    def _read_files(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self.can_read)
                inputs = self.to_read()
            if not inputs:
                return
            found = contents(inputs)
            with self._changed:
                self.read(inputs, found)
                self._changed.notify_all()
            del inputs, found  # it may wait for long

    def _converse(self, stream: Stream, settings: ChannelSettings, connection: Connection) -> None:
        """Opens RPCs one after the other until all is answered."""
        while self._wait_for_work(stream):
            stubs = connection.stubs()
            try:
                limits = self._limits(stubs)
                self._exchange(stream, stubs, limits)
                failed = CallFailed("UNAVAILABLE", "the server ended the stream")
            except CallFailed as error:
                failed = error
            except grpc.RpcError as error:
                failed = settings.call_failed(error)
            with self._changed:
                self.broken(stream, failed, time.monotonic())
                self._changed.notify_all()

    def _wait_for_work(self, stream: Stream) -> bool:
        """Waits until a stream is worth opening; False if there will be nothing more."""
        with self._changed:
            self._pause(stream, stream.rpc)
            self._changed.wait_for(lambda: self.has_work() or self.over())
            return not self.over()

    def _pause(self, stream: Stream, rpc: int) -> None:
        """Waits for as long as the stream must not send; `self._changed` is held, and let go meanwhile."""
        while (seconds := self.pause_seconds(stream, time.monotonic())) and not self.ended(stream, rpc):
            self._changed.wait(seconds)

    def _limits(self, stubs: Stubs) -> Limits:
        """What the server accepts. Raises grpc.RpcError, and CallFailed for one that does not answer while it is waited for."""
        request = filled(pb.GetModelRequest(), model=self.request.model, version=self.request.version)
        seconds = min(self._timeout_seconds, self.answer_seconds(time.monotonic()))
        try:
            found = (stubs.get_model(request, timeout=deadline_seconds(seconds))).limits
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            raise CallFailed("UNAVAILABLE", f"no server has answered within {seconds:.3g} s") from None
        return Limits(found.max_request_items, found.max_queue_items)

    def _exchange(self, stream: Stream, stubs: Stubs, limits: Limits) -> None:
        """One RPC, to its end. Raises grpc.RpcError."""
        with self._changed:
            rpc = self.begin(stream, limits)
        call = stubs.classify_stream(self._messages(stream, rpc))
        self._calls[stream] = call
        try:
            if self.closed:
                return
            for response in call:
                self._received(stream, response)
        finally:
            call.cancel()

    def _messages(self, stream: Stream, rpc: int) -> Iterator[pb.ClassifyStreamRequest]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.can_send(stream) or self.ended(stream, rpc))
                self._pause(stream, rpc)
                if self.ended(stream, rpc):
                    return
                message = self.next_message(stream) if self.can_send(stream) else None
            if message is not None:
                yield message
            message = None  # it may wait for long

    def _received(self, stream: Stream, response: pb.ClassifyStreamResponse) -> None:
        failed = None if response.HasField("response") else refusal(response.error)
        found = rows(response.response) if failed is None else []
        with self._changed:
            if failed is None:
                self.answered(stream, response.index, found)
            else:
                self.refused(stream, response.index, failed, time.monotonic())
            self._changed.notify_all()

    def next_outcomes(self) -> list[Outcome]:
        """Waits for outcomes; none at the end. Raises what has ended it."""
        with self._changed:
            self._changed.wait_for(self.has_outcomes)
            found = self.outcomes()
            self._changed.notify_all()
        return found

    def close(self) -> None:
        """Ends what runs in the background: streams that have answered all end well, for the server's statistics."""
        if self.finished():
            until = time.monotonic() + END_SECONDS
            for job in self._jobs:
                job.join(max(0, until - time.monotonic()))
        self.closed = True
        with self._changed:
            self._changed.notify_all()
        for call in list(self._calls.values()):
            call.cancel()
