"""The interface of a gRPC transport, and its options: address, limits, TLS, methods.

`call.py` has the interface between a running transport and its methods.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import quote

import grpc

from service.errors import UserError
from service.process.memory_limit import MemoryLimit, memory_limit_bytes
from service.requests.byte_budget import UNLIMITED, ByteBudget
from service.requests.principal import Peers, Principal
from service.rpc.call import Method, OnIdle, RpcObserver
from service.rpc.external_connections import ADDRESS, ExternalConnections
from service.rpc.gate import Gate
from service.rpc.status import Metadata
from service.rpc.tls import Renewals, server_credentials
from service.sockets import listeners
from service.sockets.unix_socket import UnixSocket
from service.tls_files import Tls

MAX_METADATA_ENTRIES = 100
"""Of a call. HPACK lets a client name thousands in 16 KiB, each a byte, and Python makes four kilobytes of one."""

TOO_MUCH_METADATA = f"the call has more than {MAX_METADATA_ENTRIES} entries of metadata"


class Transport(Protocol):
    """A gRPC server. Construct, `start`, and in the end `stop`."""

    name: str
    port: int
    addresses: Sequence[str]
    """What it listens on, once started: `HOST:PORT` and `unix:PATH`."""
    last_round: float
    """When its thread last went round its loop, in `time.monotonic` seconds; infinite while it does not run."""

    @property
    def thread_id(self) -> int | None:
        """The number that the kernel has given its thread; None before it has started."""

    def start(self) -> None:
        """Binds the addresses and serves from a thread of its own. Raises UserError if one cannot be bound; then none is."""

    def stop(self, grace_seconds: float) -> None:
        """Refuses new calls, waits for open ones, cancels the rest after the grace, and returns when all have ended."""


AddPort = Callable[[str, grpc.ServerCredentials | None], int]
"""Has C core listen on an address, `HOST:PORT` or `unix:PATH`; 0 if it cannot. None for plain text."""


PrincipalOf = Callable[[str | bytes, Metadata], Principal]
"""Who sends a call, by C core's name for the other end of its connection and by its metadata."""


@dataclass(frozen=True)
class Options:
    """Options of any transport.

    `hosts` are names and addresses; see `sockets/listeners.py`. Port 0 takes a free one. `unix_socket` is served beside the port.
    `max_message_bytes` bounds a message from a client. Replies are compressed with `compression`. With
    `shared_port` other processes of this user may serve on the same port: the kernel spreads connections over them. With
    `connections` no port is bound: another process accepts on it, and they bring what is for this one. `renewed_tls`
    returns a new certificate to replace `tls`, once, or None. `arguments` are C core's channel arguments, such as
    `grpc.max_connection_age_ms`. `principal_of` says who sends a call, on the transport's thread; `gate`, if there is one, whether
    it may. From `budget` the bytes of messages are taken. A unary call's message must come within `message_seconds`, and while
    `memory` is short, calls that wait for theirs are ended.
    """

    hosts: Sequence[str]
    port: int
    max_message_bytes: int
    methods: Sequence[Method]
    observer: RpcObserver
    on_idle: OnIdle
    tls: Tls | None = None
    renewed_tls: Callable[[], Tls | None] = lambda: None
    compression: Literal["none", "deflate", "gzip"] = "none"
    shared_port: bool = False
    connections: ExternalConnections | None = None
    arguments: Sequence[tuple[str, int]] = ()
    unix_socket: UnixSocket | None = None
    principal_of: PrincipalOf = field(default_factory=lambda: Peers().principal)
    gate: Gate | None = None
    budget: ByteBudget = UNLIMITED
    message_seconds: float = 60.0
    memory: MemoryLimit = field(default_factory=lambda: MemoryLimit(memory_limit_bytes()))

    def listen(self, add_port: AddPort) -> tuple[int, list[str]]:
        """Has C core listen on every address. Returns the port and what is listened on: `HOST:PORT`, `unix:PATH`.

        Args:
            add_port: has C core listen on one address.

        Raises:
            UserError: an address cannot be bound. C core may listen on others, until its server is stopped.
        """
        if self.unix_socket is not None:
            self.unix_socket.check()
        if self.connections is None:
            port, addresses = self._free_addresses()
            targets = list(addresses)
        else:
            port, addresses, targets = self.port, [ADDRESS], [ADDRESS]
        if self.unix_socket is not None:
            targets.append("unix:" + quote(os.fsencode(self.unix_socket.bind_path)))
            addresses.append(f"unix:{self.unix_socket.path}")
        renewals = Renewals(self.renewed_tls)
        for target, address in zip(targets, addresses, strict=True):
            credentials = None if self.tls is None else server_credentials(self.tls, renewals.reader())
            if not add_port(target, credentials):
                raise UserError(f"cannot listen for gRPC on {address}: C core could not bind it")
        if self.unix_socket is not None:
            self.unix_socket.publish()
        return port, addresses

    def _free_addresses(self) -> tuple[int, list[str]]:
        """The port, and the addresses that C core can bind it on. It binds them itself, and says less of what is wrong."""
        reserved = listeners.bind(self.hosts, self.port, "gRPC", shared=self.shared_port)
        port: int = reserved[0].getsockname()[1]
        addresses = [listeners.address_of(each) for each in reserved]
        for each in reserved:
            each.close()
        return port, addresses

    def channel_arguments(self) -> list[tuple[str, Any]]:
        """C core's channel arguments for these options."""
        return [
            *(() if self.connections is None else (self.connections.argument,)),
            # By default two servers on one port would share it silently, each with half of the calls.
            ("grpc.so_reuseport", int(self.shared_port)),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.per_message_decompression", 0),  # see compression.py
            ("grpc.default_compression_algorithm", _COMPRESSION[self.compression]),
            *self.arguments,
        ]


_COMPRESSION = {
    "none": grpc.Compression.NoCompression.value,
    "deflate": grpc.Compression.Deflate.value,
    "gzip": grpc.Compression.Gzip.value,
}
