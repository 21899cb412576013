"""What a server logs: the access log, text and JSON, and no data of clients."""

import http.client
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pytest

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.config import ServerConfig
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.process.logs import set_up_logging
from service.server import Server
from tests.conftest import SLOW_SECONDS, Serve, Spawn, put
from tests.program import convoy_here, one_line


@pytest.fixture
def transport_name() -> str:
    """Both transports log through the same calls: once is enough."""
    return "fast"


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Restores the root logger."""
    root, watchfiles = logging.getLogger(), logging.getLogger("watchfiles")
    before, levels = set(root.handlers), (root.level, watchfiles.level)
    yield
    for handler in set(root.handlers) - before:
        root.removeHandler(handler)
    root.setLevel(levels[0])
    watchfiles.setLevel(levels[1])


def access_lines(log: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines()]
    return [line for line in lines if line["logger"] == "convoy.access"]


FORGED = "\n2026-01-01 [info] all is well\x1b[31m\r\x9b1m\x7f\u2028"
CONTROLS = "\r\x1b\x9b\x7f\u2028"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_name_forges_lines_of_the_log_or_commands_a_terminal(
    repository: Path, spawn: Spawn, model_file: Path, form: str
) -> None:
    folder = repository / f"net{FORGED}"
    folder.mkdir()
    shutil.copy(model_file, folder / "model.onnx")
    server = spawn(repository, "--access-log-sample", "1", "--log-format", form)
    with Client(f"127.0.0.1:{server.grpc_port}") as client, pytest.raises(CallFailed):
        client.classify([b"picture"], model=f"x{FORGED}")
    name = quote(f"y{FORGED}")
    for path in (f"/v2/models/{name}/infer", f"/v2/repository/models/{name}/load", f"/v2/models/digits/versions/{name}/infer"):
        for header in ("Host", "Origin", "traceparent", "X-Forwarded-Host"):
            connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
            connection.putrequest("POST", path, skip_host=header == "Host")
            connection.putheader(header, "z\x1b[31m\x9b1m.example")
            connection.putheader("Content-Length", "2")
            connection.endheaders(b"{}")
            assert connection.getresponse().status >= 400
            connection.close()
    assert server.terminate() == 0
    log = server.log.read_bytes().decode()
    assert "all is well" in log
    assert not any(control in log for control in CONTROLS)
    assert not any(line.lstrip().startswith("2026-01-01 [info]") for line in log.split("\n"))


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_text_of_an_error_forges_no_lines_either(root_logger: None, capsys: pytest.CaptureFixture[str], form: Any) -> None:
    set_up_logging("info", form)
    try:
        raise ValueError(f"no such name: x{FORGED}")
    except ValueError:
        logging.getLogger("convoy.test").exception("it failed")
    log = capsys.readouterr().err
    assert "ValueError: no such name: x" in log
    assert not any(control in log for control in CONTROLS)
    assert not any(line.startswith("2026-01-01") for line in log.split("\n"))


def test_the_json_access_log_has_one_line_a_request_and_no_payload(repository: Path, spawn: Spawn, digits: Dataset) -> None:
    server = spawn(repository, "--log-format", "json", "--log-level", "warning", "--access-log-sample", "1")
    request = pb.ClassifyRequest(model="digits", id="order-66", items=[pb.Item(encoded=digits.test.encoded(0))] * 2)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        classify = channel.unary_unary(
            "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        classify(request, metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),), timeout=10)
        for model, item in (("x" * 500 + "\x1b[31m", pb.Item(encoded=b"secret")), ("digits", pb.Item(encoded=b"secret"))):
            with pytest.raises(grpc.RpcError):
                classify(pb.ClassifyRequest(model=model, id="a\nb\x1b", items=[item]), timeout=10)
    assert server.terminate() == 0
    log = server.log.read_text()
    assert "secret" not in log
    assert "\x1b" not in log
    answered, unknown, invalid = access_lines(log)
    assert answered.pop("timestamp").endswith("Z")
    seconds = {key: answered.pop(key) for key in list(answered) if key.endswith("seconds")}
    assert answered == {
        "message": "request", "logger": "convoy.access", "level": "info", "request_id": "order-66", "trace_id": TRACE,
        "model": "digits", "version": "1", "items": 2, "outcome": "ok",
    }  # fmt: skip
    assert seconds.keys() == {"seconds", "decode_seconds", "queue_seconds", "inference_seconds", "encode_seconds"}
    total = seconds.pop("seconds")
    assert 0 < sum(seconds.values()) <= total + 1e-4
    assert (unknown["outcome"], unknown["request_id"]) == ("NotFound", r"'a\nb\x1b'")
    assert len(unknown["model"]) < 200
    assert (invalid["outcome"], invalid["why"][:8]) == ("InvalidRequest", "item 0: ")


def test_the_access_log_is_off_by_default_and_logs_the_configured_share(
    repository: Path, serve: Serve, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    lines: dict[float, int] = {}
    for share in (0.0, 0.25):
        caplog.clear()
        server = serve(repository, access_log_sample=share)
        with caplog.at_level(logging.INFO), Client(f"127.0.0.1:{server.grpc_port}") as client:
            for _ in range(400):
                client.classify([digits.test.encoded(0)], "digits")
        server.stop()
        lines[share] = sum(record.name == "convoy.access" for record in caplog.records)
    assert lines[0.0] == 0
    assert 50 <= lines[0.25] <= 150, "further off once in ten million times"


def test_a_cancelled_request_is_logged_as_such(
    repository: Path, slow_file: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    put(slow_file, repository, "slow", 1)
    (repository / "slow" / "serving.toml").write_text("max_batch_size = 8\n")
    server = serve(repository, access_log_sample=1.0)
    with caplog.at_level(logging.INFO), Client(f"127.0.0.1:{server.grpc_port}", timeout_seconds=0.05) as client:
        deadline = time.monotonic() + 20
        found: list[logging.LogRecord] = []
        while not found and time.monotonic() < deadline:  # on a busy machine the deadline may pass before the server has the call
            with pytest.raises(CallFailed):
                client.classify([np.zeros((2, 2, 1), np.uint8)], "slow")
            time.sleep(SLOW_SECONDS)
            found = [record for record in caplog.records if record.name == "convoy.access"]
    assert {record.__dict__["outcome"] for record in found} == {"DeadlineExceeded"}


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_shows_no_values_of_variables(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", form)  # type: ignore[arg-type]
    payload = "do not " + "tell"
    try:
        raise ValueError(len(payload))
    except ValueError:
        logging.getLogger("service.test").exception("it failed on %d requests", 3)
    told = capsys.readouterr().err
    assert "it failed on 3 requests" in told
    assert "ValueError: 11" in told
    assert "service.test" in told
    assert "do not tell" not in told
    if form == "json":
        (line,) = told.splitlines()
        assert json.loads(line)["level"] == "error"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--log-format", "xml"), "'xml' is not one of 'text', 'json'"),
        (("--access-log-sample", "1.5"), "1.5 is not in the range 0<=x<=1"),
        (("--access-log-sample", "nan"), "nan is not a finite number"),
        (("--trace-sample", "-1"), "-1.0 is not in the range 0<=x<=1"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(repository: Path, arguments: tuple[str, str], said: str) -> None:
    assert said in one_line(convoy_here("serve", repository, "--grpc-port", "0", "--http-port", "0", *arguments))


@pytest.mark.parametrize("endpoint", ["collector:4317", "", "http://[x"])
def test_a_wrong_address_of_the_collector_is_one_clear_line(repository: Path, endpoint: str) -> None:
    with pytest.raises(UserError) as refused:
        Server(ServerConfig(repository=repository, otlp_endpoint=endpoint))
    assert str(refused.value) == f"--otlp-endpoint {endpoint!r} is not http://HOST:PORT or https://HOST:PORT"
