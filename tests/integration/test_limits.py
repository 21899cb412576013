"""Limits of messages and connections."""

import logging
import statistics
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_channelz.v1 import channelz_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.engine import message_limits
from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import Item, Query
from service.engine.repository import Repository
from service.errors import InvalidModel, QueueFull, RequestError
from service.model.contract import Contract
from service.model.input_size import input_item_bytes
from service.model.onnx_messages import parse_model
from service.observability.metrics import Metrics
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.policy import Policy
from service.server import Server
from tests.conftest import Serve, put
from tests.integration.test_repository import eventually
from tests.integration.test_transport import Proxy

MIB = 1024 * 1024


def at(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def test_the_size_of_an_input_is_read_without_onnx_runtime(model_file: Path, tmp_path: Path) -> None:
    contract = Contract.of_model(parse_model(model_file.read_bytes()))
    assert contract is not None
    assert (contract.name, contract.input.shape) == ("digits", (28, 28, 1))
    assert input_item_bytes(model_file) == 28 * 28
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert Contract.of_model(parse_model(b"")) is None
    assert input_item_bytes(tmp_path / "empty.onnx") == 0
    (tmp_path / "text.onnx").write_text("This is no model.")
    with pytest.raises(InvalidModel, match="not an ONNX file"):
        input_item_bytes(tmp_path / "text.onnx")


def test_the_largest_request_is_the_most_items_or_the_largest_image(repository: Path, tmp_path: Path) -> None:
    default = message_limits.largest_request_bytes(Policy(), 28 * 28)
    assert 100_000_000 < default < 101_000_000, "one picture of 25 megapixels as a BMP with transparency"
    assert (
        message_limits.max_message_bytes(repository)
        == message_limits.max_message_bytes(tmp_path)
        == message_limits.max_message_bytes(tmp_path / "none")
        == default
    )
    settings = repository / "digits" / "serving.toml"
    settings.write_text("max_image_pixels = 1000\nmax_request_items = 10000\nmax_queue_items = 10000\n")
    assert 10_000 * 784 < message_limits.max_message_bytes(repository) < 10_000 * 900
    settings.write_text("max_image_pixels = 1000\n")
    assert message_limits.max_message_bytes(repository) == message_limits.MIN_MESSAGE_BYTES + message_limits.ENVELOPE_BYTES
    settings.write_text("max_image_pixels = 'many'\n")
    assert message_limits.max_message_bytes(repository) == default
    assert message_limits.largest_request_bytes(Policy(max_request_items=1000), 10**9) == 2**31 - 1
    assert message_limits.largest_request_bytes(Policy(), 16, images=False) < default


@pytest.mark.parametrize(
    ("kind", "shape", "item_bytes"),
    [
        (TensorProto.FLOAT, ["N", 3, 640, 640], 4 * 3 * 640 * 640),
        (TensorProto.FLOAT16, [1, 3, 640, 640], 2 * 3 * 640 * 640),
        (TensorProto.DOUBLE, [None, 640, 640, 3], 8 * 3 * 640 * 640),
        (TensorProto.UINT8, ["N", 640, 640, 3], 3 * 640 * 640),
        (TensorProto.FLOAT, ["N", 3, "height", "width"], 0),  # is not served
        (TensorProto.FLOAT, None, 0),
        (TensorProto.INT64, ["N", 10**6], 0),
    ],
)
def test_the_largest_request_of_a_foreign_model_is_found_in_its_graph(
    tmp_path: Path, kind: int, shape: list[Any] | None, item_bytes: int
) -> None:
    weight = numpy_helper.from_array(np.zeros((2000, 1000), np.float32), "weight")
    inputs = [helper.make_tensor_value_info(name, of, sides) for name, of, sides in
              (("x", kind, shape), ("weight", TensorProto.FLOAT, [2000, 1000]))]  # as files of older versions list it  # fmt: skip
    graph = helper.make_graph([], "foreign", inputs, [], [weight])
    path = tmp_path / "models" / "foreign" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert input_item_bytes(path) == item_bytes
    found = message_limits.max_message_bytes(tmp_path / "models")
    assert found == message_limits.largest_request_bytes(Policy(), item_bytes)
    assert (found > 512 * item_bytes) or found == 2**31 - 1


def test_a_large_request_of_a_foreign_model_is_answered_without_a_warning(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    side = 1600  # a request of two items is above the limit for pictures
    path = tmp_path / "models" / "foreign" / "1" / "model.onnx"
    nodes = [helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0)]
    graph = helper.make_graph(
        nodes, "foreign", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, side, side])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["N", 6])],
    )  # fmt: skip
    path.parent.mkdir(parents=True)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString())
    (path.parents[1] / "serving.toml").write_text("max_batch_size = 1\nmax_request_items = 2\n")
    server = serve(tmp_path / "models")
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[2, 6, side, side])
    request = oip.ModelInferRequest(model_name="foreign", inputs=[tensor], raw_input_contents=[bytes(2 * 4 * 6 * side * side)])
    with grpc.insecure_channel(at(server), [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
        )
        assert list(call(request, timeout=60).outputs[0].shape) == [2, 6]
    assert not [record for record in caplog.records if "the largest request has" in record.getMessage()]


def test_the_largest_legal_request_is_answered_and_one_above_the_limit_refused(repository: Path, serve: Serve) -> None:
    (repository / "digits" / "serving.toml").write_text(
        "max_image_pixels = 1000\nmax_request_items = 6000\nmax_queue_items = 6000\n"
    )
    server = serve(repository)
    with Client(at(server)) as client:
        assert len(client.classify(np.zeros((6000, 28, 28, 1), np.uint8), "digits", top_k=10).results) == 6000
        with pytest.raises(CallFailed, match=r"INVALID_ARGUMENT.*6001 items"):
            client.classify(np.zeros((6001, 28, 28, 1), np.uint8), "digits")
        with pytest.raises(CallFailed, match=r"RESOURCE_EXHAUSTED: the request has 6\d+ bytes, and the server takes at most 4\d+ "):
            client.classify([bytes(6 * MIB)], "digits")


@pytest.mark.parametrize(("asked_for", "level"), [(None, logging.WARNING), (2 * MIB, logging.INFO)])
def test_a_model_with_requests_above_the_message_limit_is_logged(
    asked_for: int | None, level: int, repository: Path, serve: Serve, model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = repository / "digits" / "serving.toml"
    policy.write_text("max_image_pixels = 1\nmax_request_items = 1\n")
    for other in ("other", "third"):
        put(model_file, repository, other, 1)
        (repository / other / "serving.toml").write_text(policy.read_text())
    with caplog.at_level(logging.INFO):
        server = serve(repository, max_message_bytes=asked_for)
        limit = asked_for or 4 * MIB + 64 * 1024
        policy.unlink()
        put(model_file, repository, "digits", 2)
        deadline = time.monotonic() + 20
        while server._repository.served["digits"][0].version != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.stop()
    said = [record for record in caplog.records if "the largest request has" in record.getMessage()]
    assert [record.levelno for record in said] == [level] * (1 if asked_for is None else 2), "one line, however many models"
    assert said[-1].getMessage().startswith("model digits version 2: ")
    assert f"the message limit is {limit}; restart with --max-message-bytes 1000" in said[-1].getMessage()


def test_calls_above_the_stream_limit_wait_in_the_client(tmp_path: Path, serve: Serve, slow_file: Path) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = serve(tmp_path / "slow", max_concurrent_streams=2)
    request = pb.ClassifyRequest(model="slow", items=[pb.Item(pixels=bytes(4))])
    with grpc.insecure_channel(at(server)) as channel:
        call: Any = channel.unary_unary("/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString)
        call(request, timeout=60)
        calls = [call.future(request, timeout=60) for _ in range(6)]
        inflight = []
        while not all(each.done() for each in calls):
            inflight.append(server._repository.served["slow"][0].inflight)
            time.sleep(0.005)
        assert all(each.code() is grpc.StatusCode.OK for each in calls)
    # The median, as a call whose answer has just left is still counted for a moment; without the limit it would be 3 or 4.
    assert statistics.median_low(inflight) == 2


def test_a_connection_at_its_maximum_age_is_replaced_and_its_calls_have_the_grace(
    tmp_path: Path, serve: Serve, slow_file: Path
) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = serve(tmp_path / "slow", max_connection_age_seconds=0.5, max_connection_age_grace_seconds=20)
    proxy = Proxy(server.grpc_port)
    with Client(f"127.0.0.1:{proxy.port}") as client:
        answers = dict(client.classify_stream(([np.zeros((2, 2, 1), np.uint8)] for _ in range(6)), "slow", in_flight=1))
        assert sorted(answers) == list(range(6)), "the stream outlived the age of its connection"
        deadline = time.monotonic() + 20
        while proxy.connections < 2 and time.monotonic() < deadline:
            client.classify([np.zeros((2, 2, 1), np.uint8)], "slow")
    proxy.close()
    assert proxy.connections >= 2


def test_a_stream_cut_off_after_the_grace_continues_on_a_new_connection(repository: Path, serve: Serve) -> None:
    server = serve(repository, max_connection_age_seconds=2, max_connection_age_grace_seconds=0.2)
    proxy = Proxy(server.grpc_port)

    def requests() -> Iterator[list[np.ndarray]]:
        yield [np.zeros((28, 28, 1), np.uint8)]
        deadline = time.monotonic() + 30
        while proxy.connections < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        yield [np.zeros((28, 28, 1), np.uint8)]

    with Client(f"127.0.0.1:{proxy.port}") as client:
        answers = dict(client.classify_stream(requests(), "digits"))
    proxy.close()
    assert sorted(answers) == [0, 1]
    assert not any(isinstance(answer, CallFailed) for answer in answers.values())
    assert proxy.connections >= 2


@pytest.mark.parametrize(("min_interval_seconds", "items", "code"), [(60.0, 100, "UNAVAILABLE"), (0.0, 16, "OK")])
def test_a_client_that_pings_too_often_is_disconnected(
    tmp_path: Path, serve: Serve, slow_file: Path, min_interval_seconds: float, items: int, code: str
) -> None:
    """Each item takes a quarter of a second; the request that is cut off ends long before."""
    put(slow_file, tmp_path / "slow", "slow", 1)
    (tmp_path / "slow" / "slow" / "serving.toml").write_text("max_batch_size = 1\n")
    server = serve(tmp_path / "slow", min_ping_interval_seconds=min_interval_seconds)
    options = [
        ("grpc.keepalive_time_ms", 100), ("grpc.http2.max_pings_without_data", 0), ("grpc.enable_retries", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]  # fmt: skip
    with grpc.insecure_channel(at(server), options) as channel:
        call: Any = channel.unary_unary("/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString)
        request = pb.ClassifyRequest(model="slow", items=[pb.Item(pixels=bytes(4))] * items)
        waiting: Any = call.future(request, timeout=600)  # never so short that the server would refuse it for that
        assert waiting.code().name == code
        assert code == "OK" or "pings" in waiting.details()


@pytest.mark.parametrize("limit", [None, 8192])
def test_the_header_of_an_http_request_has_a_limit(repository: Path, serve: Serve, limit: int | None) -> None:
    server, at_most = serve(repository, max_metadata_bytes=limit), limit or 64 * 1024
    for size, status in ((at_most - 200, 200), (at_most + 1, 431)):
        connection = HTTPConnection("127.0.0.1", server.http_port, timeout=20)
        connection.request("GET", "/livez", headers={"Cookie": "c" * size})
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == status
        assert status == 200 or f"the header is too large: at most {at_most} bytes are accepted" in body
        connection.close()


@pytest.fixture
def channelz(repository: Path, serve: Serve) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(at(serve(repository, channelz=True))) as opened:
        yield opened


def ask(channel: grpc.Channel, method: str, request: Any, response: Any) -> Any:
    call: Any = channel.unary_unary(f"/grpc.channelz.v1.Channelz/{method}", None, response.FromString)
    return call(request.SerializeToString(), timeout=10)


def test_channelz_shows_the_server_and_its_connections(channelz: grpc.Channel) -> None:
    servers: list[Any] = []
    while True:  # by pages: C core still lists servers of other tests
        after = int(servers[-1].ref.server_id) + 1 if servers else 0
        page = ask(
            channelz, "GetServers", channelz_pb2.GetServersRequest(start_server_id=after), channelz_pb2.GetServersResponse
        )  # fmt: skip
        servers += page.server
        if page.end:
            break
    ours = max(servers, key=lambda server: server.data.trace.creation_timestamp.ToNanoseconds())  # ids are not in that order
    assert ours.data.calls_started >= 1
    again = ask(channelz, "GetServer", channelz_pb2.GetServerRequest(server_id=ours.ref.server_id), channelz_pb2.GetServerResponse)
    assert again.server.data.calls_started > ours.data.calls_started
    sockets = ask(
        channelz, "GetServerSockets", channelz_pb2.GetServerSocketsRequest(server_id=ours.ref.server_id),
        channelz_pb2.GetServerSocketsResponse,
    ).socket_ref  # fmt: skip
    assert len(sockets) == 1
    with pytest.raises(grpc.RpcError) as caught:
        ask(channelz, "GetSocket", channelz_pb2.GetSocketRequest(socket_id=10**9), channelz_pb2.GetSocketResponse)
    refused: Any = caught.value
    assert refused.code() is grpc.StatusCode.NOT_FOUND
    assert DescriptorPool(ProtoReflectionDescriptorDatabase(channelz)).FindServiceByName("grpc.channelz.v1.Channelz")


def test_channelz_is_off_by_default(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, "GetServers", channelz_pb2.GetServersRequest(), channelz_pb2.GetServersResponse)
    refused: Any = caught.value
    assert refused.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "grpc.channelz.v1.Channelz" not in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_bytes_waiting_to_be_decoded_are_bounded(repository: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.decoding.UNDECODED_BYTES", 1000)
    metrics = Metrics(CollectorRegistry())
    models = Repository(repository, "cpu", metrics)
    models.start()
    classifier = Classifier(models, metrics, cpus=1)
    held, answers = threading.Event(), SimpleQueue[Answer | RequestError]()

    def hold() -> None:
        held.wait(30)

    classifier.pool.submit(hold, [Item(bytes(900), True)])
    pictures = [Item(digits.test.encoded(index), True) for index in range(2)]
    query = Query("digits", pictures)
    with pytest.raises(QueueFull, match="the decoding queue is full: 900 of 1000 bytes wait, 900 of them of this client, "):
        classifier.classify(query, answers.put, on_transport=False)
    assert metrics.registry.get_sample_value("convoy_rejections_total", {"model": "digits", "reason": "queue_full"}) == 1
    held.set()
    eventually(lambda: classifier.pool.waiting_bytes == 0)
    many = query._replace(items=pictures * 10)
    assert sum(len(item.data) for item in many.items) > 1000
    classifier.classify(many, answers.put, on_transport=False)
    assert isinstance(answers.get(timeout=30), Answer), "one alone may be as large as it likes"
    queue = models.served["digits"][0].batcher._scheduler.queue
    eventually(lambda: (queue.items, queue.reserved, classifier.pool.waiting_bytes) == (0, 0, 0))
    assert classifier.drain(5)
    classifier.close()
    models.stop()
