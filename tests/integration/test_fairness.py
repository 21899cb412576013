"""A client that sends more than its share, and one that does not: each sees a server of its own, as far as one can share it."""

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.conftest import Serve, put
from tests.integration.access_file import bearer, entry, metadata, write_auth_file
from tests.integration.test_classify import classify_on, item
from tests.integration.test_repository import eventually

ONE = pb.ClassifyRequest(model="slow", items=item(4))


@pytest.fixture
def server(tmp_path: Path, serve: Serve, slow_file: Path) -> Server:
    """Its model takes its time: batches of at most 4 items, 8 in the queue. Clients come by TCP, or by a unix socket."""
    put(slow_file, tmp_path / "models", "slow", 1)
    (tmp_path / "models" / "slow" / "serving.toml").write_text("max_batch_size = 4\nmax_queue_items = 8\n")
    return serve(tmp_path / "models", grpc_socket=tmp_path / "grpc.sock")


@pytest.fixture
def greedy(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.enable_retries", 0)]) as channel:
        yield classify_on(channel)


@pytest.fixture
def polite(server: Server, tmp_path: Path) -> Iterator[Any]:
    options = [("grpc.enable_retries", 0), ("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{tmp_path}/grpc.sock", options) as channel:
        yield classify_on(channel)


def test_a_polite_client_passes_the_line_of_a_greedy_one_and_finds_room_in_a_full_queue(
    server: Server, greedy: Any, polite: Any
) -> None:
    polite(ONE, timeout=30)  # connects, and both are known to be here
    order: list[str] = []

    def send(stub: Any, name: str) -> Any:
        call = stub.future(ONE, timeout=60)
        call.add_done_callback(lambda done: order.append(f"{name} {done.code().name}"))
        return call

    calls = [send(greedy, "greedy") for _ in range(40)]
    [served] = server._repository.served["slow"]
    eventually(lambda: served.batcher.queued_items == 8 and "greedy RESOURCE_EXHAUSTED" in order)
    refused = len(order)
    calls.append(send(polite, "polite"))
    codes = [call.code() for call in calls]
    eventually(lambda: len(order) == len(calls))
    assert codes[-1] is grpc.StatusCode.OK, "it did not fit, and was queued all the same"
    assert "greedy OK" in order[order.index("polite OK") :], "it did not wait for all those that came before it"
    displaced = [call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert len(displaced) >= refused
    for call in displaced:
        info = RetryInfo()
        assert rpc_status.from_call(call).details[0].Unpack(info)
        assert 0.01 <= info.retry_delay.ToMilliseconds() / 1000 <= 30
    assert served.batcher.queued_items == 0


LIMITED = """
[groups.limited]
infer = ["*"]
requests_per_second = 0.5
queue_items = 3
"""


@pytest.fixture
def limited(tmp_path: Path, repository: Path, serve: Serve) -> Server:
    """Its file gives one group a quota."""
    auth = write_auth_file(tmp_path / "auth.toml", entry("limited"))
    auth.write_text(auth.read_text() + LIMITED)
    return serve(repository, auth=auth)


def test_over_its_quota_a_client_is_told_when_to_come_back_and_then_is_let_in(limited: Server) -> None:
    request = pb.ClassifyRequest(model="digits", items=item(784))
    with grpc.insecure_channel(f"127.0.0.1:{limited.grpc_port}", [("grpc.enable_retries", 0)]) as channel:
        stub: Any = classify_on(channel)
        calls = [stub.future(request, metadata=metadata("limited"), timeout=20) for _ in range(5)]
        assert any(call.code() is grpc.StatusCode.OK for call in calls)
        refused = next(call for call in calls if call.exception() is not None)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "the quota is used up: 0.5 requests a second"
        for _ in range(5):
            stub(request, metadata=metadata("infer"), timeout=20)  # of another group
        info = RetryInfo()
        assert rpc_status.from_call(refused).details[0].Unpack(info)
        time.sleep(info.retry_delay.ToMilliseconds() / 1000)
        assert len(stub(request, metadata=metadata("limited"), timeout=20).results) == 1
    connection = http.client.HTTPConnection("127.0.0.1", limited.http_port, timeout=20)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
    for _ in range(10):
        headers = {"Authorization": bearer("limited")}
        connection.request("POST", "/v2/models/digits/infer", json.dumps({"inputs": [tensor]}), headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            break
    connection.close()
    assert (response.status, response.headers["Retry-After"]) in ((429, "1"), (429, "2")), body
    counted = limited._registry.get_sample_value("convoy_rejections_total", {"model": "digits", "reason": "quota"})
    assert counted is not None
    assert counted >= 2


def test_a_request_of_more_items_than_may_ever_wait_is_not_to_be_sent_again(limited: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{limited.grpc_port}", [("grpc.enable_retries", 0)]) as channel:
        stub: Any = classify_on(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub(pb.ClassifyRequest(model="digits", items=item(784) * 4), metadata=metadata("limited"), timeout=20)
        error: Any = caught.value
        assert (error.code(), error.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT, "the request has 4 items; of one client at most 3 may wait (queue_items)",
        )  # fmt: skip
        assert "grpc-retry-pushback-ms" not in dict(error.trailing_metadata()), "to send it again is of no use"
