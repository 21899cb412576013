"""Load for a Convoy server, and how long the answers took.

Two kinds of load. *Closed loop*: so many requests are in flight at any moment, each is followed by the next; it finds what a
server can do. *Poisson arrivals* (open loop): requests arrive at random at a given rate, whether or not those before them were
answered, as they do from many independent users; it finds how long people wait. There a latency counts from the moment at which
the request was to be sent, so that a server that stalls, or a client that falls behind, is not hidden by requests that were never
sent ("coordinated omission": Gil Tene, https://github.com/giltene/wrk2; the histograms are his too). The rate counts what was
answered before the load's end, whenever it was sent; the latencies have the answers that came later too.

One client process costs about as much CPU as a small model's server, so several can share the load. Each is spawned, connects,
makes one call, and waits for the common start; what it measured comes back as a histogram, which adds up without loss.
"""

import asyncio
import multiprocessing
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count, cycle
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import grpc
import grpc.aio
from hdrh.histogram import HdrHistogram

from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

CLASSIFY = "/convoy.v1.Classifier/Classify"
CLASSIFY_STREAM = "/convoy.v1.Classifier/ClassifyStream"
MAX_OUTSTANDING = 10_000
"""Of Poisson arrivals, so many may be unanswered in one process; what arrives beyond is counted as not sent."""

NOT_SENT = "NOT_SENT"
_CONNECT_SECONDS = 20.0
_GRACE_SECONDS = 5.0
_RECONNECT_SECONDS = 0.1
_LONGEST_US = 3_600_000_000
_DIGITS = 3
_HISTOGRAMS = ("answered", "refused", "late")


@dataclass(frozen=True)
class Load:
    """What to send. `rate` is in requests a second, 0 for a closed loop; seconds are those of the load, without warm-up."""

    target: str
    requests: tuple[bytes, ...]
    seconds: float
    warmup_seconds: float = 1.0
    rate: float = 0.0
    concurrency: int = 1
    connections: int = 1
    processes: int = 1
    stream: bool = False
    timeout_seconds: float = 30.0
    seed: int = 0
    tls: tuple[bytes | None, ...] | None = None
    """For `grpc.ssl_channel_credentials`: the CA, the client's key, its certificate."""

    def share(self, index: int) -> "Load":
        """The part of the load that one of the processes sends."""
        return replace(
            self,
            rate=self.rate / self.processes,
            concurrency=_part(self.concurrency, self.processes, index),
            connections=max(1, _part(self.connections, self.processes, index)),
            seed=self.seed + index,
        )


@dataclass
class Outcome:
    """What came of a load. Latencies and codes are of requests sent after the warm-up; latencies are in microseconds.

    `by_second` counts the answers that came until the load's end, of requests of the warm-up too; `answered_after_end` those that
    came later.
    """

    answered: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, _LONGEST_US, _DIGITS))
    refused: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, _LONGEST_US, _DIGITS))
    late: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, _LONGEST_US, _DIGITS))
    codes: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    by_second: Counter[int] = field(default_factory=Counter)
    answered_after_end: int = 0
    seconds: float = 0.0
    client_cpu_cores: list[float] = field(default_factory=list)

    @property
    def requests_per_second(self) -> float:
        """What the server did while the load lasted."""
        return self.by_second.total() / self.seconds if self.seconds else 0.0

    def add(self, packed: dict[str, Any]) -> None:
        """Adds what another process measured."""
        for name in _HISTOGRAMS:
            getattr(self, name).decode_and_add(packed[name])
        self.codes.update(packed["codes"])
        self.messages = packed["messages"] | self.messages
        self.by_second.update(packed["by_second"])
        self.answered_after_end += packed["answered_after_end"]
        self.seconds = max(self.seconds, packed["seconds"])
        self.client_cpu_cores += packed["client_cpu_cores"]

    def pack(self) -> dict[str, Any]:
        """What travels between processes."""
        return {**self.__dict__, **{name: getattr(self, name).encode() for name in _HISTOGRAMS}}


