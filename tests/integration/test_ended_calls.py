"""Messages in the parsing pool whose calls have ended: they leave nothing behind, and do not hinder a stop."""

import asyncio
import contextlib
import gzip
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from service.requests.byte_budget import ByteBudget
from service.rpc import message_parsing
from service.rpc.aio_server import AioServer
from service.rpc.call import Call
from service.rpc.compression import unfold
from service.rpc.message_parsing import Parsed
from service.rpc.transport import Options, Transport
from tests.integration.test_letting_go import left_behind
from tests.integration.test_repository import eventually
from tests.integration.transport_service import Kind, RecordingObserver, Service

MIB = 1024 * 1024
BOMB = gzip.compress(bytes(20 * MIB))
LARGE = BytesValue(value=bytes(2 * MIB)).SerializeToString()
PATHS = {"unary": "/t.T/Echo", "stream": "/t.T/EchoStream"}


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(64 * MIB)


@pytest.fixture
def transport(kind: Kind, budget: ByteBudget, seen: RecordingObserver) -> Iterator[Transport]:
    transport = kind(Options(["127.0.0.1"], 0, 8 * MIB, Service().methods(), seen, lambda: math.inf, budget=budget))
    transport.start()
    yield transport
    transport.stop(0)


@contextlib.contextmanager
def calls_to(transport: Transport, path: str) -> Iterator[Any]:
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{transport.port}", options) as channel:
        method: Any = channel.stream_stream(path)
        yield lambda message: method(iter([message]), timeout=30)


@pytest.mark.parametrize("way", PATHS)
def test_a_refused_message_of_a_call_that_has_ended_is_freed(
    transport: Transport, budget: ByteBudget, seen: RecordingObserver, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = threading.Semaphore(0), threading.Event()

    def unfold_later(*arguments: Any) -> bytes | None:
        begun.release()
        assert cancelled.wait(20)
        return unfold(*arguments)

    monkeypatch.setattr(message_parsing, "unfold", unfold_later)

    def ask() -> None:
        cancelled.clear()
        ended = len(seen.handled)
        with calls_to(transport, PATHS[way]) as send:
            call = send(BOMB)
            assert begun.acquire(timeout=20)
            call.cancel()
            eventually(lambda: len(seen.handled) == ended + 1)
            cancelled.set()
            eventually(lambda: budget.in_flight_bytes == 0)

    assert {name for name in left_behind(ask) if "parse" in name or name in ("TooLarge", "Parsed")} == set()


STOPPING = """
import gzip, math, sys, threading, time
import grpc
from service.requests.byte_budget import ByteBudget
from service.rpc import message_parsing
from service.rpc.aio_server import AioServer
from service.rpc.completion_queue import CompletionQueueServer
from service.rpc.transport import Options
from tests.integration.transport_service import RecordingObserver, Service

begun, go = threading.Semaphore(0), threading.Event()

def unfold(*arguments):
    begun.release()
    assert go.wait(30)

message_parsing.unfold = unfold
budget, seen = ByteBudget(2**30), RecordingObserver()
kind = {"fast": CompletionQueueServer, "public": AioServer}[sys.argv[1]]
transport = kind(Options(["127.0.0.1"], 0, 2**23, Service().methods(), seen, lambda: math.inf, budget=budget))
transport.start()
with grpc.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
    calls = [channel.unary_unary("/t.T/Echo").future(gzip.compress(bytes(100)), timeout=30) for _ in range(8)]
    for _ in range(2):
        assert begun.acquire(timeout=30)
    while len(seen.started) < 8:
        time.sleep(0.01)
    for call in calls:
        call.cancel()
    while len(seen.handled) < 8:
        time.sleep(0.01)
stopping = threading.Thread(target=transport.stop, args=(5,))
stopping.start()
stopping.join(0.5)
go.set()
stopping.join(30)
print(stopping.is_alive(), budget.in_flight_bytes)
"""


@pytest.mark.parametrize("name", ["fast", "public"])
def test_a_stop_while_messages_of_ended_calls_are_in_the_pool_is_clean(name: str) -> None:
    result = subprocess.run([sys.executable, "-c", STOPPING, name], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "False 0\n"), result.stderr


class ParseAndCancel:
    """A transport's parser, which cancels a call's task as soon as it is given its message."""

    def __init__(self, transport: AioServer) -> None:
        self._parser = transport._parser
        self._loop = transport._loop
        self.passed_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def parse_in_pool(self, call: Call, message: bytes, on_done: Callable[[Parsed], None]) -> None:
        task: Any = asyncio.current_task()

        def done(parsed: Parsed) -> None:
            on_done(parsed)
            task.cancel()  # before it goes on with what it has just been given
            self.passed_on.set()

        def on_loop(parsed: Parsed) -> None:
            self._loop.call_soon_threadsafe(done, parsed)

        self._parser.parse_in_pool(call, message, on_loop)


@pytest.mark.parametrize("way", PATHS)
def test_a_call_cancelled_just_as_its_message_is_parsed_gives_the_bytes_back(budget: ByteBudget, way: str) -> None:
    transport = AioServer(
        Options(["127.0.0.1"], 0, 8 * MIB, Service().methods(), RecordingObserver(), lambda: math.inf, budget=budget)
    )
    transport.start()
    cancelling = ParseAndCancel(transport)
    transport._parser = cancelling  # type: ignore[assignment]
    try:
        with calls_to(transport, PATHS[way]) as send:
            call = send(LARGE)
            assert cancelling.passed_on.wait(20)
            call.cancel()
        eventually(lambda: budget.in_flight_bytes == 0)
    finally:
        transport.stop(0)
