"""Who may be connected: how many at a time, and whose connection is closed for the next. Pure: no sockets, no clock.

A connection that waits for its client is idle, whether or not the client has begun a request: one that sends a byte now and then
would otherwise keep its place for ever. The connections stand in the order in which they began their last request or were last
answered; the first idle one of them goes first. One whose request is being answered is never closed for another.

An address may take half of the places. For one more, its own longest idle connection is closed. A few places beyond the most are
for connections that come when none is idle: who has one is answered if it asks for a probe or for metrics.
"""

import ipaddress
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

SPARE = 16
"""Places beyond the most, for probes and scrapes."""


NETWORK_BITS = 64
"""Whoever has one IPv6 address has all that begin so: they count as one."""


def who(address: str) -> str:
    """What an address counts as: itself, or the IPv6 network that its owner has."""
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{int(parsed) >> (128 - NETWORK_BITS):x}"


class Client(Protocol):
    """What holds a place."""

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed for another."""
        ...


T = TypeVar("T", bound=Client)


class Places(Generic[T]):
    """The open connections, in the order of their last use."""

    def __init__(self, most: int) -> None:
        """`most` is how many may be open, not counting SPARE."""
        self.most = most
        self.most_of_an_address = max(1, most // 2)
        self._all: OrderedDict[T, str | None] = OrderedDict()
        self._by_address: dict[str, OrderedDict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, client: object) -> bool:
        return client in self._all

    def clients(self) -> list[T]:
        """All of them, the one that was used longest ago first."""
        return list(self._all)

    @property
    def are_taken(self) -> bool:
        """Whether all places but the spare ones are taken."""
        return len(self._all) >= self.most

    @property
    def are_exceeded(self) -> bool:
        """Whether a spare place is taken."""
        return len(self._all) > self.most

    def add(self, client: T, address: str | None) -> None:
        """Gives a client a place. `address` is None for one that may have any number of them."""
        self._all[client] = address
        if address is not None:
            self._by_address.setdefault(address, OrderedDict())[client] = None

    def used(self, client: T) -> None:
        """Puts a client behind all others, if it has a place."""
        if client in self._all:
            self._all.move_to_end(client)
            if (address := self._all[client]) is not None:
                self._by_address[address].move_to_end(client)

    def remove(self, client: T) -> None:
        """Takes a client's place away, if it has one."""
        address = self._all.pop(client, None)
        if address is not None:
            own = self._by_address[address]
            del own[client]
            if not own:
                del self._by_address[address]

    def to_close_for(self, address: str | None) -> T | None:
        """Which connection is to be closed before another one of this address is taken; None if none is, or none is idle."""
        own = self._by_address.get(address) if address is not None else None
        if own is not None and len(own) >= self.most_of_an_address:
            return _longest_idle(own)
        return _longest_idle(self._all) if self.are_taken else None

    def longest_idle(self) -> T | None:
        """The connection that is closed first when there is no room for another."""
        return _longest_idle(self._all)

    def may_add(self, address: str | None) -> bool:
        """Whether there is a place, after what `to_close_for` returned was closed."""
        own = self._by_address.get(address, ()) if address is not None else ()
        return len(own) < self.most_of_an_address and len(self._all) < self.most + SPARE


def _longest_idle(clients: OrderedDict[T, object] | OrderedDict[T, None] | OrderedDict[T, str | None]) -> T | None:
    return next((client for client in clients if client.is_idle), None)
