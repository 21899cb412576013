"""Who sends a request: what fair queueing and quotas tell clients apart by.

Without `--auth` it is the client's address, without the port. Of an IPv6 address the first half counts: a client has the whole
second half to choose from. All who connect to a unix socket are one principal. A trusted proxy says for whom it sends a request.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal, NamedTuple
from urllib.parse import unquote

from service.errors import UserError

MAX_REMEMBERED_PEERS = 4096
"""Connections whose principal is kept, so that it is not made again for each call."""


class Principal(NamedTuple):
    """A client as the server knows it: by a token, a certificate's name, a JWT, or its address alone.

    `first_priority` is the most urgent priority level that its requests may have; 1 is the first.
    """

    kind: Literal["token", "certificate", "jwt", "address"]
    name: str
    group: str = ""
    first_priority: int = 1


UNKNOWN = Principal("address", "unknown")
"""For requests that no connection brought, and addresses that cannot be read."""

UNIX = Principal("address", "unix")


FORWARDED_FOR = "x-forwarded-for"


class Peers:
    """The principals of gRPC's connections, by C core's name for the other end: `ipv4:10.0.0.7:41234`. For one thread."""

    def __init__(self, trusted_proxies: Sequence[str] = ()) -> None:
        """`trusted_proxies` are addresses and networks whose `x-forwarded-for` is true, and `unix`. Raises UserError for others."""
        self._known: dict[str | bytes, Principal] = {}
        self._principals: dict[Principal, Principal] = {}
        self._proxies: list[IPv4Network | IPv6Network] = [proxy_network(each) for each in trusted_proxies if each != UNIX.name]
        self._trusts_unix = UNIX.name in trusted_proxies
        self._trusts_any = bool(trusted_proxies)

    def principal(self, peer: str | bytes, metadata: Sequence[tuple[str, str | bytes]] = ()) -> Principal:
        """The principal of a call: by its connection's address or, from a trusted proxy, by what its metadata say."""
        if self._trusts_any:
            for name, value in reversed(metadata):  # what the trusted proxy has added comes last
                if name == FORWARDED_FOR and self._is_trusted(peer):
                    return of_address(str(value).rpartition(",")[2].strip())
        found = self._known.get(peer)
        if found is None:
            if len(self._known) >= MAX_REMEMBERED_PEERS:
                self._known.clear()
                self._principals.clear()
            found = _of_peer(peer)
            found = self._known[peer] = self._principals.setdefault(found, found)  # one object: found equal without a comparison
        return found

    def _is_trusted(self, peer: str | bytes) -> bool:
        address = _address(peer)
        if address is None:
            return self._trusts_unix and _of_peer(peer) is UNIX
        return any(address in network for network in self._proxies)


def of_address(address: str) -> Principal:
    """The principal of an IP address; UNKNOWN for any other text."""
    parsed = _parsed(address)
    if parsed is None:
        return UNKNOWN
    if isinstance(parsed, IPv4Address) or parsed.is_loopback:
        return Principal("address", str(parsed))
    return Principal("address", str(ip_network((parsed, 64), strict=False)))


def proxy_network(text: str) -> IPv4Network | IPv6Network:
    """One of `--trusted-proxies`: an address or a network. Raises UserError for anything else."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise UserError(
            f"--trusted-proxies {text!r} is not accepted: an address (10.0.0.7), a network (10.0.0.0/8) or unix, a unix socket"
        ) from None


def _of_peer(peer: str | bytes) -> Principal:
    text = peer if isinstance(peer, str) else peer.decode(errors="replace")
    return UNIX if text.startswith("unix:") else of_address(_host(text))


def _address(peer: str | bytes) -> IPv4Address | IPv6Address | None:
    return _parsed(_host(peer if isinstance(peer, str) else peer.decode(errors="replace")))


def _host(peer: str) -> str:
    return unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
