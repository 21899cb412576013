"""`inference.GRPCInferenceService/ModelStreamInfer` where others' clients do not go: limits, bad messages, draining."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.pb.inference import open_inference_pb2 as pb
from service.rpc.request_stream import UNANSWERED_REQUESTS
from tests.conftest import Serve, Spawn, put
from tests.integration.test_repository import eventually

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"


class Talk:
    """A stream that a test writes to and reads from as it likes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        stub: Any = channel.stream_stream(PATH, None, pb.ModelStreamInferResponse.FromString)
        self.call = stub(iter(self._outbox.get, None), timeout=600)

    def write(self, request_id: str) -> None:
        tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 2, 2, 1])
        request = pb.ModelInferRequest(model_name="slow", id=request_id, inputs=[tensor], raw_input_contents=[bytes(4)])
        self.write_raw(request.SerializeToString())

    def write_raw(self, message: bytes | None) -> None:
        self._outbox.put(message)

    def read(self) -> pb.ModelStreamInferResponse:
        response: pb.ModelStreamInferResponse = next(self.call)
        return response


@pytest.fixture
def slow(tmp_path: Path, slow_file: Path) -> Path:
    """A repository of a model whose batches are of one item and take their time."""
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    return tmp_path / "slow"


def ids(responses: Iterator[pb.ModelStreamInferResponse]) -> Iterator[str]:
    for response in responses:
        assert not response.error_message
        yield response.infer_response.id


def test_a_bad_message_is_answered_with_its_error_and_the_stream_goes_on(slow: Path, serve: Serve) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{serve(slow).grpc_port}") as channel:
        talk = Talk(channel)
        talk.write_raw(b"\xff\xff\xff")
        assert "malformed" in talk.read().error_message
        talk.write_raw(pb.ModelInferRequest(model_name="nobody", id="7").SerializeToString())
        refusal = talk.read()
        assert refusal.error_message
        assert refusal.infer_response.id == "7"
        talk.write("8")
        talk.write_raw(None)
        assert list(ids(talk.call)) == ["8"]
        assert talk.call.code() == grpc.StatusCode.OK


def test_no_more_is_read_than_may_be_unanswered(slow: Path, serve: Serve) -> None:
    server = serve(slow)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        talk = Talk(channel)
        for number in range(UNANSWERED_REQUESTS * 2):
            talk.write(str(number))
        served = server._repository.served["slow"][0]
        eventually(lambda: served.inflight >= UNANSWERED_REQUESTS - 10)
        for _ in range(10):
            talk.read()
            # One that has its answer may not be let go of yet when the next is read.
            assert served.inflight <= UNANSWERED_REQUESTS + 1
        talk.call.cancel()


def test_a_drain_answers_what_was_read_and_ends_the_stream_with_unavailable(slow: Path, spawn: Spawn) -> None:
    server = spawn(slow)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        busy, idle = Talk(channel), Talk(channel)
        idle.write("0")
        idle.read()
        for number in range(8):
            busy.write(str(number))
        assert busy.read().infer_response.id == "0"
        exit_codes: list[int] = []
        stopping = threading.Thread(target=lambda: exit_codes.append(server.terminate()))
        stopping.start()
        with pytest.raises(grpc.RpcError, match="the server is draining"):
            idle.read()
        assert idle.call.code() == grpc.StatusCode.UNAVAILABLE
        got: list[str] = []
        with pytest.raises(grpc.RpcError, match="the server is draining"):
            got.extend(ids(busy.call))
        assert got == [str(number) for number in range(1, 8)]
        stopping.join(30)
        assert exit_codes == [0]
