"""The names by which the HTTP port may be asked: which are accepted, and in which requests it matters."""

import socket
from typing import Any

import pytest

from service.errors import UserError
from service.http.allowed_hosts import AllowedHosts

LOOPBACK = ("127.0.0.1", "::1")
NETWORK = ("0.0.0.0",)
EVIL = "evil.example:8002"


def no_origin(_: str) -> bool:
    return False


def request(host: str = EVIL, method: str = "GET", path: str = "/v2/models", **others: str) -> dict[str, Any]:
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "REMOTE_ADDR": "10.1.2.3", "wsgi.url_scheme": "http", **others}
    return environ | ({"HTTP_HOST": host} if host else {})


REBOUND = request(method="POST", HTTP_ORIGIN=f"http://{EVIL}")


@pytest.mark.parametrize("port", ["", ":8002"])
@pytest.mark.parametrize(
    "name",
    [
        "localhost", "LOCALHOST", "localhost.", "app.localhost", "127.0.0.1", "127.1.2.3", "10.0.0.7", "203.0.113.9", "[::1]",
        "[2001:db8::7]", "[fe80::1%eth0]", socket.gethostname(), "convoy.example.com", "Convoy.Example.COM.", "a.cats.example",
        "b.a.cats.example", "", "digits.internal",
    ],
)  # fmt: skip
def test_a_name_that_is_this_server_s_is_accepted(name: str, port: str) -> None:
    hosts = AllowedHosts(("convoy.example.com", "*.cats.example", "Digits.Internal"), LOOPBACK, no_origin)
    assert hosts.allows(name + port)
    assert hosts.accepts(request(name + port, "POST", HTTP_ORIGIN=f"http://{name}{port}"))


@pytest.mark.parametrize(
    "name",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost", "cats.example", "evilcats.example",
        "convoy.example.com.evil.example", "convoy.example.com@evil.example", "127.0.0.1,evil.example", "127.0.0.1 evil", "127.1",
        "0x7f000001", "2130706433", "127.0.0.1:80:80", "127.0.0.1/", "localhost:x", "[::1", "::1", "xn--cts-3na.example", "\xe4",
    ],
)  # fmt: skip
def test_another_name_is_not(name: str) -> None:
    hosts = AllowedHosts(("convoy.example.com", "*.cats.example"), LOOPBACK, no_origin)
    assert not hosts.allows(name)
    assert not hosts.accepts(request(name))


def test_a_name_given_to_host_is_this_server_s() -> None:
    assert AllowedHosts((), ("localhost", "[::1]"), no_origin).allows("localhost:8002")
    name = socket.gethostname()
    assert AllowedHosts((), NETWORK, no_origin).allows(f"{name}:8002")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/v2/models", "/metrics", "/page/models", "/livez/", "/readyz/x"])
@pytest.mark.parametrize(("allowed", "listening"), [((), LOOPBACK), (("convoy",), NETWORK), (("convoy",), LOOPBACK)])
def test_every_request_is_checked_on_loopback_and_with_a_list(
    allowed: tuple[str, ...], listening: tuple[str, ...], path: str, method: str
) -> None:
    hosts = AllowedHosts(allowed, listening, no_origin)
    assert not hosts.accepts(request(method=method, path=path))
    assert not hosts.accepts(request(method=method, path=path, HTTP_SEC_FETCH_SITE="same-origin", **{"wsgi.url_scheme": "https"}))


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_may_have_any_name(path: str) -> None:
    assert AllowedHosts(("convoy",), LOOPBACK, no_origin).accepts(request(path=path))


def test_in_a_network_only_what_a_page_over_plain_http_changes_is_checked() -> None:
    hosts = AllowedHosts((), NETWORK, no_origin)
    service = "convoy.default.svc:8002"
    for method in ("GET", "POST"):
        assert hosts.accepts(request(service, method))
    assert not hosts.accepts(REBOUND)
    assert not hosts.accepts(REBOUND | {"HTTP_ORIGIN": "null"})
    assert hosts.accepts(REBOUND | {"HTTP_SEC_FETCH_SITE": "same-origin"}), "of a page that came over https, or of localhost"
    assert hosts.accepts(REBOUND | {"wsgi.url_scheme": "https"})
    assert AllowedHosts((), NETWORK, lambda origin: origin == f"http://{EVIL}").accepts(REBOUND)
    assert hosts.accepts(REBOUND | {"HTTP_HOST": "10.0.0.7:8002"})


def test_the_unix_socket_takes_any_name_unless_there_is_a_list() -> None:
    local = REBOUND | {"REMOTE_ADDR": "localhost"}
    for listening in (LOOPBACK, NETWORK):
        assert AllowedHosts((), listening, no_origin).accepts(local)
        assert not AllowedHosts(("convoy",), listening, no_origin).accepts(local)
    forwarded = REBOUND | {"REMOTE_ADDR": "client", "werkzeug.proxy_fix.orig": {"REMOTE_ADDR": "127.0.0.1"}}
    assert not AllowedHosts((), LOOPBACK, no_origin).accepts(forwarded), "a proxy's word for a client is no address of a socket"


def test_a_star_accepts_all() -> None:
    assert AllowedHosts(("*",), LOOPBACK, no_origin).accepts(REBOUND)


@pytest.mark.parametrize("name", ["http://convoy", "convoy:8002", "convoy/", "*.", "a.*.b", "", "-a", "a..b", "**", "a b"])
def test_what_cannot_be_a_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"--allowed-hosts .* is not accepted: a name is like"):
        AllowedHosts((name,), LOOPBACK, no_origin)
