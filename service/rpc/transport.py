"""What a transport is, and what each of them is given: address, limits, TLS, methods.

What passes between a running transport and the methods above it is in `call.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import grpc

from service.errors import UserError
from service.rpc.call import Method, Observer, OnIdle
from service.rpc.tls import Tls


class Transport(Protocol):
    """A gRPC server that carries calls to methods. Construct, `start`, and in the end `stop`."""

    name: str
    port: int

    def start(self) -> None:
        """Binds the port and serves from a thread of its own. Raises UserError if the port cannot be had."""

    def stop(self, grace_seconds: float) -> None:
        """Refuses new calls, waits for those in hand, cancels what is left after the grace, and returns when all is over."""


@dataclass(frozen=True)
class Options:
    """What every transport needs to know.

    Port 0 takes a free one. `max_message_bytes` bounds a message from a client. `compression` is what replies are compressed with.
    With `shared_port` other processes of this user may serve on the same port: the kernel spreads connections over them.
    `renewed_tls` gives what is to take the place of `tls`, once, when there is something new. `arguments` are C core's own channel
    arguments, such as `grpc.max_connection_age_ms`.
    """

    host: str
    port: int
    max_message_bytes: int
    methods: Sequence[Method]
    observer: Observer
    on_idle: OnIdle
    tls: Tls | None = None
    renewed_tls: Callable[[], Tls | None] = lambda: None
    compression: Literal["none", "deflate", "gzip"] = "none"
    shared_port: bool = False
    arguments: Sequence[tuple[str, int]] = ()

    @property
    def address(self) -> str:
        """`HOST:PORT` as C core takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

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
        """The error for a port that C core would not give."""
        return UserError(
            f"cannot listen for gRPC on {self.host}:{self.port}: the port is in use, or the address is not one of this machine "
            "(port 0 takes a free one)"
        )


_COMPRESSION = {
    "none": grpc.Compression.NoCompression.value,
    "deflate": grpc.Compression.Deflate.value,
    "gzip": grpc.Compression.Gzip.value,
}
