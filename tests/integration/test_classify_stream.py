"""`convoy.v1.Classifier/ClassifyStream` on a real server with a real model."""

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from export.data.datasets import Dataset
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.request_stream import UNANSWERED_BYTES, UNANSWERED_REQUESTS
from service.server import Server
from tests.conftest import Serve, Spawn, put

PATH = "/convoy.v1.Classifier/ClassifyStream"


class Talk:
    """A stream that a test writes to and reads from as it likes."""

    def __init__(self, channel: grpc.Channel, **options: Any) -> None:
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.written = 0
        stub: Any = channel.stream_stream(PATH, None, pb.ClassifyStreamResponse.FromString)
        self.call = stub(self._messages(), **{"timeout": 600, **options})

    def _messages(self) -> Iterator[bytes]:
        while (message := self._outbox.get()) is not None:
            self.written += 1
            yield message

    def write(self, model: str, *pixels: bytes, **fields: Any) -> None:
        request = pb.ClassifyRequest(model=model, items=[pb.Item(pixels=some) for some in pixels], **fields)
        self.write_raw(pb.ClassifyStreamRequest(request=request).SerializeToString())

    def write_raw(self, message: bytes) -> None:
        self._outbox.put(message)

    def half_close(self) -> None:
        self._outbox.put(None)

    def read(self) -> pb.ClassifyStreamResponse:
        response: pb.ClassifyStreamResponse = next(self.call)
        return response

    def code(self) -> str:
        """How the stream ended."""
        name: str = self.call.code().name
        return name


@pytest.fixture
def slow_server(tmp_path: Path, serve: Serve, slow_file: Path) -> Server:
    """Batches of one item that take their time."""
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    return serve(tmp_path / "slow")


@pytest.fixture
def slow(slow_server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{slow_server.grpc_port}") as opened:
        yield opened


DARK, BRIGHT = bytes(4), bytes([255] * 4)


def test_many_requests_in_flight_each_get_the_answer_that_classify_gives(channel: grpc.Channel, digits: Dataset) -> None:
    count = 300
    unary = channel.unary_unary(
        "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
    )
    talk = Talk(channel)
    for index in range(count):
        talk.write("digits", digits.test.pixels[index].tobytes(), id=f"digit {index}", top_k=3)
    talk.half_close()
    answers = list(talk.call)
    assert talk.code() == "OK"
    assert sorted(answer.index for answer in answers) == list(range(count))
    for answer in answers:
        assert answer.id == answer.response.id == f"digit {answer.index}"
        assert (answer.response.model, answer.response.version) == ("digits", "1")
        assert answer.response.phases.inference_seconds > 0
    found = {answer.index: answer.response.results[0] for answer in answers}
    for index in range(0, count, 17):
        items = [pb.Item(pixels=digits.test.pixels[index].tobytes())]
        expected = unary(pb.ClassifyRequest(model="digits", items=items, top_k=3), timeout=10).results[0]
        assert [p.label for p in found[index].predictions] == [p.label for p in expected.predictions]
        np.testing.assert_allclose(
            [p.probability for p in found[index].predictions], [p.probability for p in expected.predictions], atol=1e-5
        )


def test_a_bad_request_is_answered_with_its_error_and_the_stream_goes_on(channel: grpc.Channel, digits: Dataset) -> None:
    good = digits.test.pixels[0].tobytes()
    talk = Talk(channel)
    talk.write("digits", good, id="a")
    talk.write("digits", good[:100], id="b")
    talk.write("cats", good, id="c")
    talk.write_raw(b"\xff\xff\xff")
    talk.write_raw(b"")
    talk.write("digits", good, id="x" * 257)
    talk.write("digits", good, id="d")
    talk.half_close()
    answers = {answer.index: answer for answer in talk.call}
    assert talk.code() == "OK"
    assert [answers[index].id for index in range(7)] == ["a", "b", "c", "", "", "x" * 256, "d"]
    assert answers[0].response.results == answers[6].response.results
    errors = {index: answer.error for index, answer in answers.items() if answer.HasField("error")}
    assert {index: grpc.StatusCode.INVALID_ARGUMENT.value[0] == error.code for index, error in errors.items()} == {
        1: True, 2: False, 3: True, 4: False, 5: True,
    }  # fmt: skip
    assert errors[1].field == "items[0].pixels"
    assert "100 bytes of pixels; the model takes 784" in errors[1].message
    assert errors[2].code == errors[4].code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "no model named 'cats'; served are: digits" in errors[2].message
    assert "not a convoy.v1.ClassifyStreamRequest" in errors[3].message
    assert errors[5].field == "id"


def test_answers_come_when_they_are_ready_and_not_in_order(tmp_path: Path, serve: Serve, slow_file: Path, model_file: Path) -> None:
    put(slow_file, tmp_path / "both", "slow", 1)
    put(model_file, tmp_path / "both", "digits", 1)
    server = serve(tmp_path / "both")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        talk = Talk(channel)
        talk.write("slow", BRIGHT)
        talk.write("digits", bytes(784))
        assert [talk.read().index, talk.read().index] == [1, 0]
        talk.write("digits", bytes(784), id="the stream is still open")
        assert talk.read().id == "the stream is still open"
        talk.half_close()
        assert list(talk.call) == []
        assert talk.code() == "OK"


def inflight(server: Server) -> int:
    """How many requests the server has in hand."""
    return sum(served.inflight for versions in server._repository.served.values() for served in versions)


def test_no_more_is_read_than_may_be_unanswered(slow: grpc.Channel, slow_server: Server) -> None:
    talk = Talk(slow)
    for _ in range(UNANSWERED_REQUESTS * 3):
        talk.write("slow", BRIGHT)
    deadline = time.monotonic() + 30
    while (most := inflight(slow_server)) < UNANSWERED_REQUESTS - 10:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the server is in this process, and needs the GIL to read
    for _ in range(10):
        talk.read()
        most = max(most, inflight(slow_server))
    assert most <= UNANSWERED_REQUESTS + 1  # one may be answered and not yet counted out
    talk.call.cancel()


def test_large_requests_are_read_only_while_few_bytes_are_unanswered(slow: grpc.Channel, slow_server: Server) -> None:
    """A quarter of what may be unanswered is in each message: four are read."""
    talk = Talk(slow)
    busy = pb.ClassifyRequest(model="slow", items=[pb.Item(pixels=BRIGHT)])
    padding = b"\x7a" + varint(UNANSWERED_BYTES // 4) + bytes(UNANSWERED_BYTES // 4)  # an unknown field, which protobuf keeps
    message = pb.ClassifyStreamRequest(request=busy).SerializeToString() + padding
    for _ in range(10):
        talk.write_raw(message)
    talk.read()
    assert 1 <= inflight(slow_server) <= 5  # one may be answered and not yet counted out
    talk.half_close()
    assert sum(1 for _ in talk.call) == 9
    assert talk.code() == "OK"


def varint(number: int) -> bytes:
    written = b""
    while number > 127:
        written += bytes([number & 127 | 128])
        number >>= 7
    return written + bytes([number])


def test_a_client_that_does_not_read_is_not_read_either(channel: grpc.Channel, serve: Serve, repository: Path) -> None:
    """15,000 answers of four kilobytes that nobody takes: what the server has read is bounded, and others are served."""
    talk = Talk(channel)
    pixels = bytes(784)
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=pixels)] * 8, top_k=10)
    message = pb.ClassifyStreamRequest(request=request).SerializeToString()
    for _ in range(15_000):
        talk.write_raw(message)
    before, now = -1, 0
    while now != before:
        time.sleep(0.5)
        before, now = now, talk.written
    assert now < 7_500
    other = Talk(channel)
    other.write("digits", pixels)
    assert other.read().response.results
    talk.call.cancel()


