"""`/v2` over plain HTTP, as curl sends it, and what the well-behaved clients of the conformance tests never send."""

import base64
import contextlib
import gzip
import http.client
import io
import json
import resource
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.wrappers import Response

from export.data.datasets import Dataset
from service.http.event_loop import MAX_CONNECTIONS
from service.http.server import MAX_CONCURRENT_REQUESTS
from service.lifecycle import raise_file_limit
from service.pb.inference import open_inference_pb2 as pb
from service.server import Server
from tests.conftest import Serve, ServerProcess, Spawn, put
from tests.integration.test_repository import eventually


@pytest.fixture
def transport_name() -> str:
    """gRPC has no part in this: once is enough."""
    return "fast"


INFER = "/v2/models/digits/infer"


def ask(server: Server | ServerProcess, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def raw(server: Server, method: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def document(data: Any, shape: list[Any], datatype: str = "UINT8", **more: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "image", "datatype": datatype, "shape": shape, "data": data}], **more}).encode()


def test_an_image_file_as_it_is_in_json_and_as_pixels_gets_one_answer(server: Server, digits: Dataset) -> None:
    png, pixels = digits.test.encoded(0), digits.test.pixels[:1]
    answers = [
        ask(server, "POST", INFER, png, Inference_Header_Content_Length="0"),
        ask(server, "POST", INFER, document([base64.b64encode(png).decode()], [1], "BYTES")),
        ask(server, "POST", INFER, document(pixels.tolist(), [1, 28, 28, 1])),
        ask(server, "POST", INFER, document(pixels.ravel().tolist(), [1, 28, 28, 1])),
        ask(server, "POST", INFER, gzip.compress(document(pixels.tolist(), [1, 28, 28, 1])), Content_Encoding="gzip"),
        ask(server, "POST", INFER, in_members(document(pixels.tolist(), [1, 28, 28, 1])), Content_Encoding="gzip"),
        ask(server, "POST", INFER, zlib.compress(document(pixels.tolist(), [1, 28, 28, 1])), Content_Encoding="deflate"),
    ]
    assert [status for status, _ in answers] == [200] * len(answers)
    assert all(answer == answers[0][1] for _, answer in answers)
    probabilities = answers[0][1]["outputs"][0]["data"]
    assert np.argmax(probabilities) == digits.test.labels[0]


def in_members(content: bytes) -> bytes:
    """gzip data of many members, some of nothing, as from `cat a.gz b.gz`."""
    step = len(content) // 80
    return b"".join(gzip.compress(content[at : at + step]) for at in range(0, len(content), step)) + gzip.compress(b"") * 10


PIXELS = [0] * 784
BAD: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no JSON": (b"{", {}, 400, "the body is not JSON"),
    "NaN": (b'{"inputs": [NaN]}', {}, 400, "the body is not JSON"),
    "no object": (b"[1]", {}, 400, "but not an object"),
    "not UTF-8": (b"\xff\xfe{}", {}, 400, "the body is not JSON"),
    "nested for ever": (b"[" * 200_000, {}, 400, "the body is not JSON"),
    "no inputs": (b"{}", {}, 400, "'inputs' is missing; it must be an array"),
    "inputs of another kind": (b'{"inputs": [1]}', {}, 400, "the request has 1 inputs"),
    "a shape of texts": (document(PIXELS, ["a"]), {}, 400, "shape ['a'] is not accepted"),
    "fractions": (document([0.5] * 784, [1, 28, 28, 1]), {}, 400, "not every element of the input can be UINT8"),
    "no base64": (document(["%%%"], [1], "BYTES"), {}, 400, "strings in base64"),
    "a number for an image": (document([1], [1], "BYTES"), {}, 400, "strings in base64"),
    "an id of another kind": (document(PIXELS, [1, 28, 28, 1], id=5), {}, 400, "'id' is not a string"),
    "an unknown parameter": (document(PIXELS, [1, 28, 28, 1], parameters={"x": 1}), {}, 400, "unknown parameter 'x'"),
    "a length beyond the body": (b"{}", {"Inference-Header-Content-Length": "3"}, 400, "at most that of the body"),
    "a length that is none": (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "Inference-Header-Content-Length is '-1'"),
    "a length of many digits": (b"{}", {"Inference-Header-Content-Length": "9" * 5000}, 400, "at most that of the body"),
    "an unknown encoding": (b"{}", {"Content-Encoding": "br"}, 400, "'br' is none of gzip, deflate, identity"),
    "no gzip": (b"{}", {"Content-Encoding": "gzip"}, 400, "the body is not gzip data"),
    "gzip of very many members": (
        gzip.compress(b"") * 100 + gzip.compress(b"{}"),
        {"Content-Encoding": "gzip"},
        400,
        "100 members",
    ),
    "zlib of very many members": (zlib.compress(b"") * 200, {"Content-Encoding": "deflate"}, 400, "100 members"),
    "gzip cut short": (gzip.compress(b"{}")[:-9], {"Content-Encoding": "gzip"}, 400, "incomplete"),
    "gzip and something else": (gzip.compress(b"{}") + b"nonsense", {"Content-Encoding": "gzip"}, 400, "not gzip data"),
    "a bomb in members": (
        gzip.compress(bytes(2**20)) * 200,
        {"Content-Encoding": "gzip"},
        400,
        "the decompressed body is larger than",
    ),
    "dimensions of thousands of digits": (document([], [10**3000] * 2), {}, 400, "the shape has a dimension beyond"),
    "dimensions beyond any memory, and none": (
        document([], [2**63 - 1, 2**63 - 1, 0]),
        {},
        400,
        "is not accepted: it exceeds the size limit",
    ),
    "very many outputs": (document(PIXELS, [1, 28, 28, 1], outputs=[{}] * 1025), {}, 400, "1025 outputs; at most 1024"),
    "a bomb": (
        gzip.compress(bytes(200_000_000)),
        {"Content-Encoding": "gzip"},
        400,
        "the decompressed body is larger than",
    ),
    "no image file": (b"nonsense", {"Inference-Header-Content-Length": "0"}, 400, "item 0: not an image"),
}


