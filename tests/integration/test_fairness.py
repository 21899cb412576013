"""A client that sends more than its share, and one that does not: each sees a server of its own, as far as one can share it."""

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