def test_pending_requests_are_cancelled_with_the_stream(slow: grpc.Channel, slow_server: Server) -> None:
    talk = Talk(slow)
    for _ in range(30):
        talk.write("slow", BRIGHT)
    talk.read()
    talk.call.cancel()
    deadline = time.monotonic() + 10
    while inflight(slow_server) > 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert inflight(slow_server) == 0


def test_the_deadline_of_the_stream_ends_it_and_a_requests_own_ends_that_request(slow: grpc.Channel, slow_server: Server) -> None:
    talk = Talk(slow, timeout=3)
    for _ in range(3):
        talk.write("slow", BRIGHT, id="in time")
    talk.write("slow", BRIGHT, id="late", timeout_seconds=1e-6)
    late = next(answer for answer in talk.call if answer.id == "late")
    assert late.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    for _ in range(60):
        talk.write("slow", BRIGHT)
    with pytest.raises(grpc.RpcError):
        for _ in talk.call:
            pass
    assert talk.code() == "DEADLINE_EXCEEDED"
    deadline = time.monotonic() + 10
    while inflight(slow_server) > 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert inflight(slow_server) == 0


def test_a_full_queue_refuses_a_request_of_the_stream_and_says_when_to_come_back(
    tmp_path: Path, serve: Serve, slow_file: Path
) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\nmax_queue_items = 4\n")
    server = serve(tmp_path / "slow")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        talk = Talk(channel)
        for _ in range(20):
            talk.write("slow", BRIGHT)
        talk.half_close()
        answers = list(talk.call)
    assert talk.code() == "OK"
    full = [answer.error for answer in answers if answer.HasField("error")]
    assert len(answers) == 20
    assert 10 <= len(full) < 20
    assert all(error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] and error.retry_after_seconds > 0 for error in full)


def test_a_drain_answers_what_was_read_and_ends_the_stream_with_unavailable(tmp_path: Path, spawn: Spawn, slow_file: Path) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = spawn(tmp_path / "slow")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        busy, idle = Talk(channel), Talk(channel)
        idle.write("slow", DARK)
        assert idle.read().index == 0
        for _ in range(8):
            busy.write("slow", BRIGHT)
        busy.read()
        answers: list[int] = []
        stopping = threading.Thread(target=lambda: answers.append(server.terminate()))
        stopping.start()
        with pytest.raises(grpc.RpcError, match="the server is draining"):
            idle.read()
        assert idle.code() == "UNAVAILABLE"
        got: list[bool] = []
        with pytest.raises(grpc.RpcError, match="the server is draining"):
            got.extend(answer.HasField("response") for answer in busy.call)
        assert got == [True] * 7
        stopping.join(30)
        assert answers == [0]


def test_a_message_that_is_too_large_ends_the_stream_with_a_clear_error(repository: Path, serve: Serve) -> None:
    server = serve(repository, max_message_bytes=1 << 20)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        talk = Talk(channel)
        talk.write("digits", bytes(784))
        assert talk.read().response.results
        talk.write("digits", bytes(2 << 20))
        with pytest.raises(grpc.RpcError, match="larger than max"):
            talk.read()
        assert talk.code() == "RESOURCE_EXHAUSTED"
        again = Talk(channel)
        again.write("digits", bytes(784))
        assert again.read().response.results
