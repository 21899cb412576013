"""Health, reflection and the HTTP port of a real server."""

import contextlib
import gc
import http.client
import queue
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.errors import LoadError, QuotaExceeded, RequestError
from service.lifecycle import raise_file_limit
from service.observability.metrics import OUTCOMES, REASONS
from service.observability.request_metrics import RPC_CODE_NAMES
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.status import CODES
from service.server import Server
from tests.conftest import Serve, put

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def opened(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


def check(channel: grpc.Channel, name: str) -> int:
    status: int = health_stub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
    return status


def health_stub(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def get(server: Server, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def samples(server: Server) -> dict[tuple[str, ...], float]:
    """Metric samples by name and sorted label values."""
    families = text_string_to_metric_families(get(server, "/metrics")[2])
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_health_overall_of_each_model_and_liveness(opened: grpc.Channel) -> None:
    assert [check(opened, name) for name in ("", "digits", "liveness")] == [SERVING] * 3
    with pytest.raises(grpc.RpcError) as caught:
        check(opened, "cats")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_empty_repository_is_live_not_serving_and_takes_a_model_when_it_comes(
    tmp_path: Path, serve: Serve, model_file: Path
) -> None:
    (tmp_path / "models").mkdir()
    server = serve(tmp_path / "models", ready_file=tmp_path / "ready.json")
    assert get(server, "/livez")[0] == 200
    assert get(server, "/readyz")[::2] == (503, "no model is ready\n")
    assert not (tmp_path / "ready.json").exists()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert [check(channel, name) for name in ("", "liveness")] == [NOT_SERVING, SERVING]
        statuses: queue.SimpleQueue[int] = queue.SimpleQueue()
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service="digits"), timeout=60)

        def listen() -> None:
            for response in watch:
                statuses.put(response.status)

        listener = threading.Thread(target=listen)
        listener.start()
        assert statuses.get(timeout=10) == SERVICE_UNKNOWN
        put(model_file, tmp_path / "models", "digits", 1)
        assert statuses.get(timeout=20) == SERVING
        assert check(channel, "") == SERVING
        assert get(server, "/readyz")[0] == 200
        assert (tmp_path / "ready.json").exists()
        server.stop()
        assert statuses.get(timeout=10) == NOT_SERVING
        listener.join(10)
        assert not listener.is_alive()


def test_watches_that_were_cancelled_or_failed_are_forgotten(server: Server, opened: grpc.Channel) -> None:
    watches = [health_stub(opened).Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
    assert [next(watch).status for watch in watches] == [SERVING] * 20
    assert len(server._health._watchers) == len(server._health._streams._streams) == 20
    for watch in watches:
        watch.cancel()
    malformed: Any = opened.stream_stream("/grpc.health.v1.Health/Watch")
    for _ in range(20):
        with pytest.raises(grpc.RpcError):
            list(malformed(iter([b"\xff\xff"]), timeout=10))
    deadline = time.monotonic() + 10
    watchers, calls = server._health._watchers, server._health._streams._streams
    while max(len(watchers), len(calls)) > 1 and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert max(len(watchers), len(calls)) <= 1, "grpcio's asyncio server may hold on to its last call, no more"


def test_reflection_lets_a_client_call_without_our_protos(opened: grpc.Channel, digits: Dataset) -> None:
    database = ProtoReflectionDescriptorDatabase(opened)
    assert set(database.get_services()) >= {"convoy.v1.Classifier", "grpc.health.v1.Health"}
    method = DescriptorPool(database).FindServiceByName("convoy.v1.Classifier").FindMethodByName("Classify")
    request: Any = GetMessageClass(method.input_type)
    response: Any = GetMessageClass(method.output_type)
    message = request(model="digits", items=[{"encoded": digits.test.encoded(0)}])
    call = opened.unary_unary("/convoy.v1.Classifier/Classify", request.SerializeToString, response.FromString)
    assert len(call(message, timeout=10).results[0].predictions) == 5


def test_reflection_answers_under_its_v1_name_too(opened: grpc.Channel) -> None:
    from grpc_reflection.v1alpha import reflection_pb2 as pb

    call = opened.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString,
    )
    symbols = ["no.such", "convoy.v1.Classifier.Classify"]
    asked = [pb.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
    listed, missing, found = call(iter([pb.ServerReflectionRequest(list_services="*"), *asked]), timeout=10)
    assert "convoy.v1.Classifier" in [service.name for service in listed.list_services_response.service]
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert found.original_request == asked[1], "which is a method"
    assert b"ClassifyRequest" in found.file_descriptor_response.file_descriptor_proto[0]


def test_http_says_what_there_is(server: Server) -> None:
    assert get(server, "/livez")[::2] == (200, "ok\n")
    assert get(server, "/readyz")[::2] == (200, "ok\n")
    assert get(server, "/nope")[0] == 404


def test_metrics_count_what_happened(server: Server, digits: Dataset) -> None:
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        answers = [client.classify([digits.test.encoded(index)] * 2, "digits") for index in range(5)]
        for model, image in (("digits", b"nonsense"), ("x" * 50, digits.test.encoded(0))):
            with pytest.raises(CallFailed):
                client.classify([image], model)
    found = samples(server)
    classify = ("Classify", "convoy.v1.Classifier", "unary")
    assert found["grpc_server_started_total", *classify] == 7
    assert found["grpc_server_handled_total", "OK", *classify] == 5
    assert found["grpc_server_handled_total", "INVALID_ARGUMENT", *classify] == 1
    assert found["grpc_server_handled_total", "NOT_FOUND", *classify] == 1
    assert found["grpc_server_handling_seconds_count", *classify] == 7
    assert found["convoy_items_total", "digits", "1"] == 10
    assert found["convoy_batch_items_sum", "digits", "1"] == 10
    assert found["convoy_confidence_count", "digits", "1"] == 10
    for phase in ("decode", "queue", "inference", "encode"):
        assert found["convoy_phase_seconds_count", "digits", phase, "1"] == 5
    predicted = [answer.results[0][0].label for answer in answers for _ in range(2)]
    for label in digits.labels:
        assert found["convoy_predictions_total", label, "digits", "1"] == predicted.count(label)
    assert found["convoy_rejections_total", "digits", "invalid"] == 1
    assert found["convoy_inflight_requests", "digits"] == found["convoy_queue_items", "digits", "1"] == 0
    assert found["convoy_model_loads_total", "digits", "ready"] == 1
    assert any(key[0] == "convoy_model_info" and "cpu" in key and value == 1 for key, value in found.items())
    assert not any("x" * 50 in key for key in found), "what a client sends never becomes a label"


def test_metrics_come_as_openmetrics_when_asked_for(server: Server) -> None:
    status, content_type, body = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_a_version_that_is_no_number_is_refused(server: Server) -> None:
    status, _, body = get(server, "/metrics", Accept="application/openmetrics-text; version=abc")
    assert (status, body) == (400, '{"error": "the version in the header Accept is not a number"}')


def test_the_http_port_takes_connections_beyond_the_1024th_file(server: Server) -> None:
    raise_file_limit()
    with contextlib.ExitStack() as stack:
        while stack.enter_context(socket.socket()).fileno() < 1024:
            pass
        assert get(server, "/livez")[0] == 200
    assert get(server, "/livez")[0] == 200


@pytest.mark.parametrize("endless", [b"1;", b"0\r\n"])
def test_a_chunk_that_only_begins_is_cut_off(server: Server, endless: bytes) -> None:
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as client:
        client.sendall(head + endless)
        with pytest.raises(ConnectionError):
            client.sendall(b"a" * 2**26)
    assert get(server, "/livez")[0] == 200


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (
            "POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length with Transfer-Encoding",
        ),
        (
            "POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0",
            "Content-Length with Transfer-Encoding",
        ),
        ("POST /v2 HTTP/1.0\r\nTransfer-Encoding: chunked", "Transfer-Encoding in HTTP/1.0"),
        ("POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6", "Content-Length is invalid"),
        ("GET /livez HTTP/1.1", "one Host is needed"),
        ("GET /livez HTTP/1.1\r\nHost: a\r\nHost: b", "one Host is needed"),
        ("GET /livez HTTP/1.1\r\nHost: a, b", "one Host is needed"),
    ],
)
def test_a_request_that_a_proxy_may_read_otherwise_is_refused_and_its_connection_closed(
    server: Server, head: str, reason: str
) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as client:
        client.sendall(head.encode() + b"\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while part := client.recv(65536):  # to its end: the server closes
            received += part
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert reason.encode() in received
    assert b"python_info" not in received, "what follows is not taken for a request"


def test_a_request_of_http_1_0_needs_no_host(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as client:
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in client.recv(65536)


@pytest.mark.parametrize(
    "path", ["/", "/page/page.js", "/page/models", "/metrics", "/livez", "/v2", "/v2/models/none", "/none", "/%0a"]
)
def test_no_browser_takes_a_response_for_another_thing_than_it_is(server: Server, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response = http.client.HTTPResponse(client)
        response.begin()
        headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")


def test_a_client_that_does_not_read_is_given_up(repository: Path, serve: Serve) -> None:
    server = serve(repository, http_idle_seconds=1)
    answer_bytes = len(get(server, "/metrics")[2])
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * (2**26 // answer_bytes))
        deadline = time.monotonic() + 60
        while server._http._server.connections:
            assert time.monotonic() < deadline, "a thread waits until it has read"
            time.sleep(0.1)
    assert get(server, "/livez")[0] == 200


def test_a_recorded_trace_is_the_exemplar_of_its_buckets(server: Server, opened: grpc.Channel, digits: Dataset) -> None:
    recorded, other, malformed = "0af7651916cd43dd8448eb211c80319c", "1" * 32, "2" * 32
    classify = opened.unary_unary(
        "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
    )
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=digits.test.encoded(0))])
    for trace_id, rest in ((recorded, "b7ad6b7169203331-01"), (other, "b7ad6b7169203331-00"), (malformed, "0" * 16 + "-01")):
        classify(request, metadata=(("traceparent", f"00-{trace_id}-{rest}"),), timeout=10)
    classify(request, timeout=10)
    _, _, body = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert other not in body
    assert malformed not in body
    exemplars = [
        (family.name, sample.labels.get("phase"), sample.exemplar)
        for family in openmetrics.text_string_to_metric_families(body)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    ]
    assert {(name, phase) for name, phase, _ in exemplars} == {
        ("grpc_server_handling_seconds", None),
        *(("convoy_phase_seconds", phase) for phase in ("decode", "queue", "inference", "encode")),
    }
    assert {exemplar.labels["trace_id"] for _, _, exemplar in exemplars} == {recorded}
    assert "trace_id" not in get(server, "/metrics")[2], "the plain format knows no exemplars"


def test_counters_stand_at_zero_before_anything_happens(server: Server) -> None:
    found = samples(server)
    for reason in REASONS:
        assert found["convoy_rejections_total", "digits", reason] == 0
    for code in RPC_CODE_NAMES:
        assert found["grpc_server_handled_total", code, "Classify", "convoy.v1.Classifier", "unary"] == 0
    assert found["convoy_model_loads_total", "digits", "golden_mismatch"] == 0
    assert found["convoy_predictions_total", "3", "digits", "1"] == 0


def test_metrics_name_every_code_and_reason_that_there_is() -> None:
    assert {code.name for code in CODES.values()} | {"OK"} == set(RPC_CODE_NAMES)
    kinds: list[type[RequestError]] = [*RequestError.__subclasses__(), QuotaExceeded]
    assert {error.reason for error in kinds} - {None} == set(REASONS)
    assert {error.outcome for error in LoadError.__subclasses__()} | {LoadError.outcome, "ready"} == set(OUTCOMES)
