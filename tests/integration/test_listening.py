"""The addresses that both ports listen on: several, IPv6, unix sockets; with TLS, with workers; what cannot be listened on."""

import http.client
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from export.data.datasets import Dataset
from service.client import Client
from service.config import ServerConfig
from service.errors import UserError
from service.lifecycle import check_config
from service.server import Server
from service.sockets.listeners import url_host
from tests.conftest import Serve, Spawn, convoy
from tests.program import convoy_here, one_line

_INTERFACES = Path("/proc/net/if_inet6")
needs_ipv6 = pytest.mark.skipif(
    not _INTERFACES.exists() or f"{1:032x} " not in _INTERFACES.read_text(), reason="the kernel has no address ::1"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path that is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="convoy-"))
    yield path
    shutil.rmtree(path)


def grpc_answers(target: str, credentials: Any = None, *, wait: bool = True) -> bool:
    """Whether a server at `target` says that it serves."""
    options = [("grpc.default_authority", "localhost")] if target.startswith("unix:") else []
    plain = credentials is None
    with grpc.insecure_channel(target, options) if plain else grpc.secure_channel(target, credentials, options) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        reply = health.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=wait)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def http_answers(address: str | Path, port: int = 0) -> bool:
    """Whether the HTTP server at the host and port, or at the socket of this path, is ready."""
    connection = http.client.HTTPConnection(str(address) if port else "localhost", port or None, timeout=20)
    if not port:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(address))
    connection.request("GET", "/readyz")
    ready = connection.getresponse().status == 200
    connection.close()
    return ready


def both_answer(server: Server, *hosts: str) -> bool:
    """Whether both ports answer on each of the addresses."""
    return all(grpc_answers(f"{url_host(host)}:{server.grpc_port}") and http_answers(host, server.http_port) for host in hosts)


