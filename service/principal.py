"""Who sends a request: what fair queueing and quotas tell clients apart by.

Without `--auth` it is the client's address, without the port. Of an IPv6 address the first half counts: a client has the whole
second half to choose from. All who connect to a unix socket are one principal.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal, NamedTuple
from urllib.parse import unquote

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


class Peers:
    """The principals of gRPC's connections, by C core's name for the other end: `ipv4:10.0.0.7:41234`. For one thread."""

    def __init__(self) -> None:
        self._known: dict[str | bytes, Principal] = {}

    def principal(self, peer: str | bytes) -> Principal:
        """The principal of a connection's address."""
        found = self._known.get(peer)
        if found is None:
            if len(self._known) >= MAX_REMEMBERED_PEERS:
                self._known.clear()
            found = self._known[peer] = _of_peer(peer if isinstance(peer, str) else peer.decode(errors="replace"))
        return found


def of_address(address: str) -> Principal:
    """The principal of an IP address; UNKNOWN for any other text."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return UNKNOWN
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if isinstance(parsed, IPv4Address) or parsed.is_loopback:
        return Principal("address", str(parsed))
    return Principal("address", str(ip_network((parsed, 64), strict=False)))


def _of_peer(peer: str) -> Principal:
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return UNIX
    return of_address(unquote(rest).rpartition(":")[0].strip("[]"))
