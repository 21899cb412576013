"""The budget of bytes in flight: what does not fit is refused, and all of it is there again however a request ends."""

import contextlib
import gzip
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.process.memory_limit import MemoryLimit
from service.requests.byte_budget import ByteBudget
from service.rpc.transport import MAX_METADATA_ENTRIES, Options
from service.server import Server
from tests.benchmarks.leaks import half_a_call
from tests.conftest import Serve, put
from tests.integration.test_repository import eventually
from tests.integration.transport_service import Kind, RecordingObserver, Service

MIB = 1024 * 1024
CLASSIFY, CLASSIFY_STREAM = "/convoy.v1.Classifier/Classify", "/convoy.v1.Classifier/ClassifyStream"
INFER, INFER_STREAM = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture
def server(repository: Path, slow_file: Path, serve: Serve) -> Server:
    """A server with the models `digits` and `slow`, and a small budget."""
    put(slow_file, repository, "slow", 1)
    (repository / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    return serve(repository, max_inflight_bytes=6 * MIB, max_message_bytes=5 * MIB)


def classify(model: str, data: bytes) -> bytes:
    return pb.ClassifyRequest(model=model, items=[pb.Item(pixels=data)]).SerializeToString()


def classify_in_stream(model: str, data: bytes) -> bytes:
    request = pb.ClassifyRequest(model=model, items=[pb.Item(pixels=data)])
    return pb.ClassifyStreamRequest(request=request).SerializeToString()


def infer(model: str, data: bytes) -> bytes:
    side = 2 if model == "slow" else 28
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, side, side, 1])
    return oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[data]).SerializeToString()


SURFACES: dict[str, Callable[[str, bytes], bytes]] = {
    CLASSIFY: classify, CLASSIFY_STREAM: classify_in_stream, INFER: infer, INFER_STREAM: infer,
}  # fmt: skip
PIXELS = {"digits": bytes(28 * 28), "slow": bytes(4)}


def send(channel: grpc.Channel, path: str, message: bytes, **options: Any) -> Any:
    """A call under way, with its one message. Of a unary call `result` is the answer, of a stream `list`."""
    if "Stream" in path:
        method: Any = channel.stream_stream(path)
        return method(iter([message]), timeout=30, **options)
    method = channel.unary_unary(path)
    return method.future(message, timeout=30, **options)


def ended(path: str, call: Any) -> None:
    """Waits for the end of a call, whatever it is."""
    with contextlib.suppress(grpc.RpcError):
        list(call) if "Stream" in path else call.result()


def test_nothing_of_the_budget_is_missing_however_a_request_ends(server: Server) -> None:
    for path in SURFACES:
        check_that_nothing_is_missing(server, path)


def check_that_nothing_is_missing(server: Server, path: str) -> None:
    budget, make = server._budget, SURFACES[path]
    messages = {
        "answered": make("digits", PIXELS["digits"]),
        "unknown model": make("none", PIXELS["digits"]),
        "wrong size": make("digits", bytes(100_000)),
        "large, in the pool": make("digits", bytes(2 * MIB)),
        "too many bytes": make("digits", bytes(5 * MIB - 1000)),
        "malformed": b"\xff" * 1000,
        "malformed and large": b"\xff" * 100_000,
        "malformed and in the pool": b"\xff" * 2 * MIB,
        "many fields": b"\x1a\x00" * 100_000,
        "compressed": gzip.compress(make("digits", PIXELS["digits"])),
        "a bomb": gzip.compress(bytes(100 * MIB)),
        "empty": b"",
    }
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.max_send_message_length", -1)]) as channel:
        for message in messages.values():
            calls = [send(channel, path, message) for _ in range(3)]
            for call in calls:
                ended(path, call)
            eventually(lambda: budget.in_flight_bytes == 0)
        for _ in range(5):  # cancelled while they wait, run, or arrive
            for call in [send(channel, path, make("slow", PIXELS["slow"])) for _ in range(2)]:
                call.cancel()
            send(channel, path, make("digits", bytes(2 * MIB))).cancel()
    eventually(lambda: budget.in_flight_bytes == 0)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:  # broken while they run
        send(channel, path, make("slow", PIXELS["slow"]))
    eventually(lambda: budget.in_flight_bytes == 0)


def test_a_request_that_does_not_fit_is_told_when_to_try_again(server: Server) -> None:
    for path in (CLASSIFY, INFER):
        for size in (1000, 100_000, 2 * MIB):
            check_that_it_is_told(server, path, size)


def check_that_it_is_told(server: Server, path: str, size: int) -> None:
    taken = server._budget.limit_bytes - 500
    assert server._budget.take(taken)
    message = SURFACES[path]("digits", bytes(size))
    options = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        error = send(channel, path, message).exception()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "--max-inflight-bytes" in error.details()
        [detail] = rpc_status.from_call(error).details
        retry = RetryInfo()
        assert detail.Unpack(retry)
        assert retry.retry_delay.ToTimedelta().total_seconds() == 0.5
        server._budget.give_back(taken)
        answer = send(channel, path, SURFACES[path]("digits", PIXELS["digits"]))
        assert answer.exception() is None


def test_a_message_of_a_stream_that_does_not_fit_is_answered_and_the_stream_goes_on(server: Server) -> None:
    taken = server._budget.limit_bytes - 500
    assert server._budget.take(taken)
    given_back = threading.Event()

    def requests() -> Iterator[bytes]:
        yield classify_in_stream("digits", PIXELS["digits"])
        assert given_back.wait(20)
        yield classify_in_stream("digits", PIXELS["digits"])

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        method: Any = channel.stream_stream(CLASSIFY_STREAM)
        answers = method(requests(), timeout=30)
        refused = pb.ClassifyStreamResponse.FromString(next(answers))
        assert (refused.error.code, refused.error.retry_after_seconds) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], 0.5)
        server._budget.give_back(taken)
        given_back.set()
        assert pb.ClassifyStreamResponse.FromString(next(answers)).response.results


