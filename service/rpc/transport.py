"""The interface of a gRPC transport, and its options: address, limits, TLS, methods.

`call.py` has the interface between a running transport and its methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import grpc

from service.config import url_host
from service.errors import UserError
from service.rpc.call import Method, OnIdle, RpcObserver
from service.rpc.tls import Tls


class Transport(Protocol):
    """A gRPC server. Construct, `start`, and in the end `stop`."""

    name: str
    port: int

    def start(self) -> None:
        """Binds the port and serves from a thread of its own. Raises UserError if the port cannot be bound."""

    def stop(self, grace_seconds: float) -> None:
        """Refuses new calls, waits for open ones, cancels the rest after the grace, and returns when all have ended."""


@dataclass(frozen=True)
class Options:
    """Options of any transport.

    Port 0 takes a free one. `max_message_bytes` bounds a message from a client. Replies are compressed with `compression`. With
    `shared_port` other processes of this user may serve on the same port: the kernel spreads connections over them. `renewed_tls`
    returns a new certificate to replace `tls`, once, or None. `arguments` are C core's channel arguments, such as
    `grpc.max_connection_age_ms`.
    """

    host: str
    port: int
    max_message_bytes: int
    methods: Sequence[Method]
    observer: RpcObserver
    on_idle: OnIdle
    tls: Tls | None = None
    renewed_tls: Callable[[], Tls | None] = lambda: None
    compression: Literal["none", "deflate", "gzip"] = "none"
    shared_port: bool = False
    arguments: Sequence[tuple[str, int]] = ()

    @property
    def address(self) -> str:
        """`HOST:PORT` as C core takes it."""
        return f"{url_host(self.host)}:{self.port}"

    def channel_arguments(self) -> list[tuple[str, int]]:
        """C core's channel arguments for these options."""
        return [
            # By default two servers on one port would share it silently, each with half of the calls.
            ("grpc.so_reuseport", int(self.shared_port)),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.default_compression_algorithm", _COMPRESSION[self.compression]),
            *self.arguments,
        ]

    def credentials(self) -> grpc.ServerCredentials | None:
        """Credentials for `tls`; None for plain text."""
        return None if self.tls is None else self.tls.credentials(self.renewed_tls)

    def cannot_listen(self) -> UserError:
        """The error for a port that C core could not bind."""
        return UserError(
            f"cannot listen for gRPC on {self.address}: the port is in use, or the address is not one of this machine "
            "(port 0 takes a free one)"
        )


_COMPRESSION = {
    "none": grpc.Compression.NoCompression.value,
    "deflate": grpc.Compression.Deflate.value,
    "gzip": grpc.Compression.Gzip.value,
}