def run(
    load: Load, on_second: Callable[[float], None] = lambda seconds: None, on_start: Callable[[], None] = lambda: None
) -> Outcome:
    """Sends a load and gathers what came of it.

    Ctrl-C ends the load early; what was measured until then is the outcome. `on_start` is called when the warm-up is over,
    `on_second` now and then with the seconds of load so far.

    Raises:
        UserError: a client process cannot reach the server, or the server refuses the request.
    """
    context = multiprocessing.get_context("spawn")
    clients: list[tuple[SpawnProcess, Connection]] = []
    try:
        for index in range(load.processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_client, args=(load.share(index), theirs), name=f"client-{index}", daemon=True)
            with _deaf_to_ctrl_c():  # which reaches the whole terminal; it is this process that says when to stop
                process.start()
            theirs.close()
            clients.append((process, ours))
        pipes = [pipe for _, pipe in clients]
        for pipe in pipes:
            _expect(pipe)
        start = time.monotonic() + 0.1
        for pipe in pipes:
            pipe.send(start)
        _watch(pipes, start + load.warmup_seconds, load.seconds, on_second, on_start)
        outcome = Outcome()
        for pipe in pipes:
            outcome.add(_expect(pipe))
        return outcome
    finally:
        for process, pipe in clients:
            pipe.close()
            process.join(_GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started meanwhile ignores SIGINT from its first moment."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _watch(
    pipes: Sequence[Connection], start: float, seconds: float, on_second: Callable[[float], None], on_start: Callable[[], None]
) -> None:
    """Until every client has something to say: that it has ended, or why it cannot go on."""
    try:
        started = False
        while not wait(list(pipes), timeout=0.2):
            passed = time.monotonic() - start
            if passed >= 0 and not started:
                started = True
                on_start()
            on_second(min(max(0.0, passed), seconds))
    except KeyboardInterrupt:
        for pipe in pipes:
            with suppress(OSError):
                pipe.send("stop")


def _expect(pipe: Connection) -> Any:
    try:
        said = pipe.recv()
    except EOFError:
        raise UserError("a client process ended without a word; is there memory enough?") from None
    if isinstance(said, UserError):
        raise said
    return said


def _part(total: int, parts: int, index: int) -> int:
    return total // parts + (index < total % parts)


def _client(load: Load, pipe: Connection) -> None:
    try:
        pipe.send(asyncio.run(_Client(load, pipe).run()))
    except UserError as error:
        pipe.send(error)
    except (BrokenPipeError, EOFError):
        pass  # the parent has gone
    pipe.close()


