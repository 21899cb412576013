"""Load for a Convoy server, and how long the answers took.

Two kinds of load. *Closed loop*: so many requests are in flight at any moment, each is followed by the next; it finds what a
server can do. *Poisson arrivals* (open loop): requests arrive at random at a given rate, whether or not those before them were
answered, as they do from many independent users; it finds how long people wait. There a latency counts from the moment at which
the request was to be sent, so that a server that stalls, or a client that falls behind, is not hidden by requests that were never
sent ("coordinated omission": Gil Tene, https://github.com/giltene/wrk2; the histograms are his too).

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
from dataclasses import dataclass, field
from itertools import cycle
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
_LONGEST_US = 3_600_000_000
_DIGITS = 3


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
        values = {
            **self.__dict__,
            "rate": self.rate / self.processes,
            "concurrency": _part(self.concurrency, self.processes, index),
            "connections": max(1, _part(self.connections, self.processes, index)),
            "seed": self.seed + index,
        }
        return Load(**values)


@dataclass
class Outcome:
    """What came of a load. Latencies are in microseconds, of requests sent after the warm-up."""

    answered: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, _LONGEST_US, _DIGITS))
    refused: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, _LONGEST_US, _DIGITS))
    late: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, _LONGEST_US, _DIGITS))
    codes: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    by_second: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    client_cpu_seconds: list[float] = field(default_factory=list)

    def add(self, packed: dict[str, Any]) -> None:
        """Adds what another process measured."""
        for name in ("answered", "refused", "late"):
            getattr(self, name).decode_and_add(packed[name])
        self.codes.update(packed["codes"])
        self.by_second.update(packed["by_second"])
        for code, message in packed["messages"].items():
            self.messages.setdefault(code, message)
        self.seconds = max(self.seconds, packed["seconds"])
        self.client_cpu_seconds.append(packed["cpu_seconds"])

    def pack(self, cpu_seconds: float) -> dict[str, Any]:
        """What travels between processes."""
        histograms = {name: getattr(self, name).encode() for name in ("answered", "refused", "late")}
        return {**histograms, "codes": self.codes, "by_second": self.by_second, "messages": self.messages,
                "seconds": self.seconds, "cpu_seconds": cpu_seconds}  # fmt: skip


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
            threading.Thread(target=self._listen, args=(asyncio.get_running_loop(),), daemon=True).start()
            self._start = begin + load.warmup_seconds
            self._end = self._start + load.seconds
            await asyncio.sleep(max(0.0, begin - time.monotonic()))
            cpu = time.process_time()
            if load.stream:
                jobs = [self._stream(channel, _part(load.concurrency, len(channels), at)) for at, channel in enumerate(channels)]
                await asyncio.gather(*jobs)
            elif load.rate:
                await self._arrivals(channels)
            else:
                calls = [_unary(channel) for channel in channels]
                await asyncio.gather(*(self._loop(calls[at % len(calls)]) for at in range(load.concurrency)))
            self._outcome.seconds = min(max(time.monotonic() - self._start, 0.0), load.seconds)
            return self._outcome.pack(time.process_time() - cpu)
        finally:
            for channel in channels:
                await channel.close()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Any word of the parent, or its end, ends the load."""
        with suppress(EOFError, OSError):
            self._pipe.recv()
        self._end = 0.0
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(self._stopped.set)

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
            while (wait_seconds := at - time.monotonic()) > 0 and self._end:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), wait_seconds)
            if not self._end:
                break
            if len(outstanding) >= MAX_OUTSTANDING:
                self._failed(NOT_SENT, f"more than {MAX_OUTSTANDING} requests of one process are unanswered", at, at)
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
        while (at := at + gaps.expovariate(self._load.rate)) < self._start + self._load.seconds:
            yield at

    async def _call(self, call: Any, since: float) -> None:
        try:
            await call(next(self._requests), timeout=self._load.timeout_seconds)
        except grpc.aio.AioRpcError as error:
            self._failed(error.code().name, error.details() or "", since, time.monotonic())
        else:
            self._answered(since, time.monotonic())

    async def _stream(self, channel: grpc.aio.Channel, in_flight: int) -> None:
        """Requests on one stream, `in_flight` of them unanswered at any moment."""
        if not in_flight:
            return
        since: dict[int, float] = {}
        sent = 0
        call: Any = channel.stream_stream(CLASSIFY_STREAM)()  # bytes in, bytes out: nothing to serialise

        async def send() -> None:
            nonlocal sent
            since[sent] = time.monotonic()
            sent += 1
            await call.write(next(self._messages))

        try:
            for _ in range(in_flight):
                await send()
            while since:
                message = await call.read()
                if message is grpc.aio.EOF:
                    break
                now = time.monotonic()
                answer = pb.ClassifyStreamResponse.FromString(message)
                begun = since.pop(answer.index)
                if answer.HasField("error"):
                    self._failed(_CODES.get(answer.error.code, "UNKNOWN"), answer.error.message, begun, now)
                else:
                    self._answered(begun, now)
                if now < self._end:
                    await send()
            await call.done_writing()
        except grpc.aio.AioRpcError as error:
            for begun in since.values():
                self._failed(error.code().name, error.details() or "", begun, time.monotonic())

    def _answered(self, since: float, now: float) -> None:
        if since >= self._start:
            outcome = self._outcome
            outcome.answered.record_value(_microseconds(now - since))
            outcome.codes["OK"] += 1
            outcome.by_second[int(now - self._start)] += 1

    def _failed(self, code: str, message: str, since: float, now: float) -> None:
        if since >= self._start:
            outcome = self._outcome
            outcome.refused.record_value(_microseconds(now - since))
            outcome.codes[code] += 1
            outcome.messages.setdefault(code, message)


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
