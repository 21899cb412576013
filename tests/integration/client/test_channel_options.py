"""The effect of the client's channel options that no other test shows: gRPC ignores the name of one that it does not know.

Where the effect is a time, it is made short here, or so long that gRPC's own default is told from it.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from service.client import CallFailed, Client, connection
from service.client.connection import MAX_RETRIED_BYTES, ChannelSettings
from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.integration.client.test_stream import _Stopping
from tests.integration.http2 import ACK, HEADERS, PING, Frame, Http2


class Connections:
    """Accepts connections, notes when they came, and closes each at once unless it is to be kept."""

    def __init__(self, *, keep: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.at = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.times: list[float] = []
        self._kept: list[socket.socket] = []
        self._keep = keep
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> "Connections":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for each in self._kept:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            if self._keep:
                self._kept.append(accepted)
            else:
                accepted.close()
            with self._more:
                self.times.append(time.monotonic())
                self._more.notify_all()

    def wait_for(self, count: int, seconds: float) -> bool:
        """Waits until `count` connections have come; false if they have not after `seconds`."""
        with self._more:
            return self._more.wait_for(lambda: len(self.times) >= count, seconds)


@contextlib.contextmanager
def connecting(server: str) -> Iterator[None]:
    """A client's channel that tries to connect all the time."""
    with ChannelSettings(server, None, None, None).channel(grpc) as channel:
        channel.subscribe(lambda _: None, try_to_connect=True)
        yield


def test_the_first_attempts_to_connect_have_a_pause_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "INITIAL_BACKOFF_MS", 2_000)  # more or less a fifth; gRPC's own is 1,000
    with Connections(keep=False) as server, connecting(server.at):
        assert server.wait_for(2, 30)
        assert server.times[1] - server.times[0] > 1.4


def test_the_pause_between_attempts_to_connect_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_BACKOFF_MS", connection.INITIAL_BACKOFF_MS)
    with Connections(keep=False) as server, connecting(server.at):
        assert server.wait_for(16, 60), "these take two seconds; two minutes with gRPC's own limit of two minutes"


def test_an_attempt_to_connect_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_MS", 200)  # gRPC's own is 20,000
    with Connections(keep=True) as server, connecting(server.at):
        assert server.wait_for(2, 12)


def test_a_quiet_call_is_pinged_for_as_long_as_it_lasts_and_fails_when_nothing_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEPALIVE_MS", 100)  # gRPC pings once a second at most
    monkeypatch.setattr(connection, "PING_TIMEOUT_MS", 500)  # gRPC's own is 60,000
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        with ChannelSettings(f"127.0.0.1:{listener.getsockname()[1]}", None, None, None).channel(grpc) as channel:
            call = channel.unary_unary("/convoy.v1.Classifier/ClassifyStream").future(b"", timeout=60)
            accepted, _ = listener.accept()
            with Http2(accepted, client=False) as server:
                assert server.receive_until(lambda frame: frame.kind == HEADERS)
                for number in range(3):  # by default the third one waits for a minute
                    ping = server.receive_until(lambda frame: frame.kind == PING and not frame.flags & ACK)
                    assert ping is not None
                    if number < 2:
                        server.send(Frame(PING, ACK, 0, ping.payload))
                assert server.receive_until(lambda _: False) is None
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert "ping" in call.details().lower()


class Answering:
    """A server whose Classify does what a test wants."""

    def __init__(self, classify: Callable[[pb.ClassifyRequest, grpc.ServicerContext], pb.ClassifyResponse]) -> None:
        self._server = grpc.server(ThreadPoolExecutor(50))
        handler = grpc.unary_unary_rpc_method_handler(
            classify, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("convoy.v1.Classifier", {"Classify": handler})])
        self.at = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> "Answering":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()


def test_an_answer_may_be_larger_than_grpcs_default_limit() -> None:
    with Answering(lambda *_: pb.ClassifyResponse(id="x" * (5 << 20))) as server, Client(server.at) as client:
        assert client.classify([b""], "digits").results == []


def test_a_large_request_is_sent_again_too() -> None:
    picture = bytes(MAX_RETRIED_BYTES - 1000)  # gRPC keeps 256 KiB by default
    with _Stopping(1) as server, Client(server.at) as client:
        assert client.classify([picture], "digits").results == []


def test_where_most_calls_fail_few_are_sent_again() -> None:
    calls: list[Any] = []

    def fail(request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        calls.append(request)
        context.abort(grpc.StatusCode.UNAVAILABLE, "no")
        raise AssertionError("abort returned")

    with Answering(fail) as server, Client(server.at) as client, ThreadPoolExecutor(40) as pool:
        failed = [pool.submit(client.classify, [b""], "digits") for _ in range(40)]
        for each in failed:
            with pytest.raises(CallFailed, match="UNAVAILABLE"):
                each.result(timeout=60)
    assert 40 < len(calls) < 120, "without a limit it would be 160: four attempts each"