class _Client:
    """One process' share of a load."""

    def __init__(self, load: Load, pipe: Connection) -> None:
        self._load = load
        self._pipe = pipe
        self._outcome = Outcome()
        self._requests = cycle(load.requests)
        self._messages = cycle(
            pb.ClassifyStreamRequest(request=pb.ClassifyRequest.FromString(request)).SerializeToString()
            for request in load.requests
        )
        self._end = 0.0
        self._start = 0.0
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
            threading.Thread(target=self._listen, args=(asyncio.get_running_loop(),), daemon=True).start()
            await self._until(begin)
            if load.stream:
                jobs = [self._stream(channel, _part(load.concurrency, len(channels), at)) for at, channel in enumerate(channels)]
            elif load.rate:
                jobs = [self._arrivals(channels)]
            else:
                calls = [_unary(channel) for channel in channels]
                jobs = [self._loop(calls[at % len(calls)]) for at in range(load.concurrency)]
            await asyncio.gather(self._watch_cpu(), *jobs)
            self._outcome.seconds = max(0.0, round(self._end - self._start, 6))  # or 3 s may be 2.9999999999
            return self._outcome.pack()
        finally:
            for channel in channels:
                await channel.close()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Any word of the parent, or its end, ends the load."""
        with suppress(EOFError, OSError):
            self._pipe.recv()
        self._end = min(self._end, time.monotonic())
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(self._stopped.set)

    async def _until(self, moment: float) -> None:
        """Sleeps until then, or until somebody ends the load."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), moment - time.monotonic())

    async def _watch_cpu(self) -> None:
        """Until the load's end, and no longer: to wait for late answers costs little, and would hide a client at its limit."""
        begin, cpu_seconds = time.monotonic(), time.process_time()
        await self._until(self._end)
        self._outcome.client_cpu_cores = [(time.process_time() - cpu_seconds) / (time.monotonic() - begin)]

    async def _first_call(self, channel: grpc.aio.Channel) -> None:
        """Connects, and makes sure that the request is answered at all: a refused one would be measured as very fast."""
        try:
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_SECONDS)
        except TimeoutError:
            raise UserError(f"no server answers at {self._load.target}: start one with `convoy serve`") from None
        try:
            await _unary(channel)(next(self._requests), timeout=_CONNECT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise UserError(f"the server refuses the request: {error.code().name}: {error.details()}") from None

    async def _loop(self, call: Any) -> None:
        """One request after the other."""
        while time.monotonic() < self._end:
            await self._call(call, time.monotonic())

    async def _arrivals(self, channels: Sequence[grpc.aio.Channel]) -> None:
        """Requests at random moments, each a task of its own."""
        calls = cycle([_unary(channel) for channel in channels])
        outstanding: set[asyncio.Task[None]] = set()
        for at in self._moments():
            if at > time.monotonic():
                await self._until(at)
            if at >= self._end:
                break
            if len(outstanding) >= MAX_OUTSTANDING:
                self._failed(NOT_SENT, f"more than {MAX_OUTSTANDING} requests of one process are unanswered", at)
                continue
            if at >= self._start:
                self._outcome.late.record_value(_microseconds(time.monotonic() - at))
            task = asyncio.create_task(self._call(next(calls), at))
            outstanding.add(task)
            task.add_done_callback(outstanding.discard)
        if outstanding:
            await asyncio.wait(outstanding, timeout=self._load.timeout_seconds + _GRACE_SECONDS)

    def _moments(self) -> Iterator[float]:
        """When requests arrive: the gaps of a Poisson process are exponential."""
        gaps = random.Random(self._load.seed)  # noqa: S311 - nobody guesses it
        at = self._start - self._load.warmup_seconds
        while (at := at + gaps.expovariate(self._load.rate)) < self._end:
            yield at

    async def _call(self, call: Any, since: float) -> None:
        try:
            await call(next(self._requests), timeout=self._load.timeout_seconds)
        except grpc.aio.AioRpcError as error:
            self._failed(error.code().name, error.details() or "", since)
        else:
            self._answered(since)

    async def _stream(self, channel: grpc.aio.Channel, in_flight: int) -> None:
        """Requests on one stream, `in_flight` of them unanswered at any moment; on the next one when it breaks."""
        while in_flight and time.monotonic() < self._end:
            since: dict[int, float] = {}
            code, message = "UNKNOWN", "the server ended the stream"
            try:
                async with asyncio.timeout(self._load.timeout_seconds) as deadline:
                    await self._converse(channel, in_flight, since, deadline)
            except TimeoutError:
                code, message = "DEADLINE_EXCEEDED", "an answer took longer than the deadline: its stream was given up"
            except grpc.aio.AioRpcError as error:
                code, message = error.code().name, error.details() or ""
            for begun in since.values():
                self._failed(code, message, begun)
            await self._until(min(time.monotonic() + _RECONNECT_SECONDS, self._end))

    async def _converse(
        self, channel: grpc.aio.Channel, in_flight: int, since: dict[int, float], deadline: asyncio.Timeout
    ) -> None:
        """One stream until the load's end. `since` has when each request was sent that is not answered, the oldest first."""
        call: Any = channel.stream_stream(CLASSIFY_STREAM)()  # bytes in, bytes out: nothing to serialise
        places = count()

        async def send() -> None:
            since[next(places)] = time.monotonic()
            if not call.done():  # else the next read says why it is
                await call.write(next(self._messages))

        for _ in range(in_flight):
            await send()
        while since:
            deadline.reschedule(next(iter(since.values())) + self._load.timeout_seconds)
            message = await call.read()
            if message is grpc.aio.EOF:
                return
            answer = pb.ClassifyStreamResponse.FromString(message)
            begun = since.pop(answer.index)
            if answer.HasField("error"):
                self._failed(_CODES.get(answer.error.code, "UNKNOWN"), answer.error.message, begun)
            else:
                self._answered(begun)
            if time.monotonic() < self._end:
                await send()
        await call.done_writing()

    def _answered(self, since: float) -> None:
        now, outcome = time.monotonic(), self._outcome
        if self._start <= now < self._end:
            outcome.by_second[int(now - self._start)] += 1
        if since >= self._start:
            outcome.answered.record_value(_microseconds(now - since))
            outcome.codes["OK"] += 1
            outcome.answered_after_end += now >= self._end

    def _failed(self, code: str, message: str, since: float) -> None:
        if since >= self._start:
            outcome = self._outcome
            outcome.codes[code] += 1
            outcome.messages.setdefault(code, message)
            if code != NOT_SENT:  # nobody was refused: there was no wait
                outcome.refused.record_value(_microseconds(time.monotonic() - since))


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def _unary(channel: grpc.aio.Channel) -> Any:
    """Classify, of bytes to bytes: the requests are serialised already, and nobody looks at the answers."""
    return channel.unary_unary(CLASSIFY)


def _channel(load: Load) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # or all channels to one server would share a connection
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_http_proxy", 0),
    ]
    if load.tls is None:
        return grpc.aio.insecure_channel(load.target, options)
    return grpc.aio.secure_channel(load.target, grpc.ssl_channel_credentials(*load.tls), options)


def _microseconds(seconds: float) -> int:
    return min(max(1, round(1e6 * seconds)), _LONGEST_US)