@needs_ipv6
def test_both_ports_listen_on_each_address_once(repository: Path, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = serve(repository, host=("127.0.0.1", "::1", "[::1]", "127.0.0.1", "::ffff:127.0.0.1"))
    assert both_answer(server, "127.0.0.1", "::1")
    grpc_port, http_port = server.grpc_port, server.http_port
    assert f"listening: gRPC on 127.0.0.1:{grpc_port} and [::1]:{grpc_port} (" in caplog.text
    assert f"), HTTP on 127.0.0.1:{http_port} and [::1]:{http_port}\n" in caplog.text
    assert f"ready; the page is http://127.0.0.1:{http_port}/\n" in caplog.text


@needs_ipv6
@pytest.mark.parametrize("hosts", [("0.0.0.0",), ("::",), ("0.0.0.0", "::"), ("127.0.0.1", "[::]", "::1")])
def test_a_wildcard_is_every_address_on_both_ports(
    hosts: tuple[str, ...], repository: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = serve(repository, host=hosts)
    assert both_answer(server, "127.0.0.1", "127.0.0.2", "::1")
    assert f"ready; the page is http://127.0.0.1:{server.http_port}/\n" in caplog.text


@needs_ipv6
def test_an_address_that_cannot_be_bound_leaves_none_bound(repository: Path, serve: Serve) -> None:
    for flag in ("grpc_port", "http_port"):
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
            port = other.getsockname()[1]
            with pytest.raises(UserError, match=rf" on \[::1\]:{port}: the port is in use"):
                serve(repository, host=("127.0.0.1", "::1"), **{flag: port})
            with pytest.raises(UserError, match=rf" on \[::\]:{port}: the port is in use"):
                serve(repository, host=("0.0.0.0",), **{flag: port})
            socket.create_server(("127.0.0.1", port)).close()


def test_an_address_of_another_machine_is_one_clear_line(repository: Path) -> None:
    hosts = ["--host", "127.0.0.1", "--host", "192.0.2.1", "--grpc-port", "0", "--http-port", "0"]
    for workers in ("1", "2"):
        refused = one_line(convoy("serve", repository, *hosts, "--workers", workers))
        assert refused.startswith("convoy: cannot listen for gRPC on 192.0.2.1:")
        assert refused.endswith(": this machine has no such address")
    assert "--host '127.0.0.1:8001' cannot be resolved" in one_line(convoy("serve", repository, "--host", "127.0.0.1:8001"))


def test_unix_sockets_serve_beside_the_ports_and_are_removed(
    repository: Path, serve: Serve, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    grpc_socket, http_socket = folder / "with space%41.sock", folder / "http.sock"
    umask = os.umask(0o007)
    try:
        server = serve(repository, grpc_socket=grpc_socket, http_socket=http_socket)
    finally:
        os.umask(umask)
    assert both_answer(server, "127.0.0.1")
    assert grpc_answers(f"unix:{folder}/with%20space%2541.sock")
    assert http_answers(http_socket)
    assert sorted(folder.iterdir()) == [http_socket, grpc_socket]
    assert [stat.filemode(path.stat().st_mode) for path in folder.iterdir()] == ["srwxrwx---"] * 2
    assert f" and unix:{grpc_socket} (" in caplog.text
    assert f" and unix:{http_socket}\n" in caplog.text
    server.stop()
    assert list(folder.iterdir()) == []


def test_a_stale_socket_is_replaced_and_nothing_else(repository: Path, serve: Serve, folder: Path) -> None:
    for setting in ("grpc_socket", "http_socket"):
        path = folder / f"{setting}.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        server = serve(repository, **{setting: path})
        flag = "--" + setting.replace("_", "-")
        with pytest.raises(UserError, match=f"^{flag} '{path}': a server listens on it$"):
            serve(repository, **{setting: path})
        assert grpc_answers(f"unix:{path}") if setting == "grpc_socket" else http_answers(path)
        path.unlink()
        serve(repository, **{setting: path})
        server.stop()
        assert path.exists(), "it is another server's"
        file = folder / "file"
        file.write_text("precious")
        with pytest.raises(UserError, match=f"^{flag} '{file}': it exists and is not a socket$"):
            serve(repository, **{setting: file})
        assert file.read_text() == "precious"
        with pytest.raises(UserError, match=f"^{flag} '.*': the path has more than 99 bytes$"):
            serve(repository, **{setting: folder / ("x" * 90)})
        with pytest.raises(UserError, match=f"^{flag} '.*': not a file in a folder that exists$"):
            serve(repository, **{setting: folder / "none" / "socket"})
        with pytest.raises(UserError, match=f"^{flag} '.': not a file in a folder that exists$"):
            serve(repository, **{setting: Path()})  # of an empty option


def test_a_socket_whose_server_was_killed_is_replaced(repository: Path, spawn: Spawn, folder: Path) -> None:
    flags = ["--grpc-socket", str(folder / "g"), "--http-socket", str(folder / "h")]
    first = spawn(repository, *flags)
    first.process.kill()
    first.process.wait()
    assert len(list(folder.iterdir())) == 2
    second = spawn(repository, *flags)
    assert grpc_answers(f"unix:{folder / 'g'}")
    assert http_answers(folder / "h")
    assert "a server listens on it" in one_line(convoy("serve", repository, "--grpc-port", "0", "--http-port", "0", *flags))
    assert second.terminate() == 0
    assert list(folder.iterdir()) == []


@needs_ipv6
def test_tls_is_the_same_on_every_address_and_on_the_unix_socket(repository: Path, serve: Serve, folder: Path) -> None:
    def renew() -> grpc.ChannelCredentials:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "::1", "localhost")
        issued.cert_chain_pems[0].write_to_path(folder / "pem")
        issued.private_key_pem.write_to_path(folder / "key")
        return grpc.ssl_channel_credentials(authority.cert_pem.bytes())

    first = renew()
    server = serve(repository, host=("127.0.0.1", "::1"), grpc_socket=folder / "g", tls_cert=folder / "pem", tls_key=folder / "key")
    targets = f"127.0.0.1:{server.grpc_port}", f"[::1]:{server.grpc_port}", f"unix:{folder / 'g'}"
    assert all(grpc_answers(target, first) for target in targets)
    second = renew()
    assert all(grpc_answers(target, second) for target in targets)
    for refused in (None, first):
        for target in targets:
            with pytest.raises(grpc.RpcError):
                grpc_answers(target, refused, wait=False)


@pytest.mark.parametrize("transport_name", ["fast"])
def test_the_client_and_its_commands_use_a_unix_socket(repository: Path, serve: Serve, folder: Path, digits: Dataset) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(folder / "pem")
    issued.private_key_pem.write_to_path(folder / "key")
    authority.cert_pem.write_to_path(folder / "ca")
    (folder / "digit.png").write_bytes(digits.test.encoded(0))
    serve(repository, grpc_socket=folder / "a b")
    serve(repository, grpc_socket=folder / "tls", tls_cert=folder / "pem", tls_key=folder / "key")
    plain, encrypted = f"unix:{folder / 'a b'}", f"unix:{folder / 'tls'}"
    with Client([plain, plain]) as client:
        assert len(client.classify([folder / "digit.png"], "digits").results) == 1
    for server, ca in ((plain, None), (encrypted, folder / "ca")):
        flags: list[str | Path] = ["--tls-ca", ca] if ca is not None else []
        with Client(server, tls_ca=ca) as client:
            assert len(list(client.classify_stream([[folder / "digit.png"]], "digits"))) == 1
        asked = convoy_here("classify", folder / "digit.png", "--model", "digits", "--server", server, *flags)
        assert asked.returncode == 0, asked
        measured = convoy("bench", "--model", "digits", "--server", server, *flags, "--seconds", "0.3", "--warmup", "0")
        assert measured.returncode == 0, measured
        scheme = "http" if ca is None else "https"
        assert f"no server metrics: give their address with --metrics {scheme}://HOST:PORT/metrics" in measured.stdout
    nobody = f"unix:{folder / 'none'}"
    for command in (["classify", folder / "digit.png"], ["bench"]):
        refused = one_line(convoy_here(*command, "--model", "digits", "--server", nobody))
        assert refused.startswith(f"convoy: no server answers at {nobody}: ")


@needs_ipv6
def test_workers_share_the_port_on_every_address(repository: Path, spawn: Spawn, folder: Path) -> None:
    http_socket = folder / "http.sock"
    flags = ["--workers", "2", "--host", "127.0.0.1,::1"]
    server = spawn(repository, *flags, "--http-socket", str(http_socket))
    for host in ("127.0.0.1", "::1"):
        assert grpc_answers(f"{url_host(host)}:{server.grpc_port}")
        assert http_answers(host, server.http_port)
        other = ["--host", host, "--grpc-port", str(server.grpc_port), "--http-port", "0"]
        assert f"gRPC on {url_host(host)}:{server.grpc_port}: the port is in use" in one_line(convoy("serve", repository, *other))
    assert http_answers(http_socket)
    log = server.log.read_text()
    assert f"ready: gRPC on 127.0.0.1:{server.grpc_port} and [::1]:{server.grpc_port} by 2 workers, HTTP on 127.0.0.1:" in log
    assert server.terminate() == 0
    assert list(folder.iterdir()) == []


def test_a_unix_socket_is_of_one_process_and_one_protocol(repository: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="--grpc-socket cannot be used with --workers"):
        check_config(ServerConfig(repository=repository, workers=2, grpc_socket=folder / "one"))
    with pytest.raises(UserError, match="--grpc-socket and --http-socket are both"):
        check_config(ServerConfig(repository=repository, grpc_socket=folder / "one", http_socket=folder / "one"))
