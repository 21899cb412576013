"""The gRPC transport that the flags ask for: which one, its TLS files and connection settings."""

import logging
import socket
from collections.abc import Sequence

from service.config import ServerConfig
from service.errors import UserError
from service.process.memory_limit import MemoryLimit, memory_limit_bytes
from service.requests.byte_budget import UNLIMITED, ByteBudget
from service.requests.principal import Peers
from service.rpc.aio_server import AioServer
from service.rpc.c_core import unavailable_reason
from service.rpc.call import Method, OnIdle, RpcObserver
from service.rpc.completion_queue import CompletionQueueServer
from service.rpc.external_connections import ExternalConnections
from service.rpc.gate import Gate
from service.rpc.transport import Options, Transport
from service.sockets.unix_socket import UnixSocket
from service.tls_files import tls_files

log = logging.getLogger(__name__)

MAX_METADATA_BYTES = 16 * 1024
"""Of a call, unless `--max-metadata-bytes` says otherwise: the limit above which C core refuses every call by default."""


def create_transport(
    config: ServerConfig,
    methods: Sequence[Method],
    observer: RpcObserver,
    on_idle: OnIdle,
    max_message_bytes: int,
    budget: ByteBudget = UNLIMITED,
    gate: Gate | None = None,
    connections: socket.socket | None = None,
) -> Transport:
    """The transport, not yet started. With `connections`, which brings those that another process accepts, it binds no port.

    Raises:
        UserError: contradictory flags, or a transport that does not work here.
    """
    transport, tls = _transport_class(config), tls_files(config)
    return transport(
        Options(
            hosts=config.host,
            port=config.grpc_port,
            max_message_bytes=max_message_bytes,
            methods=methods,
            observer=observer,
            on_idle=on_idle,
            tls=None if tls is None else tls.read(),
            renewed_tls=lambda: None if tls is None else tls.renewed(),
            compression=config.compression,
            shared_port=config.worker_count > 1,
            connections=None if connections is None else ExternalConnections(connections),
            arguments=_channel_arguments(config),
            budget=budget,
            message_seconds=config.message_seconds,
            memory=MemoryLimit(memory_limit_bytes() // config.worker_count),
            unix_socket=None if config.grpc_socket is None else UnixSocket(config.grpc_socket, "--grpc-socket"),
            principal_of=Peers(config.trusted_proxies).principal,
            gate=gate,
        )
    )


def _transport_class(config: ServerConfig) -> type[CompletionQueueServer] | type[AioServer]:
    """The transport to use; `auto` takes the fast one where it works. Raises UserError if `fast` is asked for and does not."""
    if config.transport == "public":
        return AioServer
    reason = unavailable_reason()
    if not reason:
        return CompletionQueueServer
    if config.transport == "fast":
        raise UserError(f"--transport fast cannot be used: {reason}; --transport public can")
    log.warning("the fast transport cannot be used, taking the public one: %s", reason)
    return AioServer


def _channel_arguments(config: ServerConfig) -> list[tuple[str, int]]:
    """C core's channel arguments for the connection flags.

    C core ignores a name that it does not know: tests hold each one to its effect, and to the names that the installed grpcio has.
    """
    metadata_bytes = config.max_metadata_bytes or MAX_METADATA_BYTES
    arguments = [
        # One limit: between two, the further a call is above the lower one, the likelier C core refuses it.
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        # Idle clients may ping: that keeps middleboxes from dropping the connection.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", round(1000 * config.min_ping_interval_seconds)),
        ("grpc.enable_channelz", int(config.channelz)),
    ]
    if config.max_connection_age_seconds:
        arguments += [
            ("grpc.max_connection_age_ms", max(1, round(1000 * config.max_connection_age_seconds))),
            ("grpc.max_connection_age_grace_ms", round(1000 * config.max_connection_age_grace_seconds)),
        ]
    if config.keepalive_seconds:
        arguments += [("grpc.keepalive_time_ms", max(1, round(1000 * config.keepalive_seconds)))]
    return arguments