def test_bad_bodies_are_named_and_the_server_goes_on(server: Server) -> None:
    for name, (body, headers, status, message) in BAD.items():
        got, answer = ask(server, "POST", INFER, body, **headers)
        assert (got, message in answer["error"]) == (status, True), (name, answer)
    assert ask(server, "POST", INFER, document(PIXELS, [1, 28, 28, 1]))[0] == 200


def test_paths_and_methods(server: Server) -> None:
    for method, path, status, message in (
        ("GET", "/v2/nothing", 404, "GET /v2/nothing: not found"),
        ("GET", INFER, 405, "method not allowed"),
        ("GET", "/v2//models/digits", 404, "not found"),
        ("POST", "/v2/models/nothing/infer", 404, "no model named 'nothing'"),
        ("GET", "/v2/models/nothing/ready", 404, "no model named 'nothing'"),
        ("GET", "/v2/trace/setting", 501, "trace settings are not offered"),
        ("POST", "/v2/cudasharedmemory/region/x/register", 501, "CUDA shared memory is not offered"),
        ("POST", "/v2/systemsharedmemory/region/x/register", 400, "'byte_size' is missing; it must be an integer"),
    ):
        got, answer = ask(server, method, path, document(PIXELS, [1, 28, 28, 1]) if path.endswith("infer") else None)
        assert (got, message in answer["error"]) == (status, True), (path, answer)
    for path in ("/v2/repository/index", "/v2/repository/models/digits/load", "/v2/systemsharedmemory/region/x/register"):
        got, answer = ask(server, "POST", path, b'{"name": "' + b"x" * 65_536 + b'"}')
        assert (got, answer["error"]) == (413, "the body is too large: at most 65536 bytes are accepted"), path
    assert ask(server, "GET", "/v2/models/digits/ready") == (200, {"ready": True})
    assert ask(server, "POST", "/v2/repository/index")[1][0]["state"] == "READY"


def test_head_and_options_of_every_route(server: Server) -> None:
    model = "/v2/models/digits"
    read = ("/", "/page/page.js", "/page/models", "/livez", "/readyz", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready",
            "/v2/models", "/v2/models/stats", model, f"{model}/ready", f"{model}/config", f"{model}/stats", f"{model}/versions/1",
            "/v2/systemsharedmemory/status")  # fmt: skip
    for path in read:
        status, headers, body = raw(server, "HEAD", path)
        assert (status, body) == (200, b""), path
        assert headers["Content-Type"] == raw(server, "GET", path)[1]["Content-Type"], path
        status, headers, body = raw(server, "OPTIONS", path)
        assert (status, headers["Allow"], body) == (204, "GET, HEAD, OPTIONS", b""), path
    for path in (INFER, "/v2/repository/index", "/v2/repository/models/digits/load", "/page/classify/digits"):
        status, headers, body = raw(server, "OPTIONS", path)
        assert (status, headers["Allow"], body) == (204, "OPTIONS, POST", b""), path
        assert raw(server, "HEAD", path)[0] == 405, path
    assert raw(server, "OPTIONS", "/nothing")[0] == 404


