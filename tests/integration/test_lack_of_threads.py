"""A server that gets no more threads: every request has one answer, and all is well once there are threads again."""

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.server import Server
from tests.conftest import Serve
from tests.hostile_pictures import file_of
from tests.integration.test_repository import eventually
from tests.lack_of_threads import no_more_threads

LARGE = file_of(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)), "PNG")
"""Too large for the transport's thread."""

SMALL = file_of(Image.new("L", (8, 8)), "PNG")

POOLS = ("decode", "parse-messages", "control", "http-", "batcher-", "timer")


@pytest.fixture
def server(repository: Path, serve: Serve) -> Server:
    return serve(repository)


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.enable_retries", 0)]) as channel:
        yield channel


def classify(channel: grpc.Channel, item: pb.Item) -> str:
    call: Any = channel.unary_unary("/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString)
    return outcome(call, pb.ClassifyRequest(model="digits", items=[item]))


def load(channel: grpc.Channel) -> str:
    call: Any = channel.unary_unary(
        "/inference.GRPCInferenceService/RepositoryModelLoad", oip.RepositoryModelLoadRequest.SerializeToString
    )
    return outcome(call, oip.RepositoryModelLoadRequest(model_name="digits"))


def outcome(call: Any, request: Any) -> str:
    try:
        call(request, timeout=60)
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"
    return "OK"


def get(server: Server, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


WAYS: dict[str, Callable[[grpc.Channel], str]] = {
    "decoding": lambda channel: classify(channel, pb.Item(encoded=LARGE)),
    "parsing": lambda channel: classify(channel, pb.Item(encoded=SMALL + bytes(2**20))),
    "control": load,
}


def test_a_request_without_a_thread_is_refused_and_nothing_of_it_stays(server: Server, channel: grpc.Channel) -> None:
    with no_more_threads(*POOLS):
        for ask in WAYS.values():
            for _ in range(10):
                assert ask(channel) == "UNAVAILABLE the server can start no thread for the request"
        assert get(server, "/v2/health/live") == 503
    for name, ask in WAYS.items():
        assert ask(channel) == "OK", name
    assert get(server, "/v2/health/live") == 200
    assert server._repository.wait_until_idle(10)
    assert [served.inflight for served in server._repository.served["digits"]] == [0]
    assert server._classifier.pool.waiting_bytes == 0
    eventually(lambda: server._budget.in_flight_bytes == 0)
