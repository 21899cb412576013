"""Addresses, deadlines and PEM files that a client accepts and refuses."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from service.client import Client
from service.client.connection import ChannelSettings, deadline_seconds
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb


@pytest.mark.parametrize(
    ("server", "target"),
    [
        ("localhost:8001", "localhost:8001"),
        ("[::1]:8001", "[::1]:8001"),
        ("dns:///service", "dns:///service"),
        (["127.0.0.1:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        (["127.0.0.1:1", "[::1]:2"], "ipv6:[::ffff:127.0.0.1]:1,[::1]:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
        ("unix:/run/convoy.sock", "unix:/run/convoy.sock"),
        ("unix:convoy.sock", "unix:convoy.sock"),
        ("unix:///run/a b%20?#é", "unix:/run/a%20b%2520%3F%23%C3%A9"),
        (["unix:/run/a", "unix:b"], "unix:/run/a,b"),
    ],
)
def test_an_address_is_a_target_of_grpc(server: Any, target: str) -> None:
    assert ChannelSettings(server, None, None, None).target == target


CALLS: dict[str, Callable[[Client], Any]] = {
    "Classify": lambda client: client.classify([b""], "m"),
    "Explain": lambda client: client.explain([b""], "m"),
    "GetModel": lambda client: client.model("m"),
    "ListModels": lambda client: client.models(),
}


def test_every_call_is_repeated_that_finds_no_room() -> None:
    tried: Counter[str] = Counter()

    def handler(method: str) -> Any:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            tried[method] += 1
            if tried[method] == 1:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    methods = [each.name for each in pb.DESCRIPTOR.services_by_name["Classifier"].methods if not each.server_streaming]
    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {method: handler(method) for method in methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("convoy.v1.Classifier", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}") as client:
        for method in methods:
            CALLS[method](client)
    server.stop(None)
    assert tried == dict.fromkeys(methods, 2)


def test_the_earlier_deadline_counts() -> None:
    infinite = float("inf")
    assert deadline_seconds(30.0) == 30.0
    assert deadline_seconds(infinite) is None
    assert deadline_seconds(30.0, 5.0) == 6.0, "the server's own error is waited for"
    assert deadline_seconds(30.0, 100.0) == 30.0
    assert deadline_seconds(infinite, 5.0) == 6.0


@pytest.mark.parametrize("connections", [0, -1, 101, 1.5, "2", None])
def test_an_invalid_number_of_connections_is_refused(connections: Any) -> None:
    with pytest.raises(UserError, match=f"invalid value for connections: {connections!r} \\(give a number from 1 to 100\\)"):
        Client(connections=connections)


def test_files_that_are_not_for_tls_are_refused(tmp_path: Path) -> None:
    ca, empty, garbage = tmp_path / "ca.pem", tmp_path / "empty.pem", tmp_path / "garbage.pem"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca)
    empty.touch()
    garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    for name in ("one", "other"):
        certificate = authority.issue_cert(name)
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    for file in (empty, garbage, tmp_path / "one.key"):
        with pytest.raises(UserError, match=rf"--tls-ca '{file}' contains no PEM certificate"):
            Client(tls_ca=file)
    for cert, key in (("one.pem", "other.key"), ("one.key", "one.pem"), ("empty.pem", "one.key")):
        with pytest.raises(UserError, match="must be a matching pair of PEM files"):
            Client(tls_ca=ca, tls_cert=tmp_path / cert, tls_key=tmp_path / key)
    Client(tls_ca=ca, tls_cert=tmp_path / "one.pem", tls_key=tmp_path / "one.key").close()


@pytest.mark.parametrize(
    "server",
    [
        None,
        1,
        "dns:///",
        "ipv4:127.0.0.1",
        "",
        "127.0.0.1",
        "a b:1",
        "http://a:1",
        [],
        ["a:1", "b:1"],
        "a:1,b:1",
        ["127.0.0.1:1", "127.0.0.1"],
        "::1",
        "::1:8001",
        "unix:",
        "unix://host/path",
        "unix:/run/a,b",
        ["unix:/run/a", "127.0.0.1:1"],
        ["127.0.0.1:1", "unix:/run/a"],
    ],
)
def test_an_address_that_is_none_is_refused(server: Any) -> None:
    with pytest.raises(UserError, match=r"invalid server address .*: give HOST:PORT"):
        Client(server)


def test_a_path_that_is_too_long_for_a_socket_is_refused() -> None:
    Client("unix:" + "x" * 107).close()
    with pytest.raises(UserError, match=r"invalid server address 'unix:x+': the path has more than 107 bytes"):
        Client("unix:" + "x" * 108)


@pytest.mark.parametrize("server", ["localhost:99999", "127.0.0.1:0", "dns:///a:65536", ["127.0.0.1:1", "127.0.0.1:70000"]])
def test_a_port_that_is_none_is_refused(server: Any) -> None:
    with pytest.raises(UserError, match=r"port [0-9]+ is not between 1 and 65535"):
        Client(server)