def test_the_names_of_the_served_models_are_listed(repository: Path, model_file: Path, serve: Serve) -> None:
    put(model_file, repository, "cats", 3)
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"nonsense")
    server = serve(repository)
    for path in ("/v2/models", "/v2/models/"):
        assert ask(server, "GET", path) == (200, {"models": ["cats", "digits"]})
    assert ask(server, "POST", "/v2/repository/models/cats/unload", b"{}")[0] == 200
    assert ask(server, "GET", "/v2/models") == (200, {"models": ["digits"]})


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "http://["}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_page_of_another_site_can_change_nothing(server: Server, headers: dict[str, str]) -> None:
    for path in ("/v2/repository/models/digits/unload", INFER, "/page/classify"):
        status, answer = ask(server, "POST", path, body=b"{}", **headers)
        assert (status, answer["error"]) == (403, "refused: a web page of another site sent this request"), path
    assert ask(server, "GET", "/v2/models/digits/ready", None, **headers) == (200, {"ready": True})


def test_a_page_of_this_server_may_ask(server: Server) -> None:
    body = document(PIXELS, [1, 28, 28, 1])
    assert ask(server, "POST", INFER, body, Origin=f"http://127.0.0.1:{server.http_port}")[0] == 200
    behind_a_proxy = {"Origin": "https://digits.example", "Sec-Fetch-Site": "same-origin"}
    assert ask(server, "POST", INFER, body, **behind_a_proxy)[0] == 200


def test_a_running_request_is_answered_when_the_server_stops(slow_file: Path, tmp_path: Path, serve: Serve) -> None:
    put(slow_file, tmp_path / "slow", "slow", 1)
    server = serve(tmp_path / "slow", lame_duck_seconds=0)
    answers: list[Any] = []
    body = document([0] * 16, [4, 2, 2, 1])
    asking = threading.Thread(target=lambda: answers.append(ask(server, "POST", "/v2/models/slow/infer", body)))
    asking.start()
    deadline = time.monotonic() + 30
    while not server._repository.served["slow"][0].inflight and time.monotonic() < deadline:
        time.sleep(0.001)
    server.stop()
    asking.join(60)
    [(status, answer)] = answers
    assert status == 200
    assert answer["outputs"][0]["shape"] == [4, 2]


def test_what_is_asked_over_http_is_counted_by_route_and_code(server: Server, digits: Dataset) -> None:
    for _ in range(3):
        assert ask(server, "POST", INFER, digits.test.encoded(0), Inference_Header_Content_Length="0")[0] == 200
    assert ask(server, "POST", INFER, b"{")[0] == 400
    assert ask(server, "POST", "/v2/models/cats/infer", b"pixels", Inference_Header_Content_Length="0")[0] == 404
    assert ask(server, "POST", "/v2/models/digits/versions/1/infer", b"{")[0] == 400
    assert ask(server, "GET", INFER)[0] == 405
    assert ask(server, "BREW", "/coffee")[0] == 404
    assert ask(server, "GET", "/v2/models/digits")[0] == 200
    counted = requests(server)
    infer = "/v2/models/<model>/infer"
    assert counted["POST", infer, "200"] == 3
    assert (counted["POST", infer, "400"], counted["POST", infer, "404"]) == (1, 1)
    assert counted["POST", "/v2/models/<model>/versions/<version>/infer", "400"] == 1
    assert (counted["GET", infer, "405"], counted["_OTHER", "", "404"], counted["GET", "/v2/models/<model>", "200"]) == (1, 1, 1)
    assert counted["POST", infer, "503"] == 0, "there from the start"
    assert requests(server)["GET", "/metrics", "200"] == counted.get(("GET", "/metrics", "200"), 0) + 1


def metrics(server: Server | ServerProcess) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def requests(server: Server | ServerProcess) -> dict[tuple[str, str, str], float]:
    """How many requests were answered, by method, route and status."""
    return {
        (
            sample.labels["http_request_method"],
            sample.labels["http_route"],
            sample.labels["http_response_status_code"],
        ): sample.value
        for family in text_string_to_metric_families(metrics(server))
        for sample in family.samples
        if sample.name == "http_server_request_duration_seconds_count"
    }


def test_a_request_that_finds_no_place_counts_for_the_route_that_it_wanted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._http, "_permits", threading.BoundedSemaphore(1))
    server._http._permits.acquire()
    assert ask(server, "POST", INFER, b"{")[0] == 429
    assert ask(server, "GET", "/v2/models/digits")[0] == 429
    server._http._permits.release()
    assert (requests(server)["POST", "/v2/models/<model>/infer", "429"], requests(server)["GET", "", "429"]) == (1, 1)


def test_without_rest_there_are_metrics_and_probes_alone(repository: Path, serve: Serve, digits: Dataset) -> None:
    server = serve(repository, rest=False)
    for path in (INFER, "/v2/models/digits", "/", "/page/models"):
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("POST" if path == INFER else "GET", path, digits.test.encoded(0) if path == INFER else None)
        response = connection.getresponse()
        assert (response.status, b"only /metrics, /livez and /readyz" in response.read()) == (404, True), path
        connection.close()
    assert requests(server)["POST", "/v2/models/<model>/infer", "404"] == 1


