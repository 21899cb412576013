"""A service that uses every operation of rpc/call.py, and an observer that records its calls."""

import math
import threading
import time

from google.protobuf.wrappers_pb2 import BytesValue

from service import errors
from service.observability.trace_context import TraceContext
from service.rpc.aio_server import AioServer
from service.rpc.call import Method, Stream, StreamCall, Unary, UnaryCall
from service.rpc.completion_queue import CompletionQueueServer

Kind = type[AioServer] | type[CompletionQueueServer]

LIMIT = 1 << 20


class RecordingObserver:
    """The calls that the transport made to its observer."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.handled: list[tuple[str, str]] = []
        self._more = threading.Condition()

    def rpc_method(self, kind: str, service: str, method: str) -> "RecordingMethodObserver":
        return RecordingMethodObserver(self, kind, service, method)

    def add(self, method: str, code: str) -> None:
        with self._more:
            self.handled.append((method, code))
            self._more.notify_all()

    def wait_for(self, method: str, *codes: str) -> None:
        with self._more:
            assert self._more.wait_for(lambda: any((method, code) in self.handled for code in codes), timeout=10), self.handled


class RecordingMethodObserver:
    def __init__(self, seen: RecordingObserver, kind: str, service: str, method: str) -> None:
        self._seen, self._kind, self._service, self._method = seen, kind, service, method

    def started(self) -> None:
        self._seen.started.append(f"{self._kind} {self._service}/{self._method}")

    def handled(self, code: str, seconds: float, trace: TraceContext | None) -> None:
        assert 0 <= seconds < 60
        self._seen.add(self._method, code)


class Service:
    """Methods that use every operation of rpc/call.py."""

    def __init__(self) -> None:
        self.calls: list[UnaryCall] = []
        self.cancelled = threading.Event()
        self.kept = threading.Event()
        self.kept_by_value: dict[bytes, UnaryCall] = {}
        self.received = 0
        self.permits = threading.Semaphore(0)
        self.idle_calls = 0
        self.wanted = math.inf
        self.idle_threads: set[str] = set()
        self.bursts: list[BurstReceiver] = []

    def on_idle(self) -> float:
        self.idle_calls += 1
        for burst in self.bursts:
            burst.on_idle()
        self.idle_threads.add(threading.current_thread().name)
        wanted, self.wanted = self.wanted, math.inf
        return wanted

    def methods(self) -> list[Method]:
        return [
            Unary("/t.T/Echo", BytesValue, self.echo),
            Unary("/t.T/Later", BytesValue, self.later),
            Unary("/t.T/Race", BytesValue, self.race),
            Unary("/t.T/Keep", BytesValue, self.keep),
            Unary("/t.T/Fail", BytesValue, self.fail),
            Unary("/t.T/Metadata", BytesValue, self.metadata),
            Unary("/t.T/Remaining", BytesValue, self.remaining),
            Stream("/t.T/EchoStream", BytesValue, lambda call: EchoReceiver(self, call), "bidi_stream"),
            Stream("/t.T/Count", BytesValue, CountReceiver, "server_stream"),
            Stream("/t.T/Burst", BytesValue, lambda call: BurstReceiver(self, call), "server_stream"),
            Stream("/t.T/Broken", BytesValue, BrokenReceiver, "bidi_stream"),
        ]

    def echo(self, request: BytesValue, call: UnaryCall) -> None:
        assert call.reply(request.SerializeToString())
        assert not call.reply(b"")
        assert not call.fail(errors.ModelFailed("too late"))

    def later(self, request: BytesValue, call: UnaryCall) -> None:
        threading.Timer(0.02, lambda: call.reply(request.SerializeToString())).start()

    def race(self, request: BytesValue, call: UnaryCall) -> None:
        """Many threads want to answer; one wins."""
        start = threading.Barrier(9)
        won: list[bool] = []

        def answer(index: int) -> None:
            start.wait()
            won.append(call.reply(request.SerializeToString()) if index % 2 else call.fail(errors.ModelFailed("lost")))

        threads = [threading.Thread(target=answer, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        start.wait()
        for thread in threads:
            thread.join()
        assert sum(won) == 1

    def keep(self, request: BytesValue, call: UnaryCall) -> None:
        self.calls.append(call)
        self.kept_by_value[request.value] = call
        call.on_cancelled(self.cancelled.set)
        self.kept.set()

    def fail(self, request: BytesValue, call: UnaryCall) -> None:
        raise ERRORS[request.value.decode()]

    def metadata(self, request: BytesValue, call: UnaryCall) -> None:
        call.initial_metadata = (("x-answer", "42"), ("x-raw-bin", b"\x00\xff"))
        if request.value == b"fail":
            raise errors.NotFound("but greeted")
        call.reply(
            BytesValue(
                value=repr(sorted((key, value) for key, value in call.metadata if key.startswith("x-"))).encode()
            ).SerializeToString()
        )

    def remaining(self, request: BytesValue, call: UnaryCall) -> None:
        call.reply(BytesValue(value=str(call.deadline - time.monotonic()).encode()).SerializeToString())


class EchoReceiver:
    """Answers each message; asks for the next when the answer is out and the test permits."""

    def __init__(self, service: Service, call: StreamCall) -> None:
        self._service, self._call = service, call
        call.on_cancelled(service.cancelled.set)
        call.receive()

    def on_message(self, request: BytesValue) -> None:
        self._service.received += 1
        if request.value == b"hold":
            return
        self._call.send(request.SerializeToString(), sent=self._call.receive)

    def on_half_close(self) -> None:
        self._call.finish()


class CountReceiver:
    """Sends as many messages as it is told, from another thread, all at once."""

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        call.receive()

    def on_message(self, request: BytesValue) -> None:
        def count() -> None:
            self._call.initial_metadata = (("x-count", request.value.decode()),)
            for number in range(int(request.value)):
                self._call.send(BytesValue(value=str(number).encode()).SerializeToString())
            self._call.finish()

        threading.Thread(target=count).start()

    def on_half_close(self) -> None:
        raise AssertionError("was not asked for")


class BurstReceiver:
    """Sends as many messages as it is told, all at once, when the transport is idle; then how often it was idle meanwhile."""

    def __init__(self, service: Service, call: StreamCall) -> None:
        self._call = call
        self._count = self._sent = self._idle_calls = 0
        service.bursts.append(self)
        call.receive()

    def on_message(self, request: BytesValue) -> None:
        self._count = int(request.value)

    def on_half_close(self) -> None:
        raise AssertionError("was not asked for")

    def on_idle(self) -> None:
        if self._sent < self._count:
            self._idle_calls += 1
        if self._idle_calls == 1:
            for _ in range(self._count):
                self._call.send(b"", self.sent)

    def sent(self) -> None:
        self._sent += 1
        if self._sent == self._count:
            self._call.send(BytesValue(value=str(self._idle_calls).encode()).SerializeToString())
            self._call.finish()


class BrokenReceiver:
    def __init__(self, call: StreamCall) -> None:
        call.receive()

    def on_message(self, request: BytesValue) -> None:
        raise RuntimeError("secret path /etc/passwd")

    def on_half_close(self) -> None:
        raise AssertionError("was not asked for")


ERRORS: dict[str, Exception] = {
    "INVALID_ARGUMENT": errors.InvalidRequest("no good", "items[3].encoded"),
    "NOT_FOUND": errors.NotFound("served are: a, b"),
    "RESOURCE_EXHAUSTED": errors.QueueFull("full", retry_after_seconds=0.25),
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded("late"),
    "CANCELLED": errors.Cancelled("cancelled"),
    "UNAVAILABLE": errors.Unavailable("draining", retry_after_seconds=2),
    "UNIMPLEMENTED": errors.Unimplemented("not here"),
    "INTERNAL": errors.ModelFailed("it failed"),
    "bug": RuntimeError("secret path /etc/passwd"),
}
