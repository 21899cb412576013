"""The addresses of hosts, and one port bound on all of them."""

import socket
from typing import Any

import pytest

from service.errors import UserError
from service.sockets import listeners
from service.sockets.listeners import ALL, Address, address_of, bind, resolve
from tests.integration.test_listening import needs_ipv6


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that resolve to what a test puts here, numeric addresses."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> list[Any]:
        return [found for each in known.get(host, [host]) for found in real(each, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_each_address_is_listened_on_once_and_a_wildcard_covers_the_others(names: dict[str, list[str]]) -> None:
    names["both"] = ["::1", "127.0.0.1"]
    assert resolve(["127.0.0.1", "[::1]", "::ffff:127.0.0.1", "0:0::1"]) == [Address("127.0.0.1", False), Address("::1", False)]
    assert resolve(["both"]) == [Address("127.0.0.1", True), Address("::1", True)]
    assert resolve(["both", "::1"]) == [Address("127.0.0.1", True), Address("::1", False)]
    for wildcard in ("0.0.0.0", "::", "[::]", "0", "::ffff:0.0.0.0"):
        assert resolve(["both", wildcard, "127.0.0.1"]) == [Address(ALL, False)]
    for unknown in ("", "no such host", "127.0.0.1:8001", "[::1]:8001", "[", "a" * 70 + ".test", "*"):
        with pytest.raises(UserError, match=r"^--host .* cannot be resolved: give an IPv4 or IPv6 address, or a name"):
            resolve([unknown])


def test_a_name_is_listened_on_where_the_machine_has_its_addresses(names: dict[str, list[str]]) -> None:
    names["partly"] = ["2001:db8::1", "127.0.0.1"]
    names["elsewhere"] = ["2001:db8::1", "192.0.2.1"]
    (bound,) = bind(["partly"], 0, "HTTP")
    with bound:
        assert address_of(bound) == f"127.0.0.1:{bound.getsockname()[1]}"
    with pytest.raises(UserError, match=r"^cannot listen for HTTP on .*: this machine has no such address$"):
        bind(["elsewhere"], 0, "HTTP")
    with pytest.raises(UserError, match=r"^cannot listen for HTTP on \[2001:db8::1\]:"):
        bind(["partly", "2001:db8::1"], 0, "HTTP")


@needs_ipv6
def test_a_free_port_is_free_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    real = listeners._bind
    others: list[socket.socket] = []

    def bind_late(host: str, port: int, *, shared: bool) -> socket.socket:
        if host == "::1" and len(others) < 3:  # another program takes the port first
            others.append(socket.create_server((host, port), family=socket.AF_INET6))
        return real(host, port, shared=shared)

    monkeypatch.setattr(listeners, "_bind", bind_late)
    bound = bind(["127.0.0.1", "::1"], 0, "gRPC")
    ports = [each.getsockname()[1] for each in bound]
    assert len(others) == 3
    assert ports[0] == ports[1]
    assert ports[0] not in [other.getsockname()[1] for other in others]
    for each in [*bound, *others]:
        each.close()


def test_a_bound_port_is_in_use_before_it_listens() -> None:
    (bound,) = bind(["127.0.0.1"], 0, "gRPC")
    with bound:
        port = bound.getsockname()[1]
        for hosts in (["127.0.0.1"], ["0.0.0.0"]):
            with pytest.raises(UserError, match=rf":{port}: the port is in use \(port 0 takes a free one\)$"):
                bind(hosts, port, "HTTP")


def test_without_ipv6_a_wildcard_is_every_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (bound,) = bind(["::"], 0, "HTTP")
    with bound:
        assert bound.family == socket.AF_INET
        assert bound.getsockname()[0] == "0.0.0.0"
