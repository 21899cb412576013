"""The I/O of `classify_many`: a task takes the images, some read files, and one for each connection sends and receives.

`make sync-client` generates sync_many.py from it, as sync.py from aio.py: edit only this file. There the tasks are threads.
"""

# sync: import threading
# sync: from collections.abc import Callable, Iterable, Iterator, Sequence
import asyncio  # asyncio only
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence  # asyncio only
from typing import Any, TypeVar

import grpc

from service.client.connection import ChannelSettings, Connection, Stubs, client_closed, deadline_seconds
from service.client.flow import PASSING, Flow, check_arguments
from service.client.images import Image, is_path, is_picture, item
from service.client.in_flight import Limits, Stream
from service.client.messages import CallFailed, Outcome, filled, refusal, rows
from service.client.reading import contents
from service.client.stream import status_lost
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

T = TypeVar("T")  # asyncio only

READERS = 4
"""How many files are read at the same time."""

END_SECONDS = 0.5
"""How long it waits for streams to end by themselves."""


class AsyncManyImages(Flow):
    """A Flow that is filled from the caller's source and emptied through connections."""

    def __init__(
        self,
        images: Iterable[Image] | AsyncIterable[Image],
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
        check_arguments(images, Iterable | AsyncIterable, wait_seconds)
        super().__init__(request, len(connections), ordered=ordered, wait_seconds=wait_seconds)
        self._images = images
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._calls: dict[Stream, Any] = {}
        # sync: self._jobs: list[threading.Thread] = []
        # sync: self._changed = threading.Condition()
        self._jobs: list[asyncio.Task[None]] = []  # asyncio only
        self._changed = asyncio.Condition()  # asyncio only

    def start(self) -> None:
        """Begins to take images. Raises RuntimeError if there is no thread for it."""
        for stream, (settings, connection) in zip(self.streams, self._connections, strict=True):
            self._start(self._converse, stream, settings, connection)
        self._start(self._take)

    def _start(self, job: Callable[..., Any], *arguments: Any) -> None:
        # sync: thread = threading.Thread(target=self._run, args=(job, *arguments), name="classify-many", daemon=True)
        # sync: thread.start()
        # sync: self._jobs.append(thread)
        self._jobs.append(asyncio.create_task(self._run(job, *arguments)))  # asyncio only

    async def _run(self, job: Callable[..., Any], *arguments: Any) -> None:
        ended: BaseException | None = None
        try:
            await job(*arguments)
        except asyncio.CancelledError:  # asyncio only
            ended = client_closed()  # or `close` has cancelled the task, and nobody sees it
        except BaseException as error:  # noqa: BLE001 - the caller gets it, and does not wait for ever
            ended = error
        if ended is not None:
            async with self._changed:
                self.fatal = self.fatal or ended
                self._changed.notify_all()

    async def _take(self) -> None:
        error: BaseException | None = None
        reading = False
        try:
            async for image in asynchronous(self._images):
                failed: UserError | None = None
                content: dict[str, bytes] | None = None
                try:
                    if not is_path(image):  # the caller may use its memory for the next one
                        # sync: content = item(image)
                        content = await asyncio.to_thread(item, image) if is_picture(image) else item(image)  # asyncio only
                    elif not reading:
                        self._start_readers()
                        reading = True
                except UserError as unusable:
                    failed = unusable
                async with self._changed:
                    await self._changed.wait_for(self.has_room)
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
            async with self._changed:
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

    async def _read_files(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(self.can_read)
                inputs = self.to_read()
            if not inputs:
                return
            # sync: found = contents(inputs)
            found = await asyncio.to_thread(contents, inputs)  # asyncio only
            async with self._changed:
                self.read(inputs, found)
                self._changed.notify_all()
            del inputs, found  # it may wait for long

    async def _converse(self, stream: Stream, settings: ChannelSettings, connection: Connection) -> None:
        """Opens RPCs one after the other until all is answered."""
        while await self._wait_for_work(stream):
            # sync: stubs = connection.stubs()
            stubs = connection.stubs(asyncio.get_running_loop())  # asyncio only
            try:
                limits = await self._limits(stubs)
                await self._exchange(stream, stubs, limits)
                failed = CallFailed("UNAVAILABLE", "the server ended the stream")
            except CallFailed as error:
                failed = error
            except grpc.RpcError as error:
                failed = settings.call_failed(error)
            if status_lost(failed):  # asyncio only
                failed = await self._ask_alone(stream, stubs, settings) or failed
            async with self._changed:
                self.broken(stream, failed, time.monotonic())
                self._changed.notify_all()

    async def _wait_for_work(self, stream: Stream) -> bool:
        """Waits until a stream is worth opening; False if there will be nothing more."""
        async with self._changed:
            await self._pause(stream, stream.rpc)
            await self._changed.wait_for(lambda: self.has_work() or self.over())
            return not self.over()

    async def _pause(self, stream: Stream, rpc: int) -> None:
        """Waits for as long as the stream must not send; `self._changed` is held, and let go meanwhile."""
        while (seconds := self.pause_seconds(stream, time.monotonic())) and not self.ended(stream, rpc):
            # sync: self._changed.wait(seconds)
            try:  # asyncio only
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:  # asyncio only
                pass

    async def _limits(self, stubs: Stubs) -> Limits:
        """What the server accepts. Raises grpc.RpcError, and CallFailed for one that does not answer while it is waited for."""
        request = filled(pb.GetModelRequest(), model=self.request.model, version=self.request.version)
        seconds = min(self._timeout_seconds, self.answer_seconds(time.monotonic()))
        try:
            found = (await stubs.get_model(request, timeout=deadline_seconds(seconds))).limits
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            raise CallFailed("UNAVAILABLE", f"no server has answered within {seconds:.3g} s") from None
        return Limits(found.max_request_items, found.max_queue_items)

    async def _exchange(self, stream: Stream, stubs: Stubs, limits: Limits) -> None:
        """One RPC, to its end. Raises grpc.RpcError."""
        async with self._changed:
            rpc = self.begin(stream, limits)
        # sync: call = stubs.classify_stream(self._messages(stream, rpc))
        call = stubs.classify_stream()  # asyncio only
        writing = asyncio.create_task(write(call, self._messages(stream, rpc)))  # asyncio only
        self._calls[stream] = call
        try:
            if self.closed:
                return
            async for response in call:
                await self._received(stream, response)
        except asyncio.CancelledError:  # asyncio only
            check_written(writing)
            raise
        finally:
            writing.cancel()  # asyncio only
            call.cancel()

    async def _messages(self, stream: Stream, rpc: int) -> AsyncIterator[pb.ClassifyStreamRequest]:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.can_send(stream) or self.ended(stream, rpc))
                await self._pause(stream, rpc)
                if self.ended(stream, rpc):
                    return
                message = self.next_message(stream) if self.can_send(stream) else None
            if message is not None:
                yield message
            message = None  # it may wait for long

    async def _received(self, stream: Stream, response: pb.ClassifyStreamResponse) -> None:
        failed = None if response.HasField("response") else refusal(response.error)
        found = rows(response.response) if failed is None else []
        async with self._changed:
            if failed is None:
                self.answered(stream, response.index, found)
            else:
                self.refused(stream, response.index, failed, time.monotonic())
            self._changed.notify_all()

    async def _ask_alone(self, stream: Stream, stubs: Stubs, settings: ChannelSettings) -> CallFailed | None:  # asyncio only
        """Sends the request that may have broken the RPC as a call of its own, whose status is not lost.

        Returns that if there is no server.
        """
        suspect = self.largest(stream)
        if suspect is None:
            return None
        place, request = suspect
        try:
            answer = await stubs.classify(request)  # as long as on a stream
        except grpc.RpcError as error:
            failed = settings.call_failed(error)
            if failed.code in PASSING:
                return failed
            async with self._changed:
                self.refused(stream, place, failed, time.monotonic())
                self._changed.notify_all()
        else:
            async with self._changed:
                self.answered(stream, place, rows(answer))
                self._changed.notify_all()
        return None

    async def next_outcomes(self) -> list[Outcome]:
        """Waits for outcomes; none at the end. Raises what has ended it."""
        async with self._changed:
            await self._changed.wait_for(self.has_outcomes)
            found = self.outcomes()
            self._changed.notify_all()
        return found

    async def close(self) -> None:
        """Ends what runs in the background: streams that have answered all end well, for the server's statistics."""
        if self.finished():
            # sync: until = time.monotonic() + END_SECONDS
            # sync: for job in self._jobs:
            # sync:     job.join(max(0, until - time.monotonic()))
            await asyncio.wait(self._jobs, timeout=END_SECONDS)  # asyncio only
        self.closed = True
        async with self._changed:
            self._changed.notify_all()
        # sync: for call in list(self._calls.values()):
        # sync:     call.cancel()
        for job in self._jobs:  # asyncio only
            job.cancel()
        await asyncio.wait(self._jobs)  # asyncio only


async def asynchronous(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:  # asyncio only
    """An iterable of either kind."""
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def write(call: Any, messages: AsyncIterator[pb.ClassifyStreamRequest]) -> None:  # asyncio only
    """Sends the messages of an RPC. gRPC would do it itself, but cancel the RPC, and so lose its status, if that fails.

    Any other error cancels it: who reads from it would wait for ever. See `check_written`.
    """
    try:
        async for message in messages:
            await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return  # the RPC has ended; reading from it says why
    except BaseException:
        call.cancel()
        raise


def check_written(writing: "asyncio.Task[None]") -> None:  # asyncio only
    """Raises the error for which `write` has cancelled its RPC, if it has."""
    if writing.done() and not writing.cancelled() and (error := writing.exception()) is not None:
        raise error