def test_without_control_requests_change_nothing(repository: Path, serve: Serve, digits: Dataset) -> None:
    server = serve(repository, control="off")
    changes = {
        "/v2/repository/models/digits/unload": b"{}",
        "/v2/repository/models/digits/load": b"{}",
        "/v2/systemsharedmemory/region/r/register": json.dumps({"key": "/nothing", "byte_size": 8}).encode(),
        "/v2/systemsharedmemory/unregister": b"{}",
    }
    for path, body in changes.items():
        status, answer = ask(server, "POST", path, body)
        assert (status, "--control" in answer["error"]) == (501, True), path
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        unload: grpc.UnaryUnaryMultiCallable = channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelUnload", pb.RepositoryModelUnloadRequest.SerializeToString
        )
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            unload(pb.RepositoryModelUnloadRequest(model_name="digits"))
    assert ask(server, "POST", INFER, digits.test.encoded(0), Inference_Header_Content_Length="0")[0] == 200


def test_the_memory_of_large_requests_is_given_back(repository: Path, spawn: Spawn) -> None:
    """Each of the port's threads, which take turns, has had one."""
    file = io.BytesIO()
    Image.new("RGBA", (1450, 1450)).save(file, "BMP")  # 8 MiB
    server = spawn(repository)

    def resident_bytes() -> float:
        [line] = [line for line in metrics(server).splitlines() if line.startswith("process_resident_memory_bytes ")]
        return float(line.split()[1])

    before = resident_bytes()
    for _ in range(80):
        assert ask(server, "POST", INFER, file.getvalue(), Inference_Header_Content_Length="0")[0] == 200
    assert resident_bytes() - before < 64 * 2**20


@pytest.mark.parametrize("workers", ["1", "2"])
def test_probes_are_answered_however_many_connections_are_open(repository: Path, spawn: Spawn, workers: str) -> None:
    raise_file_limit()
    server = spawn(repository, "--workers", workers)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 100):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port), timeout=60))
        for _ in range(3):
            assert probes(server) == [200, 200, 200]


def test_probes_are_answered_when_there_is_no_file_descriptor_for_another_connection(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository)
    pid = server.process.pid
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (files + 10, files + 10))
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port), timeout=60))
        for _ in range(3):
            assert probes(server) == [200, 200, 200]
    assert "out of file descriptors" in server.log.read_text()


def test_probes_are_answered_while_as_many_requests_run_as_may(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = threading.Event()

    def held(environ: Any, start_response: Any) -> Any:
        assert finish.wait(60)
        return Response("{}")(environ, start_response)

    monkeypatch.setattr(server._http, "_app", held)
    with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as pool:
        running = [pool.submit(ask, server, "GET", "/v2") for _ in range(MAX_CONCURRENT_REQUESTS)]
        eventually(lambda: server._http._permits._value == 0)
        assert probes(server) == [200, 200, 200]
        assert ask(server, "GET", "/v2")[0] == 429
        finish.set()
        assert {each.result()[0] for each in running} == {200}


def probes(server: Server | ServerProcess) -> list[int]:
    """The statuses of /livez, /readyz and /metrics, each asked over a connection of its own."""
    statuses = []
    for path in ("/livez", "/readyz", "/metrics"):
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
        connection.close()
    return statuses


@pytest.mark.parametrize("workers", ["1", "2"])
def test_trickling_headers_and_stalled_bodies_leave_probes_answered_and_memory_as_it_was(
    repository: Path, spawn: Spawn, workers: str
) -> None:
    raise_file_limit()
    server = spawn(repository, "--workers", workers)
    assert probes(server) == [200, 200, 200]
    pid = server.process.pid

    def resident_bytes() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident_bytes()
    with contextlib.ExitStack() as stack:

        def open_with(sent: bytes) -> socket.socket:
            opened = stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port), timeout=60))
            opened.sendall(sent)
            return opened

        head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000\r\n\r\n"
        stalled = [open_with(head.format(path).encode() + b"x") for path in [INFER] * 10 + ["/none", "/v2", "/livez"]]
        trickling = [open_with(b"GET /liv") for _ in range(MAX_CONNECTIONS)]
        for _ in range(3):
            for each in trickling:
                with contextlib.suppress(ConnectionError):
                    each.sendall(b"e")
            assert probes(server) == [200, 200, 200]
        assert resident_bytes() - before < 32 * 2**20
        for each in stalled[10:]:
            assert each.recv(65536).startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 413 ")), "refused without its body"
