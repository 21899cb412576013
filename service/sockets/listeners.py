"""The TCP addresses of a port: the hosts of `--host` resolved, and one port bound on all of them.

Both ports take their addresses from here, so that they listen alike. A name stands for all of its addresses. `0.0.0.0` and `::`
both stand for every address of the machine, IPv4 and IPv6: C core treats them so, and the HTTP port does the same.
"""

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from service.errors import UserError

ALL = "::"
"""Every address of the machine; only those of IPv4 if the kernel has no IPv6."""

FREE_PORT_ATTEMPTS = 20
"""A free port of the first address may be in use on the next; then another is tried."""


class Address(NamedTuple):
    """A numeric address. `is_optional`: one of several that a name has, and the machine may lack it."""

    host: str
    is_optional: bool


def url_host(host: str) -> str:
    """The host as it is written before a colon and a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def resolve(hosts: Sequence[str]) -> list[Address]:
    """The addresses of names and addresses, each once; only ALL if that is among them. Raises UserError for an unknown host."""
    required: dict[str, bool] = {}
    for host in hosts:
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            found = {_numeric(address) for *_, address in socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError):
            raise UserError(
                f"--host {host!r} cannot be resolved: give an IPv4 or IPv6 address, or a name, without a port"
            ) from None
        for each in sorted(found):
            required[each] = required.get(each, False) or len(found) == 1
    if ALL in required:
        return [Address(ALL, is_optional=False)]
    return [Address(host, not is_required) for host, is_required in required.items()]


def _numeric(address: Any) -> str:
    host = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]  # with the zone of a link-local address
    parsed = ipaddress.ip_address(host)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return ALL if parsed.is_unspecified else str(parsed)


def bind(hosts: Sequence[str], port: int, purpose: str, *, shared: bool = False) -> list[socket.socket]:
    """Binds the same port on every address, without listening yet. Port 0 takes one that is free on all of them.

    Args:
        hosts: names and addresses; see `resolve`.
        port: the port.
        purpose: what the port is for, such as "HTTP", for the error.
        shared: other sockets of this user may be bound to the port too, if they also ask for that.

    Raises:
        UserError: a host is unknown, or an address cannot be bound; nothing stays bound.
    """
    addresses = resolve(hosts)
    for attempt in range(1, FREE_PORT_ATTEMPTS + 1):
        bound: list[socket.socket] = []
        missing: UserError | None = None
        chosen = port
        for address in addresses:
            try:
                bound.append(_bind(address.host, chosen, shared=shared))
            except OSError as error:
                message = f"cannot listen for {purpose} on {url_host(address.host)}:{chosen}: {_reason(error)}"
                missing = UserError(message)
                if address.is_optional and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue  # such as ::1 of localhost, where IPv6 is off
                _close(bound)
                if port == 0 and error.errno == errno.EADDRINUSE and attempt < FREE_PORT_ATTEMPTS:
                    break
                raise missing from None
            chosen = bound[0].getsockname()[1]
        else:
            if not bound and missing is not None:
                raise missing
            return bound
    raise AssertionError("the last attempt raises")


def _close(bound: list[socket.socket]) -> None:
    for each in bound:
        each.close()


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    if host == ALL and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104 - asked for
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != ALL))
        bound.bind(address)
        # Two sockets that both have it could be bound to one port as long as neither listens.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        bound.close()
        raise
    return bound


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is in use (port 0 takes a free one)"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return "this machine has no such address"
    return error.strerror or str(error)


def host_of(bound: socket.socket) -> str:
    """The numeric address of a bound socket."""
    return socket.getnameinfo(bound.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]


def address_of(bound: socket.socket) -> str:
    """`HOST:PORT` of a bound socket."""
    return f"{url_host(host_of(bound))}:{bound.getsockname()[1]}"
