"""One client process of a load: connects, makes one call, waits for the common start, sends its share."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, cycle
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio

from service.bench.load import NOT_SENT, Load, Outcome, part
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

CLASSIFY = "/convoy.v1.Classifier/Classify"
CLASSIFY_STREAM = "/convoy.v1.Classifier/ClassifyStream"
MAX_UNANSWERED = 10_000
"""Per process: Poisson arrivals beyond it are counted as NOT_SENT."""

_CONNECT_SECONDS = 20.0
_GRACE_SECONDS = 5.0
_RECONNECT_SECONDS = 0.1
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def main(load: Load, pipe: Connection) -> None:
    """Runs in a process of its own. Sends "ready", receives the start time, sends a packed Outcome; or sends a UserError."""
    try:
        pipe.send(asyncio.run(_Sender(load, pipe).run()))
    except UserError as error:
        pipe.send(error)
    except (BrokenPipeError, EOFError):
        pass  # the parent process has ended
    pipe.close()


class _Sender:
    def __init__(self, load: Load, pipe: Connection) -> None:
        self._load = load
        self._pipe = pipe
        self._outcome = Outcome()
        self._requests = cycle(load.requests)
        self._messages = cycle(
            pb.ClassifyStreamRequest(request=pb.ClassifyRequest.FromString(request)).SerializeToString()
            for request in load.requests
        )
        self._start = 0.0
        self._end = 0.0
        self._stopped = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        load = self._load
        channels = [_channel(load) for _ in range(load.connections)]
        try:
            for channel in channels:
                await self._first_call(channel)
            self._pipe.send("ready")
            begin = await asyncio.to_thread(self._pipe.recv)
            self._start = begin + load.warmup_seconds
            self._end = self._start + load.seconds
            threading.Thread(target=self._wait_for_stop, args=(asyncio.get_running_loop(),), daemon=True).start()
            await self._sleep_until(begin)
            if load.stream:
                jobs = [self._stream(channel, part(load.concurrency, len(channels), at)) for at, channel in enumerate(channels)]
            elif load.rate:
                jobs = [self._poisson(channels)]
            else:
                calls = [_unary(channel) for channel in channels]
                jobs = [self._closed_loop(calls[at % len(calls)]) for at in range(load.concurrency)]
            await asyncio.gather(self._measure_cpu(), *jobs)
            self._outcome.seconds = max(0.0, round(self._end - self._start, 6))  # or 3 s may be 2.9999999999
            return self._outcome.pack()
        finally:
            for channel in channels:
                await channel.close()

    def _wait_for_stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Any message of the parent process, or its end, ends the load."""
        with suppress(EOFError, OSError):
            self._pipe.recv()
        self._end = min(self._end, time.monotonic())
        with suppress(RuntimeError):  # the loop is closed: the load has ended
            loop.call_soon_threadsafe(self._stopped.set)

    async def _sleep_until(self, moment: float) -> None:
        """Returns early if the load is stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), moment - time.monotonic())

    async def _measure_cpu(self) -> None:
        """Only until the load's end: waiting for late answers costs little, and would hide a client at its limit."""
        begin, cpu_seconds = time.monotonic(), time.process_time()
        await self._sleep_until(self._end)
        self._outcome.client_cpu_cores = [(time.process_time() - cpu_seconds) / (time.monotonic() - begin)]

    async def _first_call(self, channel: grpc.aio.Channel) -> None:
        """Connects, and checks that the server answers the request: refusals would be measured as a very fast server."""
        try:
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_SECONDS)
        except TimeoutError:
            raise UserError(f"no server answers at {self._load.target}: start one with `convoy serve`") from None
        try:
            await _unary(channel)(next(self._requests), timeout=_CONNECT_SECONDS, metadata=self._load.metadata)
        except grpc.aio.AioRpcError as error:
            raise UserError(f"the server refuses the request: {error.code().name}: {error.details()}") from None

    async def _closed_loop(self, call: Any) -> None:
        while time.monotonic() < self._end:
            await self._call(call, time.monotonic())

    async def _poisson(self, channels: Sequence[grpc.aio.Channel]) -> None:
        calls = cycle([_unary(channel) for channel in channels])
        unanswered: set[asyncio.Task[None]] = set()
        for due in self._arrivals():
            if due > time.monotonic():
                await self._sleep_until(due)
            if due >= self._end:
                break
            if len(unanswered) >= MAX_UNANSWERED:
                self._failed(NOT_SENT, f"more than {MAX_UNANSWERED} requests of one process are unanswered", due)
                continue
            if due >= self._start:
                self._outcome.record(self._outcome.late, time.monotonic() - due)
            task = asyncio.create_task(self._call(next(calls), due))
            unanswered.add(task)
            task.add_done_callback(unanswered.discard)
        if unanswered:
            await asyncio.wait(unanswered, timeout=self._load.timeout_seconds + _GRACE_SECONDS)

    def _arrivals(self) -> Iterator[float]:
        """When requests are due: the gaps of a Poisson process are exponential."""
        gaps = random.Random(self._load.seed)  # noqa: S311 - not for security
        due = self._start - self._load.warmup_seconds
        while (due := due + gaps.expovariate(self._load.rate)) < self._end:
            yield due

    async def _call(self, call: Any, since: float) -> None:
        try:
            await call(next(self._requests), timeout=self._load.timeout_seconds, metadata=self._load.metadata)
        except grpc.aio.AioRpcError as error:
            self._failed(error.code().name, error.details() or "", since)
        else:
            self._answered(since)

    async def _stream(self, channel: grpc.aio.Channel, in_flight: int) -> None:
        """Keeps `in_flight` requests unanswered on one stream; opens the next one when it breaks."""
        while in_flight and time.monotonic() < self._end:
            since: dict[int, float] = {}
            code, message = "UNKNOWN", "the server ended the stream"
            try:
                async with asyncio.timeout(self._load.timeout_seconds) as deadline:
                    await self._converse(channel, in_flight, since, deadline)
            except TimeoutError:
                code, message = "DEADLINE_EXCEEDED", "no answer within --timeout; the stream was closed"
            except grpc.aio.AioRpcError as error:
                code, message = error.code().name, error.details() or ""
            for sent in since.values():
                self._failed(code, message, sent)
            await self._sleep_until(min(time.monotonic() + _RECONNECT_SECONDS, self._end))

    async def _converse(
        self, channel: grpc.aio.Channel, in_flight: int, since: dict[int, float], deadline: asyncio.Timeout
    ) -> None:
        """One stream until the load's end. `since`: when each unanswered request was sent, by index, the oldest first."""
        call: Any = channel.stream_stream(CLASSIFY_STREAM)(
            metadata=self._load.metadata
        )  # bytes in, bytes out: nothing to serialise
        indices = count()

        async def send() -> None:
            since[next(indices)] = time.monotonic()
            if not call.done():  # otherwise the next read raises its status
                await call.write(next(self._messages))

        for _ in range(in_flight):
            await send()
        while since:
            deadline.reschedule(next(iter(since.values())) + self._load.timeout_seconds)
            message = await call.read()
            if message is grpc.aio.EOF:
                return
            answer = pb.ClassifyStreamResponse.FromString(message)
            sent = since.pop(answer.index)
            if answer.HasField("error"):
                self._failed(_CODES.get(answer.error.code, "UNKNOWN"), answer.error.message, sent)
            else:
                self._answered(sent)
            if time.monotonic() < self._end:
                await send()
        await call.done_writing()

    def _answered(self, since: float) -> None:
        now, outcome = time.monotonic(), self._outcome
        if self._start <= now < self._end:
            outcome.by_second[int(now - self._start)] += 1
        if since >= self._start:
            outcome.record(outcome.answered, now - since)
            outcome.codes["OK"] += 1
            outcome.answered_after_end += now >= self._end

    def _failed(self, code: str, message: str, since: float) -> None:
        if since >= self._start:
            outcome = self._outcome
            outcome.codes[code] += 1
            outcome.messages.setdefault(code, message)
            if code != NOT_SENT:  # which has no latency
                outcome.record(outcome.refused, time.monotonic() - since)


def _unary(channel: grpc.aio.Channel) -> Any:
    """Classify, bytes to bytes: requests are serialised in advance, answers are not parsed."""
    return channel.unary_unary(CLASSIFY)


def _channel(load: Load) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # or all channels to a server would share one connection
        ("grpc.max_receive_message_length", -1),
        *load.route,
    ]
    if load.tls is None:
        return grpc.aio.insecure_channel(load.target, options)
    return grpc.aio.secure_channel(load.target, grpc.ssl_channel_credentials(*load.tls), options)
