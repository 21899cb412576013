"""Spans, as an OpenTelemetry collector in this process receives them."""

import itertools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from export.data.datasets import Dataset
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.conftest import Serve, put

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PHASES = {"decode", "queue", "inference", "encode"}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that it receives."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.resources: list[dict[str, str]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - its name in the protocol
        for resource in request.resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def named(self, name: str) -> list[trace_pb2.Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    started = Collector()
    yield started
    started.stop()


def classify(server: Server, request: pb.ClassifyRequest, traceparent: str = "") -> pb.ClassifyResponse:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(
            "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        answer: pb.ClassifyResponse = call(request, metadata=(("traceparent", traceparent),) if traceparent else (), timeout=30)
        return answer


def attributes(span: trace_pb2.Span) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_request_has_a_span_under_its_clients_with_one_for_each_phase(
    repository: Path, serve: Serve, collector: Collector, digits: Dataset
) -> None:
    before = time.time_ns()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("grpc_proxy", "http://127.0.0.1:9")  # is not for this machine
        server = serve(repository, otlp_endpoint=collector.url)
    request = pb.ClassifyRequest(model="digits", id="order-66", items=[pb.Item(encoded=digits.test.encoded(0))] * 3)
    answer = classify(server, request, f"00-{TRACE}-{PARENT}-01")
    server.stop()
    (root,) = collector.named("classify")
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.kind) == (TRACE, PARENT, trace_pb2.Span.SPAN_KIND_SERVER)
    assert attributes(root) == {
        "convoy.request_id": "order-66", "convoy.model": "digits", "convoy.version": 1, "convoy.items": 3,
    }  # fmt: skip
    phases = {span.name: span for span in collector.spans if span.parent_span_id == root.span_id}
    assert phases.keys() == PHASES
    assert {span.trace_id.hex() for span in phases.values()} == {TRACE}
    for name in ("decode", "queue", "inference"):
        seconds = getattr(answer.phases, f"{name}_seconds")
        took = phases[name].end_time_unix_nano - phases[name].start_time_unix_nano
        assert took / 1e9 == pytest.approx(seconds, abs=1e-3), name
    moments = [
        getattr(phases[name], f"{end}_time_unix_nano") for name in ("decode", "queue", "inference") for end in ("start", "end")
    ]
    moments += [phases["encode"].start_time_unix_nano, phases["encode"].end_time_unix_nano, root.end_time_unix_nano]
    slack = 1_000_000  # the clock is asked anew for each moment
    assert all(earlier <= later + slack for earlier, later in itertools.pairwise(moments))
    assert before <= root.start_time_unix_nano <= root.end_time_unix_nano <= time.time_ns()
    (batch,) = collector.named("batch")
    assert attributes(batch) == {"convoy.model": "digits", "convoy.version": 1, "convoy.items": 3}
    assert [(link.trace_id, link.span_id) for link in batch.links] == [(root.trace_id, root.span_id)]
    assert [(link.trace_id, link.span_id) for link in phases["inference"].links] == [(batch.trace_id, batch.span_id)]
    assert batch.trace_id != root.trace_id
    assert collector.resources[0]["service.name"] == "convoy"


def test_a_batch_links_to_all_its_requests(repository: Path, serve: Serve, slow_file: Path, collector: Collector) -> None:
    put(slow_file, repository, "slow", 1)
    (repository / "slow" / "serving.toml").write_text("max_batch_size = 8\n")
    server = serve(repository, otlp_endpoint=collector.url)
    request = pb.ClassifyRequest(model="slow", items=[pb.Item(pixels=bytes(4))])
    clients = [threading.Thread(target=classify, args=(server, request)) for _ in range(6)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    server.stop()
    batches = collector.named("batch")
    assert sum(attributes(batch)["convoy.items"] for batch in batches) == 6
    assert len(batches) < 6, "they came while the first was computed"
    linked = sorted(link.span_id for batch in batches for link in batch.links)
    assert linked == sorted(span.span_id for span in collector.named("classify"))
    assert all(len(batch.links) == attributes(batch)["convoy.items"] for batch in batches)


def test_the_client_decides_whether_its_trace_is_recorded_and_the_share_decides_for_others(
    repository: Path, serve: Serve, collector: Collector, digits: Dataset
) -> None:
    server = serve(repository, otlp_endpoint=collector.url, trace_sample=0.0)
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=digits.test.encoded(0))])
    classify(server, request)
    classify(server, request, f"00-{'1' * 32}-{PARENT}-00")
    classify(server, request, f"00-{TRACE}-{PARENT}-01")
    server.stop()
    assert [span.trace_id.hex() for span in collector.named("classify")] == [TRACE]
    assert len(collector.named("batch")) == 1


def test_a_failed_request_has_an_error_span_and_no_span_stays_open(repository: Path, serve: Serve, collector: Collector) -> None:
    server = serve(repository, otlp_endpoint=collector.url)
    for model in ("digits", "cats"):
        with pytest.raises(grpc.RpcError):
            classify(server, pb.ClassifyRequest(model=model, items=[pb.Item(encoded=b"nonsense")]))
    tracing = server._tracing
    assert tracing is not None
    assert tracing._open == {}
    server.stop()
    invalid, unknown = collector.named("classify")
    assert (attributes(invalid)["error.type"], attributes(unknown)["error.type"]) == ("InvalidRequest", "NotFound")
    assert {span.status.code for span in (invalid, unknown)} == {trace_pb2.Status.STATUS_CODE_ERROR}
    assert invalid.status.message.startswith("item 0: ")
    assert "nonsense" not in str(collector.spans)


def test_a_missing_collector_delays_neither_requests_nor_the_stop(
    repository: Path, serve: Serve, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(repository, otlp_endpoint="http://127.0.0.1:1")
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=digits.test.encoded(0))])
    for _ in range(20):
        assert classify(server, request).model == "digits"
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    started = threading.Thread(target=server.stop)
    started.start()
    started.join(60)
    assert not started.is_alive()


def test_a_server_without_tracing_does_not_import_opentelemetry() -> None:
    code = "import sys, service.server; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
