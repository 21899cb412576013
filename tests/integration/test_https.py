"""HTTPS on the HTTP port, client certificates, and the port of its own for probes and metrics."""

import contextlib
import http.client
import json
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from export.data.datasets import Dataset
from tests.conftest import Serve, Spawn, convoy

INFER = "/v2/models/digits/infer"
ADMIN_PATHS = ("/livez", "/readyz", "/metrics")


@pytest.fixture
def transport_name() -> str:
    """gRPC has no part in this: once is enough."""
    return "fast"


class Certificates:
    """Files of a server's certificate, a client's, and the authority of both."""

    def __init__(self, folder: Path) -> None:
        self.pem, self.key, self.ca = folder / "pem", folder / "key", folder / "ca"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.ca)
        self.renew()

    def renew(self) -> None:
        issued = self._authority.issue_cert("127.0.0.1", "localhost")
        issued.private_key_pem.write_to_path(self.key)
        issued.cert_chain_pems[0].write_to_path(self.pem)

    @property
    def flags(self) -> list[str]:
        return ["--tls-cert", str(self.pem), "--tls-key", str(self.key)]

    def client(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if with_certificate:
            self._authority.issue_cert("client").configure_cert(context)
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def ask(port: int, path: str, context: ssl.SSLContext | None, body: bytes | None = None) -> tuple[int, bytes]:
    headers = {} if body is None else {"Inference-Header-Content-Length": "0"}
    connection = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        if context is None
        else http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    )
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def test_all_of_the_port_is_served_over_https(repository: Path, spawn: Spawn, certificates: Certificates, digits: Dataset) -> None:
    server = spawn(repository, *certificates.flags)
    context = certificates.client()
    assert [ask(server.http_port, path, context)[0] for path in ("/", *ADMIN_PATHS, "/v2/models/digits")] == [200] * 5
    assert ask(server.http_port, INFER, context, digits.test.encoded(0))[0] == 200
    assert ask(server.http_port, INFER, context, bytes(2**20))[0] == 400, "it is no picture"
    assert f"the page is https://127.0.0.1:{server.http_port}/" in server.log.read_text()
    with pytest.raises(ConnectionError):
        ask(server.http_port, "/livez", None)
    measured = convoy(
        "bench", "--model", "digits", "--server", f"127.0.0.1:{server.grpc_port}", "--tls-ca", certificates.ca, "--seconds", "0.3",
        "--warmup", "0", "--metrics", f"https://127.0.0.1:{server.http_port}/metrics",
    )  # fmt: skip
    assert measured.returncode == 0, measured
    assert "no server metrics" not in measured.stdout


def test_a_renewed_certificate_is_shown_to_new_connections_and_open_ones_stay(
    repository: Path, serve: Serve, certificates: Certificates
) -> None:
    server = serve(repository, tls_cert=certificates.pem, tls_key=certificates.key)

    def shown() -> tuple[http.client.HTTPSConnection, bytes]:
        connection = http.client.HTTPSConnection("127.0.0.1", server.http_port, timeout=30, context=certificates.client())
        connection.connect()
        return connection, ssl.SSLSocket.getpeercert(connection.sock, binary_form=True) or b""

    first, old = shown()
    certificates.renew()
    second, new = shown()
    assert old != new
    certificates.key.write_text("nonsense")
    third, kept = shown()
    assert kept == new, "what cannot be read is not taken"
    for connection in (first, second, third):
        with contextlib.closing(connection):
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b"ok\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_client_needs_a_certificate_for_all_but_probes(
    repository: Path, spawn: Spawn, certificates: Certificates, digits: Dataset, workers: str
) -> None:
    server = spawn(repository, *certificates.flags, "--tls-client-ca", str(certificates.ca), "--workers", workers)
    known, unknown = certificates.client(with_certificate=True), certificates.client()
    picture = digits.test.encoded(0)
    assert [ask(server.http_port, path, unknown)[0] for path in ("/livez", "/readyz")] == [200, 200]
    for path, body in (("/", None), ("/metrics", None), ("/v2", None), ("/none", None), (INFER, picture), (INFER, bytes(2**20))):
        assert ask(server.http_port, path, unknown, body)[0] == 401, path
    assert [ask(server.http_port, path, known)[0] for path in ("/", *ADMIN_PATHS, "/v2")] == [200] * 5
    assert ask(server.http_port, INFER, known, picture)[0] == 200
    stranger = ssl.create_default_context(cafile=str(certificates.ca))
    trustme.CA().issue_cert("stranger").configure_cert(stranger)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(server.http_port, "/livez", stranger)


@pytest.mark.parametrize("given", ["the certificate alone", "the authority that issued it, without its own issuer"])
def test_both_ports_let_in_who_has_what_the_file_names(
    repository: Path, serve: Serve, certificates: Certificates, tmp_path: Path, given: str
) -> None:
    authority = trustme.CA().create_child_ca()
    issued = authority.issue_cert("client")
    known = authority.cert_pem if given.startswith("the authority") else issued.cert_chain_pems[0]
    known.write_to_path(tmp_path / "known")
    server = serve(repository, tls_cert=certificates.pem, tls_key=certificates.key, tls_client_ca=tmp_path / "known")
    context = certificates.client()
    issued.configure_cert(context)
    assert ask(server.http_port, "/v2", context)[0] == 200
    root = certificates.ca.read_bytes()
    credentials = grpc.ssl_channel_credentials(root, issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
        live: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        live(b"", timeout=20)
    stranger = certificates.client(with_certificate=True)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(server.http_port, "/livez", stranger)


def test_the_application_is_told_the_client_s_certificate(repository: Path, serve: Serve, certificates: Certificates) -> None:
    server = serve(repository, tls_cert=certificates.pem, tls_key=certificates.key, tls_client_ca=certificates.ca)
    told: list[Any] = []
    inner = server._http._app
    assert inner is not None

    def application(environ: Any, start_response: Any) -> Any:
        told.append((environ["convoy.peer_certificate"], environ["wsgi.url_scheme"]))
        return inner(environ, start_response)

    server._http._app = application
    assert ask(server.http_port, "/v2", certificates.client(with_certificate=True))[0] == 200
    [(certificate, scheme)] = told
    assert b"client" in certificate
    assert scheme == "https"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_admin_port_has_probes_and_metrics_alone(
    repository: Path, spawn: Spawn, certificates: Certificates, tmp_path: Path, workers: str
) -> None:
    server = spawn(
        repository, *certificates.flags, "--tls-client-ca", str(certificates.ca), "--admin-port", "0", "--workers", workers
    )  # fmt: skip
    admin = json.loads((tmp_path / "ready-0.json").read_text())["admin_port"]
    assert [ask(admin, path, None)[0] for path in ADMIN_PATHS] == [200] * 3
    assert b"convoy_items_total" in ask(admin, "/metrics", None)[1]
    for path, body in (("/", None), ("/v2", None), (INFER, b"x"), ("/metrics/", None)):
        assert ask(admin, path, None, body)[0] == 404, path
    assert ask(admin, "/livez", None, bytes(2**20))[0] == 413
    known = certificates.client(with_certificate=True)
    assert ask(server.http_port, "/metrics", known)[0] == 404
    assert [ask(server.http_port, path, known)[0] for path in ("/livez", "/readyz", "/v2", "/")] == [200] * 4
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(server.http_port, "/livez", certificates.client())
    assert server.terminate() == 0
    with pytest.raises(ConnectionRefusedError):
        ask(admin, "/livez", None)
