"""The HTTP port behind a reverse proxy, and for web pages of other origins: requests as proxies and browsers send them."""

import contextlib
import http.client
import socket
from pathlib import Path

import pytest

from export.data.datasets import Dataset
from service.config import ServerConfig
from service.errors import UserError
from service.server import Server
from tests.conftest import Serve, ServerProcess, Spawn
from tests.integration.test_repository import eventually

CLASSIFY = "/page/classify/digits"
INFER = "/v2/models/digits/infer"
CATS = "https://cats.example"
PAGE = {"Host": "upstream:8002", "Origin": "http://cats.example"}  # nginx's default: Host is what `proxy_pass` names


@pytest.fixture
def transport_name() -> str:
    """gRPC has no part in this: once is enough."""
    return "fast"


def send(
    server: Server | ServerProcess, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_the_page_s_picture_is_classified_behind_a_proxy_that_rewrites_host(
    repository: Path, serve: Serve, digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    picture = digits.test.encoded(0)
    named = ("cats.example", "upstream")
    untrusting = serve(repository, allowed_hosts=named)
    for forwarded in ({}, {"X_Forwarded_Host": "cats.example"}):
        assert send(untrusting, "POST", CLASSIFY, picture, **PAGE, **forwarded)[0] == 403
    [line] = [record.getMessage() for record in caplog.records if "--trusted-proxies" in record.getMessage()]
    assert "a web page of 'http://cats.example', which was sent to 'upstream:8002'" in line
    for trusted in ("127.0.0.1", "::1,127.0.0.0/8"):
        trusting = serve(repository, trusted_proxies=tuple(trusted.split(",")), allowed_hosts=named)
        forwarded = {"X_Forwarded_Host": "cats.example", "X_Forwarded_Proto": "http", "X_Forwarded_For": "203.0.113.5"}
        assert send(trusting, "POST", CLASSIFY, picture, **PAGE, **forwarded)[0] == 200
        assert send(trusting, "POST", CLASSIFY, picture, **PAGE | {"Origin": "http://evil.example"}, **forwarded)[0] == 403
    elsewhere = serve(repository, trusted_proxies=("10.0.0.0/8",), allowed_hosts=named)
    assert send(elsewhere, "POST", CLASSIFY, picture, **PAGE, X_Forwarded_Host="cats.example")[0] == 403


def test_a_proxy_on_the_unix_socket_can_be_trusted(repository: Path, serve: Serve, digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    picture = digits.test.encoded(0)
    for trusted, status in (((), 403), (("127.0.0.1",), 403), (("unix",), 200)):
        server = serve(repository, http_socket=path, trusted_proxies=trusted, allowed_hosts=("cats.example", "upstream"))
        with contextlib.closing(http.client.HTTPConnection("upstream")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request("POST", CLASSIFY, picture, PAGE | {"X-Forwarded-Host": "cats.example"})
            assert connection.getresponse().status == status, trusted
        assert send(server, "POST", CLASSIFY, picture, **PAGE, X_Forwarded_Host="cats.example")[0] == (
            200 if "127.0.0.1" in trusted else 403
        )
        server.stop()


@pytest.mark.parametrize("host", ["cats.example:80", "cats.example"])
def test_a_default_port_in_host_makes_no_other_site(repository: Path, serve: Serve, digits: Dataset, host: str) -> None:
    picture = digits.test.encoded(0)
    server = serve(repository, allowed_hosts=("cats.example",))
    assert send(server, "POST", CLASSIFY, picture, Host=host, Origin="http://cats.example")[0] == 200
    assert send(server, "POST", CLASSIFY, picture, Host=host, Origin="http://cats.example:8080")[0] == 403


@pytest.mark.parametrize("options", [[], ["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--workers", "2"]])
def test_a_page_whose_name_was_bound_to_this_server_changes_nothing(repository: Path, spawn: Spawn, options: list[str]) -> None:
    """DNS rebinding: for the browser `http://evil.example` is one site, on whatever machine it is."""
    server = spawn(repository, "--control", "on", *options)
    evil = f"evil.example:{server.http_port}"
    for path in ("/v2/repository/models/digits/unload", INFER, CLASSIFY):
        status, _, body = send(server, "POST", path, b"{}", Host=evil, Origin=f"http://{evil}")
        assert (status, b"--allowed-hosts" in body) == (403, True), path
    assert f"refused a request to the host '{evil}'" in server.log.read_text()
    reads = {path: send(server, "GET", path, Host=evil)[0] for path in ("/v2/models", "/metrics", "/page/models", "/", "/livez")}
    assert set(reads.values()) == ({200} if options else {200, 403})
    assert send(server, "GET", "/v2/models/digits/ready")[0] == 200
    service = "convoy.default.svc.cluster.local"
    assert send(server, "POST", "/v2/repository/index", b"{}", Host=service)[0] == (200 if options else 403)
    assert send(server, "POST", "/v2/repository/models/digits/unload", b"{}", Host=f"127.0.0.1:{server.http_port}")[0] == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_names_of_the_server_are_told_to_it(repository: Path, spawn: Spawn, digits: Dataset, workers: str) -> None:
    server = spawn(repository, "--allowed-hosts", "convoy.example,*.cats.example", "--workers", workers)
    for host in ("convoy.example", "digits.cats.example:80", "localhost", "[::1]:80"):
        assert send(server, "GET", "/v2/models", Host=host)[0] == 200
        assert send(server, "POST", CLASSIFY, digits.test.encoded(0), Host=host, Origin=f"http://{host}")[0] == 200
    for path in ("/v2/models", "/metrics", "/", "/page/page.js", "/nothing"):
        assert send(server, "GET", path, Host="evil.example")[0] == 403


@pytest.mark.parametrize(
    "settings", [{"root_path": "/ml/convoy"}, {"root_path": "/ml/convoy/"}, {"trusted_proxies": ("127.0.0.1",)}]
)
def test_paths_are_taken_with_the_prefix_and_without_it(
    repository: Path, serve: Serve, digits: Dataset, settings: dict[str, object]
) -> None:
    server = serve(repository, **settings)
    prefix = {"X_Forwarded_Prefix": "/ml/convoy"}
    for begin in ("", "/ml/convoy"):
        for path in ("/", "/page/page.js", "/livez", "/readyz", "/metrics", "/v2", "/v2/models/digits"):
            assert send(server, "GET", begin + path, None, **prefix)[0] == 200, begin + path
        for path in (CLASSIFY, INFER):
            body = digits.test.encoded(0)
            assert send(server, "POST", begin + path, body, Inference_Header_Content_Length="0", **prefix)[0] == 200, begin + path
    status, headers, _ = send(server, "GET", "/ml/convoy?model=digits", None, **prefix)
    assert (status, headers["Location"]) == (308, "convoy/?model=digits")
    assert send(server, "GET", "/ml/convoyage", None, **prefix)[0] == 404
    assert send(server, "GET", "/ml/convoy/ml/convoy/livez", None, **prefix)[0] == 404


def test_the_ready_log_has_the_root_path(repository: Path, spawn: Spawn) -> None:
    server = spawn(repository, "--root-path", "/convoy")
    eventually(lambda: f"the page is http://127.0.0.1:{server.http_port}/convoy/ " in server.log.read_text())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_page_of_an_allowed_origin_may_send_requests_and_read_the_answers(
    repository: Path, spawn: Spawn, digits: Dataset, workers: str
) -> None:
    server = spawn(repository, "--allowed-origins", f"https://dogs.example,{CATS}", "--root-path", "/convoy", "--workers", workers)
    asked = {"Origin": CATS, "Access_Control_Request_Method": "POST"}
    wanted = "content-type,inference-header-content-length"
    for path in (INFER, f"/convoy{INFER}"):
        status, headers, body = send(server, "OPTIONS", path, None, **asked, Access_Control_Request_Headers=wanted)
        assert (status, body, headers["Vary"]) == (204, b"", "Origin")
        assert headers["Access-Control-Allow-Origin"] == CATS
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert headers["Access-Control-Allow-Headers"] == wanted
        assert int(headers["Access-Control-Max-Age"]) > 0
        picture = digits.test.encoded(0)
        from_cats = {"Origin": CATS, "Sec_Fetch_Site": "cross-site"}
        status, headers, _ = send(server, "POST", path, picture, **from_cats, Inference_Header_Content_Length="0")
        assert (status, headers.get_all("Access-Control-Allow-Origin"), headers.get_all("Vary")) == (200, [CATS], ["Origin"])
        assert "Inference-Header-Content-Length" in headers["Access-Control-Expose-Headers"]
        status, headers, _ = send(server, "POST", path, b"{", **from_cats)
        assert (status, headers["Access-Control-Allow-Origin"]) == (400, CATS), "errors can be read too"
    for origin in ("https://evil.example", "http://cats.example", "https://cats.example.evil.example", "null"):
        for method in ("OPTIONS", "POST"):
            status, headers, _ = send(server, method, INFER, None, **asked | {"Origin": origin})
            assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (403, None, "Origin")
    status, headers, _ = send(server, "GET", "/v2/models")
    assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (200, None, "Origin")


def test_every_origin_may_be_allowed(repository: Path, serve: Serve, digits: Dataset) -> None:
    server = serve(repository, allowed_origins=("*",))
    for origin in (CATS, "null"):
        status, headers, _ = send(server, "POST", CLASSIFY, digits.test.encoded(0), Origin=origin, Sec_Fetch_Site="cross-site")
        assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (200, "*", None)


def test_no_header_of_cors_is_sent_unless_asked_for(server: Server) -> None:
    status, headers, _ = send(server, "OPTIONS", INFER, Origin=CATS, Access_Control_Request_Method="POST")
    assert (status, [name for name in headers if name.startswith("Access-Control")]) == (403, [])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--allowed-origins", "cats.example", "--allowed-origins 'cats.example' is not accepted: an origin is like https://"),
        ("--allowed-origins", "https://cats.example/", "is not accepted: an origin is like https://cats.example"),
        ("--allowed-origins", "null", "is not accepted"),
        ("--allowed-origins", "https://*.cats.example", "* alone allows every origin"),
        ("--allowed-hosts", "convoy.example:80", "--allowed-hosts 'convoy.example:80' is not accepted: a name is like convoy.ex"),
        ("--trusted-proxies", "proxy.example", "--trusted-proxies 'proxy.example' is not accepted: an address (10.0.0.7)"),
        ("--trusted-proxies", "10.0.0.0/33", "is not accepted"),
        ("--root-path", "convoy", "--root-path 'convoy' is not accepted: a path such as /convoy"),
        ("--root-path", "//evil.example", "is not accepted"),
        ("--root-path", "/convoy/../admin", "is not accepted"),
        ("--root-path", "/v2/", "Convoy serves paths of its own that begin so"),
    ],
)
def test_a_setting_that_is_not_accepted_is_one_line(repository: Path, option: str, value: str, message: str) -> None:
    name = option.removeprefix("--").replace("-", "_")
    with pytest.raises(UserError) as ended:
        Server(ServerConfig.model_validate({"repository": repository, name: value if name == "root_path" else (value,)}))
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)
