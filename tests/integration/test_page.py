"""What the page asks of the server, without a browser (for that, see tests/system/test_page.py)."""

import base64
import http.client
import io
import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.data.datasets import Dataset
from service.model.repository_layout import MAX_VERSION
from service.server import Server
from tests.conftest import Serve, put


@pytest.fixture
def transport_name() -> str:
    """The page knows nothing of gRPC: once is enough."""
    return "fast"


def ask(server: Server, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}{path}", data=body)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_every_file_that_the_page_names_is_there_and_nothing_comes_from_elsewhere(server: Server) -> None:
    status, headers, page = ask(server, "/")
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    named = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert {"page/page.css", "page/page.js", "page/uPlot.iife.min.js"} <= set(named)
    assert not [each for each in named if each.startswith("/")], "the page works below any path"
    scripts = [f"/{path}" for path in named if path.startswith("page/")]
    for path in scripts:
        status, headers, content = ask(server, path)
        assert status == 200, path
        assert not re.findall(r"fetch\(.[/h]", content.decode())
        for module in re.findall(r'from "\./([^"]+)"', content.decode()):
            assert ask(server, f"/page/{module}")[0] == 200, module
    assert not [each for each in named if each.startswith(("http:", "https:", "//"))]


def test_a_file_that_has_not_changed_is_not_sent_again(server: Server) -> None:
    _, headers, _ = ask(server, "/page/page.css")
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.http_port}/page/page.css", headers={"If-None-Match": headers["ETag"]}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    caught.value.close()
    assert caught.value.code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/page/", "/page/nothing.js", "/page/../server.py", "/page/%2e%2e/server.py", "/elsewhere",
        "/page//models", "/page/models/", "/page//classify/digits", "/v2//models", "/v2/models//digits", "/livez//",
    ],
)  # fmt: skip
def test_nothing_else_is_to_be_had(server: Server, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404
    assert "not found" in json.loads(body)["error"]


def test_models_and_what_is_wrong_with_others(repository: Path, serve: Serve) -> None:
    broken = repository / "digits" / "2"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"nonsense")
    _, _, body = ask(serve(repository), "/page/models")
    said = json.loads(body)
    [digits] = said["models"]
    [version] = digits["versions"]
    assert digits["name"] == "digits"
    assert (version["version"], version["provider"], version["shape"], version["label_count"]) == ("1", "cpu", [28, 28, 1], 10)
    [trouble] = said["troubles"]
    assert (trouble["name"], trouble["version"], trouble["state"]) == ("digits", "2", "UNAVAILABLE")
    assert "ONNX" in trouble["reason"]


def test_a_picture_is_answered_with_what_the_network_saw(server: Server, digits: Dataset) -> None:
    status, _, body = ask(server, "/page/classify/digits", digits.test.encoded(0))
    assert status == 200
    answer = json.loads(body)
    assert answer["predictions"][0]["label"] == digits.labels[digits.test.labels[0]]
    assert sum(each["probability"] for each in answer["predictions"]) == pytest.approx(1, abs=1e-4)
    assert {"queue", "inference"} <= set(answer["phases_ms"])
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["seen"].partition(",")[2]))))
    assert np.array_equal(seen, digits.test.pixels[0].squeeze(-1))


def test_a_version_can_be_chosen(repository: Path, model_file: Path, serve: Serve, digits: Dataset) -> None:
    put(model_file, repository, "digits", MAX_VERSION)
    (repository / "digits" / "serving.toml").write_text(f'versions = "all"\n[aliases]\nnewest = {MAX_VERSION}')
    server = serve(repository)
    [model] = json.loads(ask(server, "/page/models")[2])["models"]
    assert model["aliases"] == {"newest": str(MAX_VERSION)}, "a text: JavaScript would round the number"
    for version in (each["version"] for each in model["versions"]):
        _, _, body = ask(server, f"/page/classify/digits/{version}", digits.test.encoded(0))
        assert json.loads(body)["version"] == version
    assert [each["version"] for each in model["versions"]] == [str(MAX_VERSION), "1"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/page/classify/digits", b"nonsense", 400, "image"),
        ("/page/classify/digits", b"", 400, "image file"),
        ("/page/classify/cats", b"x", 404, "cats"),
        ("/page/classify/digits/7", b"x", 404, "7"),
        ("/page/classify/digits", None, 405, "method not allowed"),
    ],
)
def test_what_cannot_be_answered_is_said_clearly(server: Server, path: str, body: bytes | None, status: int, said: str) -> None:
    got, _, text = ask(server, path, body)
    assert (got, said in json.loads(text)["error"].lower()) == (status, True)


def test_the_page_can_be_left_out(repository: Path, serve: Serve) -> None:
    server = serve(repository, page=False)
    assert ask(server, "/")[0] == 404
    assert ask(server, "/page/models")[0] == 404
    assert ask(server, "/livez")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status", "why"),
    [
        ("Content-Length: 1048577", 413, "the body is too large: at most 1048576 bytes are accepted"),
        ("Content-Length: many", 400, "bad request: Content-Length is invalid"),
    ],
)
def test_what_is_refused_before_it_is_read_is_told_as_all_refusals_are(
    repository: Path, serve: Serve, headers: str, status: int, why: str
) -> None:
    server = serve(repository, max_message_bytes=1 << 20)
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        connection.sendall(f"POST /page/classify/digits HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.headers["Content-Type"]) == (status, "application/json")
        assert json.loads(response.read()) == {"error": why}
        assert connection.recv(1) == b""
