"""What is refused before it costs inference, what clients are told, and what the metrics count."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from service.model.preprocessing import encode_png
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.conftest import SLOW_SECONDS, Serve, put
from tests.integration.test_classify import classify_on, item, refused
from tests.integration.test_edges import samples
from tests.integration.test_repository import eventually

DARK = np.zeros((2, 2, 1), np.uint8)


@pytest.fixture
def server(tmp_path: Path, serve: Serve, slow_file: Path) -> Server:
    """Its model takes its time: batches of at most 4 items, 8 in the queue."""
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 4\nmax_queue_items = 8\n")
    return serve(tmp_path / "models")


@pytest.fixture
def stub(server: Server) -> Iterator[grpc.UnaryUnaryMultiCallable]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.enable_retries", 0)]) as channel:
        yield classify_on(channel)


def rejections(server: Server) -> dict[str, float]:
    return {key[2]: value for key, value in samples(server).items() if key[0] == "convoy_rejections_total" and value}


def answered_items(server: Server) -> float:
    return samples(server)["convoy_batch_items_sum", "slow", "1"]


@pytest.mark.parametrize("image", [pb.Item(pixels=bytes(4)), pb.Item(encoded=encode_png(DARK[:, :, 0]))], ids=["pixels", "encoded"])
def test_a_deadline_that_the_measured_times_cannot_meet_is_refused_at_once(
    image: pb.Item, server: Server, stub: grpc.UnaryUnaryMultiCallable
) -> None:
    """The client waits for long enough, so that it is the server that says no; and the room of the pictures is given back."""
    stub(pb.ClassifyRequest(model="slow", items=item(4)), timeout=30)  # the measured times are fresh
    before = answered_items(server)
    for _ in range(3):
        code, message, _ = refused(stub, pb.ClassifyRequest(model="slow", items=[image] * 3, timeout_seconds=SLOW_SECONDS / 5))
        assert code == "DEADLINE_EXCEEDED"
        assert re.fullmatch(
            r"the deadline cannot be met: estimated [0-9.]+ ms, [0-9.]+ ms left \([0-9.]+ ms allowed\)"
            "|the deadline passed before the request was decoded",  # on a busy machine
            message,
        )
    assert len(stub(pb.ClassifyRequest(model="slow", items=[image] * 4), timeout=30).results) == 4
    assert answered_items(server) == before + 4
    assert rejections(server) == {"deadline": 3}
    [served] = server._repository.served["slow"]
    assert served.batcher._scheduler.queue.reserved == served.batcher._scheduler.queue.items == 0


def test_what_expires_behind_more_urgent_requests_costs_no_inference(server: Server, stub: grpc.UnaryUnaryMultiCallable) -> None:
    one = pb.ClassifyRequest(model="slow", items=item(4))
    stub(one, timeout=30)
    before = answered_items(server)
    calls = [stub.future(pb.ClassifyRequest(model="slow", items=item(4) * 4), timeout=60)]
    # One item: of several, a faster machine would compute a part before the deadline.
    late = stub.future(pb.ClassifyRequest(model="slow", items=item(4), priority=2, timeout_seconds=2.5 * SLOW_SECONDS), timeout=60)
    # As many as a batch holds, so that it has no room for the late one.
    calls += [stub.future(pb.ClassifyRequest(model="slow", items=item(4) * 4, priority=1), timeout=60)]
    codes = [call.code().name for call in calls]
    assert codes == ["OK"] * 2
    if late.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        assert answered_items(server) == before + 8
        assert rejections(server) == {"deadline": 1}
    else:  # this machine was faster than when it measured, or took them in another order
        assert answered_items(server) == before + 9


def test_a_full_queue_says_when_to_come_back(server: Server, stub: grpc.UnaryUnaryMultiCallable) -> None:
    calls = [stub.future(pb.ClassifyRequest(model="slow", items=item(4) * 3), timeout=60) for _ in range(8)]
    refused = [call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert 0 < len(refused) < 8
    for call in refused:
        status: Any = rpc_status.from_call(call)
        info = RetryInfo()
        assert status.details[0].Unpack(info)
        seconds = info.retry_delay.ToMilliseconds() / 1000
        assert 0.01 <= seconds <= 30
        assert dict(call.trailing_metadata())["grpc-retry-pushback-ms"] == str(round(1000 * seconds))
    assert rejections(server) == {"queue_full": len(refused)}


def test_a_timeout_may_only_shorten_the_deadline(server: Server, stub: grpc.UnaryUnaryMultiCallable) -> None:
    request = pb.ClassifyRequest(model="slow", items=item(4) * 8, timeout_seconds=60)
    stub(request, timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        stub(request, timeout=SLOW_SECONDS / 2)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: rejections(server) in ({"deadline": 1}, {"cancelled": 1}))


def test_every_reason_to_refuse_is_counted_by_its_name(server: Server, stub: grpc.UnaryUnaryMultiCallable) -> None:
    busy = threading.Event()
    call = stub.future(pb.ClassifyRequest(model="slow", items=item(4) * 4), timeout=60)
    call.add_done_callback(lambda _: busy.set())
    waiting = stub.future(pb.ClassifyRequest(model="slow", items=item(4)), timeout=60)
    eventually(lambda: server._repository.served["slow"][0].inflight == 2)
    waiting.cancel()
    with pytest.raises(grpc.RpcError):
        stub(pb.ClassifyRequest(model="slow", items=item(3)), timeout=30)
    assert busy.wait(30)
    eventually(lambda: rejections(server) == {"cancelled": 1, "invalid": 1})
