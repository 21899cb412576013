"""Memory that is lacking somewhere on the path of a call fails that call at most: the next one is answered, or the process ends."""

import contextlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from service.rpc.aio_server import AioServer
from service.rpc.completion_queue import REQUESTED_CALLS, CompletionQueueServer
from service.rpc.transport import Options, Transport
from tests.builds import pure_only
from tests.integration.transport_service import RecordingObserver, Service

CALLS = REQUESTED_CALLS + 6
"""So many times memory is lacking: after fewer the server might still have requested calls left."""


class Lacking:
    """An object, but one function of it has no memory the first CALLS times, once armed."""

    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name = inner, name
        self.left = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial_lacking(self, found) if name == self._name else found


def partial_lacking(lacking: Lacking, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if lacking.left > 0:
            lacking.left -= 1
            raise MemoryError
        return function(*arguments, **named)

    return call


Place = tuple[type[Transport], str, str]
REPLACEABLE: list[Place] = [
    (CompletionQueueServer, "_server", "request_call"),
    (AioServer, "_parser", "parse"),
    (AioServer, "_parser", "parse_in_pool"),
    (AioServer, "_arrivals", "overdue"),
]
OF_ITS_CLASS: list[Place] = [
    (CompletionQueueServer, "parser", "parse"),
    (CompletionQueueServer, "parser", "parse_in_pool"),
    (CompletionQueueServer, "budget", "take"),
    (CompletionQueueServer, "arrivals", "overdue"),
]
PLACES = [
    *REPLACEABLE,
    *(pytest.param(place, marks=pure_only("what the compiled server has is of its own class")) for place in OF_ITS_CLASS),
]


@pytest.fixture(params=PLACES, ids=lambda place: f"{place[0].__name__}-{place[1]}.{place[2]}")
def started(request: pytest.FixtureRequest) -> Iterator[tuple[Transport, Lacking]]:
    kind, attribute, name = request.param
    service = Service()
    transport = kind(Options(["127.0.0.1"], 0, 8 << 20, service.methods(), RecordingObserver(), lambda: math.inf))
    if attribute != "_server":  # which is made by `start`
        setattr(transport, attribute, Lacking(getattr(transport, attribute), name))
    transport.start()
    if attribute == "_server":
        transport._server = Lacking(transport._server, name)
    yield transport, getattr(transport, attribute)
    transport.stop(0)


@pytest.mark.parametrize("path", ["/t.T/Echo", "/t.T/EchoStream"])
@pytest.mark.parametrize("shared", [False, True], ids=["", "in turns"])
def test_the_call_fails_and_the_next_is_answered(started: tuple[Transport, Lacking], path: str, shared: bool) -> None:
    transport, lacking = started
    turns: Any = getattr(transport, "turns" if transport.name == "fast" else "_turns")
    turns.shared, turns._shared_until = shared, math.inf
    with grpc.insecure_channel(f"127.0.0.1:{transport.port}", [("grpc.enable_retries", 0)]) as channel:
        method: Any = channel.stream_stream(path)

        def echo(message: bytes, timeout: float) -> bytes:
            [answer] = method(iter([message]), timeout=timeout)
            return bytes(answer)

        small, large = (BytesValue(value=bytes(size)).SerializeToString() for size in (10, 2 << 20))
        assert echo(small, timeout=20) == small
        lacking.left = CALLS
        for number in range(CALLS):
            with contextlib.suppress(grpc.RpcError):
                echo(large if number % 2 else small, timeout=20)
        lacking.left = 0
        for message in (small, large):
            assert echo(message, timeout=20) == message


LACKING_POLL = """
import math, threading
from types import SimpleNamespace
from grpc._cython import cygrpc
from service.process.logs import set_up_logging
from service.rpc import completion_queue
from service.rpc.transport import Options
from tests.integration.transport_service import RecordingObserver, Service

class Queue(cygrpc.CompletionQueue):
    def poll(self, deadline=None):
        raise MemoryError

cygrpc.CompletionQueue = Queue
completion_queue.CompletionQueueServer(
    Options(["127.0.0.1"], 0, 8 << 20, Service().methods(), RecordingObserver(), lambda: math.inf)
).start()
threading.Event().wait(60)
"""


def test_a_process_whose_poll_has_no_memory_ends() -> None:
    result = subprocess.run([sys.executable, "-c", LACKING_POLL], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1, result.stderr
