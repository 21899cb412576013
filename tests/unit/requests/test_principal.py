import pytest

from service.requests.principal import MAX_REMEMBERED_PEERS, UNIX, UNKNOWN, Peers, Principal, of_address


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("ipv4:10.0.0.7:41234", "10.0.0.7"),
        ("ipv6:%5B::1%5D:41234", "::1"),
        ("ipv6:[::1]:41234", "::1"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:41234", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:41234", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:41234", "fe80::/64"),
        ("unix:", "unix"),
        ("unix:/run/convoy.sock", "unix"),
        ("vsock:3:4", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_connection_counts_by_its_address_without_the_port(peer: str, name: str) -> None:
    assert Peers().principal(peer) == Peers().principal(peer.encode()) == Principal("address", name)


def test_addresses_of_http_are_the_same_principals() -> None:
    assert of_address("10.0.0.7") == Peers().principal("ipv4:10.0.0.7:1")
    assert of_address("2001:db8::5") == of_address("2001:db8::6") != of_address("2001:db8:0:1::5")
    assert of_address("unix") == UNKNOWN != UNIX


def test_the_memory_of_connections_is_bounded() -> None:
    peers = Peers()
    for port in range(3 * MAX_REMEMBERED_PEERS):
        assert peers.principal(f"ipv4:10.0.0.7:{port}").name == "10.0.0.7"
    assert len(peers._known) <= MAX_REMEMBERED_PEERS


def test_a_trusted_proxy_says_for_whom_it_sends_and_nobody_else_does() -> None:
    peers = Peers(["10.0.0.0/8", "unix"])
    metadata = (("te", "trailers"), ("x-forwarded-for", "203.0.113.9, 192.0.2.1"))
    assert peers.principal("ipv4:10.0.0.7:1", metadata) == peers.principal("unix:", metadata) == Principal("address", "192.0.2.1")
    lines = (("x-forwarded-for", "192.0.2.1"), ("x-other", "x"), ("x-forwarded-for", "203.0.113.9"))
    assert peers.principal("ipv4:10.0.0.7:1", lines).name == "203.0.113.9", "the client may have sent the first"
    assert peers.principal("ipv4:10.0.0.7:1") == Principal("address", "10.0.0.7")
    assert peers.principal("ipv4:11.0.0.7:1", metadata) == Principal("address", "11.0.0.7")
    assert Peers(["10.0.0.0/8"]).principal("unix:", metadata) is UNIX
    assert Peers().principal("ipv4:10.0.0.7:1", metadata) == Principal("address", "10.0.0.7")
