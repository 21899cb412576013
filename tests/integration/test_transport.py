"""The rules of rpc/call.py on a real transport, with grpcio's own client."""

import asyncio
import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.wrappers_pb2 import BytesValue
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service import errors
from service.requests.principal import Principal
from service.rpc.aio_server import AioServer
from service.rpc.c_core import unavailable_reason
from service.rpc.call import Method, Stream, StreamCall, Unary, UnaryCall
from service.rpc.completion_queue import CompletionQueueServer
from service.rpc.transport import Options, Transport
from service.tls_files import Tls
from tests.benchmarks.leaks import half_a_call
from tests.integration.transport_service import ERRORS, LIMIT, Kind, RecordingObserver, Service


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def transport(kind: Kind, service: Service, seen: RecordingObserver) -> Iterator[Transport]:
    transport = kind(Options(["127.0.0.1"], 0, LIMIT, service.methods(), seen, service.on_idle))
    transport.start()
    yield transport
    transport.stop(0)


Unaries = Callable[[str], Any]  # grpc's callables, which their stubs type too narrowly for messages as bytes


@pytest.fixture
def channel(transport: Transport) -> Iterator[Any]:
    options = [("grpc.enable_retries", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{transport.port}", options) as channel:
        yield channel


@pytest.fixture
def unary(channel: Any) -> Unaries:
    return lambda name: channel.unary_unary(f"/t.T/{name}", BytesValue.SerializeToString, BytesValue.FromString)


def stream(channel: Any, name: str) -> Any:
    return channel.stream_stream(f"/t.T/{name}", BytesValue.SerializeToString, BytesValue.FromString)


@pytest.mark.parametrize("name", ["Echo", "Later"])
def test_a_unary_call_is_answered_at_once_or_later_from_another_thread(unary: Unaries, seen: RecordingObserver, name: str) -> None:
    assert unary(name)(BytesValue(value=b"hello"), timeout=10).value == b"hello"
    seen.wait_for(name, "OK")
    assert seen.started == [f"unary t.T/{name}"]
    assert seen.handled == [(name, "OK")]


def test_many_calls_in_flight_each_get_their_own_answer(unary: Unaries, seen: RecordingObserver) -> None:
    futures = [unary("Later").future(BytesValue(value=str(i).encode()), timeout=20) for i in range(200)]
    assert [future.result().value for future in futures] == [str(i).encode() for i in range(200)]
    assert seen.handled.count(("Later", "OK")) == 200


def test_of_many_answers_one_wins(unary: Unaries, seen: RecordingObserver) -> None:
    for _ in range(20):
        future = unary("Race").future(BytesValue(value=b"x"), timeout=10)
        assert future.code() in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL)
    assert len(seen.handled) == 20


@pytest.mark.parametrize("code", [name for name in ERRORS if name != "bug"])
def test_every_error_has_its_status_and_detail(unary: Unaries, seen: RecordingObserver, code: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary("Fail")(BytesValue(value=code.encode()), timeout=10)
    assert caught.value.code().name == code
    assert caught.value.details() == str(ERRORS[code])
    seen.wait_for("Fail", code)
    error: Any = caught.value
    status = rpc_status.from_call(error)
    trailing = dict(error.trailing_metadata())
    if code == "INVALID_ARGUMENT":
        detail = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(detail)
        assert [(v.field, v.description) for v in detail.field_violations] == [("items[3].encoded", "no good")]
    elif code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
        retry = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == int(trailing["grpc-retry-pushback-ms"]) in (250, 2000)
    else:
        assert status is None
        assert "grpc-retry-pushback-ms" not in trailing


def test_a_bug_is_internal_and_keeps_its_text_to_itself(unary: Unaries, channel: Any, caplog: pytest.LogCaptureFixture) -> None:
    for attempt in (
        lambda: unary("Fail")(BytesValue(value=b"bug"), timeout=10),
        lambda: list(stream(channel, "Broken")(iter([BytesValue()]), timeout=10)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            attempt()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(caught.value.details())
    assert "secret path" in caplog.text
    assert unary("Echo")(BytesValue(value=b"still here"), timeout=10).value == b"still here"


def test_a_malformed_message_is_an_invalid_argument(channel: Any, seen: RecordingObserver) -> None:
    for call in (
        lambda: channel.unary_unary("/t.T/Echo")(b"\xff\xff\xff", timeout=10),
        lambda: list(channel.stream_stream("/t.T/EchoStream")(iter([b"\xff\xff\xff"]), timeout=10)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "google.protobuf.BytesValue" in str(caught.value.details())


def test_an_unknown_method_is_unimplemented_and_no_label(unary: Unaries, seen: RecordingObserver) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary("Nope")(BytesValue(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert seen.started == []


def test_a_message_above_the_limit_is_refused_and_the_next_call_is_answered(unary: Unaries) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary("Echo")(BytesValue(value=b"x" * (LIMIT + 1)), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unary("Echo")(BytesValue(value=b"x" * (LIMIT - 100)), timeout=10).value == b"x" * (LIMIT - 100)


def test_metadata_and_deadline_reach_the_handler(unary: Unaries) -> None:
    answer = unary("Metadata")(BytesValue(), timeout=10, metadata=(("x-a", "1"), ("x-b-bin", b"\x00\xff")))
    assert answer.value == b"[('x-a', '1'), ('x-b-bin', b'\\x00\\xff')]"
    assert 5 < float(unary("Remaining")(BytesValue(), timeout=10).value) < 11  # gRPC rounds timeouts up
    assert unary("Remaining")(BytesValue()).value == b"inf"


def test_a_handlers_initial_metadata_goes_ahead_of_its_answer(unary: Unaries, channel: Any) -> None:
    greeting = {("x-answer", "42"), ("x-raw-bin", b"\x00\xff")}
    _, call = unary("Metadata").with_call(BytesValue(), timeout=10)
    assert greeting <= {(key, value) for key, value in call.initial_metadata()}
    with pytest.raises(grpc.RpcError) as caught:
        unary("Metadata")(BytesValue(value=b"fail"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    refused: Any = caught.value
    assert greeting <= {(key, value) for key, value in refused.initial_metadata()}
    for messages in (3, 0):
        stream = channel.unary_stream("/t.T/Count", BytesValue.SerializeToString)(BytesValue(value=b"%d" % messages), timeout=10)
        assert ("x-count", str(messages)) in {(key, value) for key, value in stream.initial_metadata()}
        assert len(list(stream)) == messages


def test_a_cancelled_call_tells_its_handler_and_drops_the_late_answer(
    unary: Unaries, service: Service, seen: RecordingObserver
) -> None:
    future = unary("Keep").future(BytesValue(), timeout=10)
    assert service.kept.wait(10)
    future.cancel()
    assert service.cancelled.wait(10)
    assert not service.calls[0].reply(b"")
    assert service.calls[0].ended
    seen.wait_for("Keep", "CANCELLED")


def test_a_deadline_tells_the_handler(unary: Unaries, service: Service, seen: RecordingObserver) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary("Keep")(BytesValue(), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.cancelled.wait(10)
    seen.wait_for("Keep", "DEADLINE_EXCEEDED", "CANCELLED")  # by the server's clock, or by the client's, which leaves at its own


def test_a_broken_connection_tells_the_handler(transport: Transport, service: Service) -> None:
    channel: Any = grpc.insecure_channel(f"127.0.0.1:{transport.port}")
    running = channel.unary_unary("/t.T/Keep").future(b"")
    assert service.kept.wait(10)
    channel.close()
    assert running.code() is grpc.StatusCode.CANCELLED
    assert service.cancelled.wait(10)


def test_a_call_without_a_message_is_refused(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary("/t.T/Echo")(iter(()), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_connection_that_breaks_inside_a_message_is_a_cancelled_call(transport: Transport, seen: RecordingObserver) -> None:
    connection = socket.create_connection(("127.0.0.1", transport.port))
    connection.sendall(half_a_call("/t.T/Echo", b"x" * 100))
    deadline = time.monotonic() + 10
    while not seen.started and time.monotonic() < deadline:
        time.sleep(0.01)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    seen.wait_for("Echo", "CANCELLED")
    assert seen.handled == [("Echo", "CANCELLED")]
    with grpc.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        assert echo_on(channel, b"x") == b"x"


def test_a_stream_answers_each_message_in_order_and_ends_after_the_half_close(channel: Any, seen: RecordingObserver) -> None:
    sent = [BytesValue(value=str(i).encode()) for i in range(300)]
    assert list(stream(channel, "EchoStream")(iter(sent), timeout=20)) == sent
    seen.wait_for("EchoStream", "OK")


def test_messages_sent_all_at_once_go_out_in_order_before_the_status(channel: Any, seen: RecordingObserver) -> None:
    call = channel.unary_stream("/t.T/Count", BytesValue.SerializeToString, BytesValue.FromString)
    assert [int(message.value) for message in call(BytesValue(value=b"500"), timeout=20)] == list(range(500))
    seen.wait_for("Count", "OK")


def test_messages_sent_all_at_once_do_not_take_a_round_each(channel: Any) -> None:
    *messages, last = stream(channel, "Burst")(iter([BytesValue(value=b"64")]), timeout=20)
    assert messages == [BytesValue()] * 64
    assert int(last.value) < 32


def test_a_stream_that_does_not_ask_for_more_is_not_given_more(channel: Any, service: Service) -> None:
    messages = iter([BytesValue(value=b"hold")] + [BytesValue(value=b"x" * 10_000)] * 50)
    call = stream(channel, "EchoStream")(messages, timeout=20)
    deadline = time.monotonic() + 5
    while service.received == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert service.received == 1
    call.cancel()
    assert service.cancelled.wait(10)


def test_a_slow_reader_holds_the_stream_up_not_the_server(channel: Any, unary: Unaries) -> None:
    """20 MB of answers that nobody reads: the messages wait in HTTP/2's window, other calls are answered."""
    sent = [BytesValue(value=b"x" * 100_000)] * 200
    answers = stream(channel, "EchoStream")(iter(sent), timeout=60)
    assert next(answers) == sent[0]
    assert unary("Echo")(BytesValue(value=b"in between"), timeout=10).value == b"in between"
    assert sum(1 for _ in answers) == 199


def test_on_idle_is_called_after_calls_and_at_the_time_it_asked_for(unary: Unaries, service: Service) -> None:
    service.wanted = time.monotonic() + 0.1
    unary("Echo")(BytesValue(), timeout=10)
    deadline = time.monotonic() + 5
    while service.idle_calls < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.idle_calls >= 2
    assert len(service.idle_threads) == 1
    assert threading.current_thread().name not in service.idle_threads


def test_the_public_transport_is_idle_once_for_messages_in_a_row(service: Service, seen: RecordingObserver) -> None:
    transport = AioServer(Options(["127.0.0.1"], 0, LIMIT, service.methods(), seen, service.on_idle))
    transport.start()

    async def messages() -> int:
        before = service.idle_calls
        for _ in range(20):
            transport._check_idle_soon()
            await asyncio.sleep(0)
        during = service.idle_calls - before
        await asyncio.sleep(0.2)
        assert service.idle_calls - before == 1
        return during

    try:
        assert asyncio.run_coroutine_threadsafe(messages(), transport._loop).result(20) == 0
    finally:
        transport.stop(0)


def test_stop_finishes_open_calls_and_refuses_new_ones(unary: Unaries, service: Service, transport: Transport) -> None:
    running = unary("Keep").future(BytesValue(), timeout=10)
    assert service.kept.wait(10)
    stopping = threading.Thread(target=transport.stop, args=(10,))
    stopping.start()
    time.sleep(0.2)
    with pytest.raises(grpc.RpcError) as caught:
        unary("Echo")(BytesValue(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert stopping.is_alive()
    service.calls[0].reply(BytesValue(value=b"finished").SerializeToString())
    assert running.result().value == b"finished"
    stopping.join(10)
    assert not stopping.is_alive()


def test_stop_cancels_what_is_left_after_the_grace(unary: Unaries, service: Service, transport: Transport) -> None:
    running = unary("Keep").future(BytesValue(), timeout=10)
    assert service.kept.wait(10)
    start = time.monotonic()
    transport.stop(0.3)
    assert 0.2 < time.monotonic() - start < 8
    assert running.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
    assert service.cancelled.wait(10)


def test_the_grace_may_end_while_the_last_call_ends(service: Service, seen: RecordingObserver) -> None:
    class Watched:
        """C core's server. Its `cancel_all_calls` lasts until the transport's thread has taken the end of the last call."""

        cancelling = False

        def __init__(self, core: Any) -> None:
            self._core = core

        def __getattr__(self, name: str) -> Any:
            assert name != "destroy" or not self.cancelling, "the server is freed while it is in use"
            return getattr(self._core, name)

        def cancel_all_calls(self) -> None:
            self.cancelling = True
            self._core.cancel_all_calls()
            running._serving.join(20)
            self.cancelling = False

    running = CompletionQueueServer(Options(["127.0.0.1"], 0, LIMIT, service.methods(), seen, service.on_idle))
    running.start()
    running._server = watched = Watched(running._server)
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call: Any = channel.unary_unary("/t.T/Keep", BytesValue.SerializeToString)
        waiting = call.future(BytesValue(), timeout=20)
        assert service.kept.wait(10)
        running.stop(0.01)
        assert waiting.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert not running._serving.is_alive()
    assert not watched.cancelling


def test_a_port_in_use_is_a_clear_error(kind: Kind, transport: Transport) -> None:
    second = kind(Options(["127.0.0.1"], transport.port, LIMIT, [], RecordingObserver(), lambda: math.inf))
    with pytest.raises(errors.UserError, match=f"127.0.0.1:{transport.port}: the port is in use"):
        second.start()


class Proxy:
    """Forwards TCP connections to a port, and counts them and the bytes that go there and come back."""

    def __init__(self, port: int, own_port: int = 0) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", own_port))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.asked_bytes = 0
        self.answered_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.ExitStack() as stack:
            try:
                far = stack.enter_context(socket.create_connection(("127.0.0.1", self._target)))
            except ConnectionRefusedError:  # the server has ended, and a client tries again
                return
            there = threading.Thread(target=self._copy, args=(near, far, False), daemon=True)
            there.start()
            self._copy(far, near, True)
            there.join()

    def _copy(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.answered_bytes += len(data) * answers
                self.asked_bytes += len(data) * (not answers)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


Start = Callable[..., Transport]


@pytest.fixture
def start(kind: Kind, service: Service, seen: RecordingObserver) -> Iterator[Start]:
    """Starts transports with options of a test's own."""
    started: list[Transport] = []

    def begin(**options: Any) -> Transport:
        transport = kind(Options(["127.0.0.1"], 0, LIMIT, service.methods(), seen, service.on_idle, **options))
        transport.start()
        started.append(transport)
        return transport

    yield begin
    for transport in started:
        transport.stop(0)


def echo_on(channel: Any, value: bytes, **options: Any) -> bytes:
    call = channel.unary_unary("/t.T/Echo", BytesValue.SerializeToString, BytesValue.FromString)
    answer: bytes = call(BytesValue(value=value), timeout=10, **options).value
    return answer


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_replies_are_compressed_as_asked_and_requests_as_they_come(start: Start, compression: str) -> None:
    proxy = Proxy(start(compression=compression).port)
    value = b"x" * 100_000
    with grpc.insecure_channel(f"127.0.0.1:{proxy.port}", compression=grpc.Compression.Gzip) as channel:
        assert echo_on(channel, value) == value
    proxy.close()
    assert (proxy.answered_bytes > 100_000) == (compression == "none")


def test_a_connection_that_is_old_is_replaced_without_a_failed_call(start: Start) -> None:
    proxy = Proxy(start(arguments=[("grpc.max_connection_age_ms", 200)]).port)
    with grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
        deadline = time.monotonic() + 10
        while proxy.connections < 3 and time.monotonic() < deadline:
            assert echo_on(channel, b"x", wait_for_ready=True) == b"x"
    proxy.close()
    assert proxy.connections >= 3


def test_tls_and_mutual_tls(start: Start) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("client@example.com")
    certificate, key = b"".join(blob.bytes() for blob in server.cert_chain_pems), server.private_key_pem.bytes()
    ca = authority.cert_pem.bytes()
    own = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    trusting, doubting = grpc.ssl_channel_credentials(ca), grpc.ssl_channel_credentials(stranger.cert_pem.bytes())
    known = grpc.ssl_channel_credentials(ca, *own)

    def attempt(port: int, credentials: grpc.ChannelCredentials) -> str:
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            try:
                return echo_on(channel, b"secret").decode()
            except grpc.RpcError as error:
                refused: Any = error
                return str(refused.code().name)

    plain_tls = start(tls=Tls(certificate, key)).port
    assert [attempt(plain_tls, credentials) for credentials in (trusting, known, doubting)] == ["secret", "secret", "UNAVAILABLE"]
    mutual = start(tls=Tls(certificate, key, ca)).port
    assert [attempt(mutual, credentials) for credentials in (known, trusting)] == ["secret", "UNAVAILABLE"]


def test_the_fast_transport_works_with_the_grpcio_that_is_installed() -> None:
    assert unavailable_reason() == ""


class OrderedService:
    """Records whose messages it handles, each of which takes a moment."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def methods(self) -> list[Method]:
        return [
            Unary("/t.T/Slow", BytesValue, self.slow),
            Stream("/t.T/SlowStream", BytesValue, lambda call: OrderedReceiver(self, call), "bidi_stream"),
        ]

    def slow(self, request: BytesValue, call: UnaryCall) -> None:
        self.handle(request)
        call.reply(request.SerializeToString())

    def handle(self, request: BytesValue) -> None:
        time.sleep(0.005)
        self.order.append(request.value.decode())


class OrderedReceiver:
    def __init__(self, service: OrderedService, call: StreamCall) -> None:
        self._service, self._call = service, call
        call.receive()

    def on_message(self, request: BytesValue) -> None:
        self._call.receive()
        self._service.handle(request)

    def on_half_close(self) -> None:
        self._call.finish()


@pytest.mark.parametrize("way", ["unary", "stream"])
def test_one_principal_does_not_wait_behind_the_calls_of_another(kind: Kind, seen: RecordingObserver, way: str) -> None:
    service = OrderedService()
    options = Options(
        ["127.0.0.1"], 0, LIMIT, service.methods(), seen, lambda: math.inf,
        principal_of=lambda _, metadata: Principal("address", dict(metadata)["x-who"]),  # type: ignore[arg-type]
    )  # fmt: skip
    transport = kind(options)
    transport.start()
    greedy, polite = [("x-who", "greedy")], [("x-who", "polite")]
    count = 100
    try:
        with grpc.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
            call: Any = channel.unary_unary("/t.T/Slow", BytesValue.SerializeToString, BytesValue.FromString)
            for who in (greedy, polite):
                call(BytesValue(value=b"first"), metadata=who, timeout=30)
            if way == "unary":
                pending = [call.future(BytesValue(value=b"greedy"), metadata=greedy, timeout=30) for _ in range(count)]
            else:
                messages = [BytesValue(value=b"greedy")] * (count // 10)
                pending = [stream(channel, "SlowStream")(iter(messages), metadata=greedy, timeout=30) for _ in range(10)]
            while "greedy" not in service.order:
                time.sleep(0.001)
            call(BytesValue(value=b"polite"), metadata=polite, timeout=30)
            passed = len(service.order)
            for each in pending:
                assert each.result() if way == "unary" else list(each) == []
    finally:
        transport.stop(0)
    assert service.order.count("greedy") == count
    assert passed < count, "it was answered before the calls that had come before it"