def test_compressed_messages_of_grpcs_own_client_are_answered(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for path, make in SURFACES.items():
            for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                call = send(channel, path, make("digits", PIXELS["digits"]), compression=compression)
                answer = next(call) if "Stream" in path else call.result()
                assert b"digits" in answer


Start = Callable[..., tuple[int, RecordingObserver]]


@pytest.fixture
def start(kind: Kind) -> Iterator[Start]:
    """Starts a transport of echo methods; returns its port and observer."""
    with contextlib.ExitStack() as stack:

        def started(**options: Any) -> tuple[int, RecordingObserver]:
            service, seen = Service(), RecordingObserver()
            transport = kind(Options(["127.0.0.1"], 0, 4 * MIB, service.methods(), seen, lambda: math.inf, **options))
            transport.start()
            stack.callback(transport.stop, 0)
            return transport.port, seen

        yield started


def half_sent(port: int, path: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(half_a_call(path, b"x" * 100))
    return connection


def echoes(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/t.T/Echo", BytesValue.SerializeToString, BytesValue.FromString)
        return bool(method(BytesValue(value=b"x"), timeout=20, wait_for_ready=True).value == b"x")


def test_a_message_that_does_not_arrive_in_time_ends_its_call(start: Start) -> None:
    port, seen = start(message_seconds=0.5)
    with half_sent(port, "/t.T/Echo"):
        seen.wait_for("Echo", "DEADLINE_EXCEEDED")
        assert echoes(port)


def test_when_memory_is_short_calls_without_their_message_end_and_then_streams(start: Start) -> None:
    port, seen = start(memory=MemoryLimit(1))
    with half_sent(port, "/t.T/EchoStream"), half_sent(port, "/t.T/Echo"):
        seen.wait_for("Echo", "RESOURCE_EXHAUSTED")
        seen.wait_for("EchoStream", "UNAVAILABLE")
        assert [method for method, _ in seen.handled] == ["Echo", "EchoStream"]
        assert echoes(port)


def test_unary_calls_that_come_and_come_do_not_shield_streams(start: Start) -> None:
    port, seen = start(memory=MemoryLimit(1))
    with contextlib.ExitStack() as connections:
        for _ in range(4):
            connections.enter_context(half_sent(port, "/t.T/EchoStream"))
        ended = threading.Event()

        def trickle() -> None:
            while not ended.wait(0.01):
                connections.enter_context(half_sent(port, "/t.T/Echo"))

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            seen.wait_for("EchoStream", "UNAVAILABLE")
        finally:
            ended.set()
            thread.join()
        assert ("Echo", "RESOURCE_EXHAUSTED") in seen.handled[: seen.handled.index(("EchoStream", "UNAVAILABLE"))]


def test_a_call_with_much_metadata_is_refused(start: Start) -> None:
    port, seen = start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/t.T/Echo")
        most = [(f"x{number}", "1") for number in range(MAX_METADATA_ENTRIES - 1)]  # user-agent is the last
        assert method(b"", metadata=most, timeout=20) == b""
        for path in ("/t.T/Echo", "/t.T/EchoStream"):
            method = channel.stream_stream(path)
            call = method(iter([b""]), metadata=[*most, ("y", "1")], timeout=20)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "more than 100 entries of metadata" in str(caught.value.details())
    assert seen.handled.count(("Echo", "RESOURCE_EXHAUSTED")) == 1
    assert seen.handled.count(("EchoStream", "RESOURCE_EXHAUSTED")) == 1


def test_a_budget_that_is_used_up_by_one_call_is_there_for_the_next(start: Start) -> None:
    budget = ByteBudget(3 * MIB)
    port, _ = start(budget=budget)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/t.T/Later")
        for _ in range(10):
            message = BytesValue(value=bytes(2 * MIB)).SerializeToString()
            assert method(message, timeout=20) == message
            eventually(lambda: budget.in_flight_bytes == 0)


def post(server: Server, body: bytes, **headers: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    connection.request("POST", "/v2/models/digits/infer", body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.read().decode()
    connection.close()
    return response.status, answer


def as_json(pixels: int) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [7] * pixels}
    return json.dumps({"inputs": [tensor]}).encode()


def test_json_over_http_is_bounded_and_given_back(repository: Path, serve: Serve) -> None:
    server = serve(repository, max_inflight_bytes=6 * MIB, max_message_bytes=5 * MIB, max_json_bytes=200_000)
    assert post(server, as_json(28 * 28))[0] == 200
    assert post(server, gzip.compress(as_json(28 * 28)), Content_Encoding="gzip")[0] == 200
    status, answer = post(server, as_json(100_000))
    assert (status, "(--max-json-bytes): send large tensors as binary data" in answer) == (413, True)
    status, answer = post(server, b"[" * 150_000)
    assert (status, "--max-inflight-bytes" in answer) == (413, True)
    assert post(server, gzip.compress(bytes(100 * MIB)), Content_Encoding="gzip")[0] in (400, 413, 429)
    assert post(server, b'{"a": ' * 2000)[0] == 400
    eventually(lambda: server._budget.in_flight_bytes == 0)
    taken = server._budget.limit_bytes - 5000
    assert server._budget.take(taken)
    assert post(server, as_json(28 * 28))[0] == 429
    server._budget.give_back(taken)
    assert post(server, as_json(28 * 28))[0] == 200
    eventually(lambda: server._budget.in_flight_bytes == 0)
