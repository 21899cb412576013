"""How a client connects: the server's address, channel options, TLS, the RPCs as callables, deadlines."""

import codecs
import copy
import json
import os
import re
import ssl
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc

from service.client.http_proxy import http_proxy
from service.client.images import read_file
from service.client.messages import CallFailed, call_failed
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.sockets.loopback import is_loopback

MAX_RETRIED_BYTES = 1024 * 1024
"""gRPC retries requests up to this size. No server's `--max-message-bytes` is below it: a request refused as too large, which has
the same status as a full queue, is never sent twice."""

INITIAL_BACKOFF_MS, MAX_BACKOFF_MS = 100, 2_000
"""Between attempts to connect: a restarted server is found within a call's retries at first, within seconds after hours."""

CONNECT_TIMEOUT_MS = 5_000
"""Of one attempt to connect."""

KEEPALIVE_MS, PING_TIMEOUT_MS = 15_000, 15_000
"""A server that vanishes during a call is noticed after 30 seconds, not after TCP's 15 minutes. Servers may forbid more pings, and
behind an upload over a slow line a ping waits for its answer."""

MARGIN_SECONDS = 1.0
"""How much later the client's deadline is than the server's, so that the server's own error arrives first."""

MAX_CONNECTIONS = 100
"""Of one client to a server: a server has far fewer workers."""

FOREVER_SECONDS = 1e9
"""The longest time limit that a request may have."""

_IMPORTED_BY = os.getpid()

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            # Not for streams: gRPC's retries can leave one open for ever, and stream.py knows what to send again.
            "name": [
                {"service": "convoy.v1.Classifier", "method": name} for name in ("Classify", "Explain", "GetModel", "ListModels")
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # CANCELLED comes from a server that stops; a call that the client itself cancels is not retried.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ],
    # Where most calls fail, retries only add load.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
_XDS_TARGET = re.compile(r"xds:\S+")
_UNIX = "unix:"
_MAX_UNIX_PATH_BYTES = 107
_SCHEME = re.compile(r"^(dns:(//[^/\s]*/)?|ipv4:|ipv6:)")
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")


Token = str | Callable[[], str]
"""A token, or what returns the one to send: it is called for each call, from any thread, and must not block."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


class ChannelSettings:
    """The target, options and credentials of a channel, and the token of its calls."""

    def __init__(
        self,
        server: str | Sequence[str],
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        token: Token | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        """Raises UserError for an invalid address or PEM file, and for a token that would be sent unencrypted."""
        self.target, hosts, several = _address(server)
        self._targets = _targets(self.target) if several else []
        self._token = token
        config = _SERVICE_CONFIG
        if several:
            # A draining server says so by its health. A single server is asked anyway: it answers with the reason itself.
            config = config | {"healthCheckConfig": {"serviceName": ""}}
        # gRPC would send calls to this machine through the proxy of the environment too, and ask a proxy for a list as one host.
        self._host = hosts[0] if len(hosts) == 1 and not _is_here(hosts[0]) else ""
        self._proxy = http_proxy(self._host) if self._host else None
        self.route: list[tuple[str, Any]] = [("grpc.enable_http_proxy", int(self._proxy is not None))]
        """The channel options by which the target is reached: through a proxy or not, and under which name."""
        if self.target.startswith(_UNIX):
            self.route.append(("grpc.default_authority", "localhost"))  # the name in the server's certificate
        self._options: list[tuple[str, Any]] = [
            # The server decides what is too large. What is sent has no limit by default.
            ("grpc.max_receive_message_length", -1),
            ("grpc.service_config", json.dumps(config)),
            ("grpc.per_rpc_retry_buffer_size", MAX_RETRIED_BYTES),
            ("grpc.initial_reconnect_backoff_ms", INITIAL_BACKOFF_MS),
            ("grpc.max_reconnect_backoff_ms", MAX_BACKOFF_MS),
            ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),  # despite its name
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),  # with gRPC's 60 s grpc.keepalive_timeout_ms has no effect
            ("grpc.http2.max_pings_without_data", 0),  # no limit: by default the third ping waits for a minute
            *self.route,
        ]
        self._credentials = _credentials(tls_ca, tls_cert, tls_key)
        here = self.target.startswith(_UNIX) or (hosts and all(map(_is_here, hosts)))
        if token is not None and self._credentials is None and not here and not insecure:
            raise UserError(
                f"a token is not sent unencrypted to another machine, {server!r}: turn TLS on (tls_ca, --tls-ca), or allow it "
                "(insecure=True, --insecure)"
            )
        self.metadata()  # raises for a token that cannot be sent

    def each(self) -> "list[ChannelSettings]":
        """The settings for each server of a list by itself; these for one server, or a name."""
        found = []
        for target in self._targets:
            found.append(copy.copy(self))
            found[-1].target = target
        return found or [self]

    def metadata(self) -> list[tuple[str, str]] | None:
        """The metadata of a call. Raises UserError for a token that cannot be sent."""
        token = self._token() if callable(self._token) else self._token
        return None if token is None else [("authorization", f"Bearer {checked_token(token)}")]

    def channel(self, library: Any, *, own_connection: bool = False) -> Any:
        """A new channel of `library`: grpc, or grpc.aio. Channels to one address share a connection, unless it is to be its own."""
        # In a forked process, channels would share the connections of the process before.
        own_connection = own_connection or os.getpid() != _IMPORTED_BY
        options = [*self._options, ("grpc.use_local_subchannel_pool", int(own_connection))]
        if self._credentials is None:
            return library.insecure_channel(self.target, options)
        return library.secure_channel(self.target, self._credentials, options)

    def call_failed(self, error: Any) -> CallFailed:
        """As `messages.call_failed`; a failure to connect names the proxy, if there is one."""
        failed = call_failed(error)
        return failed if self._proxy is None else self._proxy.explain(failed, self.target, self._host)


class Stubs:
    """The RPCs of `convoy.v1.Classifier` on a channel of grpc or grpc.aio. They raise CallFailed once the channel is closed."""

    def __init__(self, channel: Any, metadata: Callable[[], Any] = lambda: None) -> None:
        """`metadata` returns those of a call."""

        def unary(name: str, request: Any, response: Any) -> Any:
            method = channel.unary_unary(f"/convoy.v1.Classifier/{name}", request.SerializeToString, response.FromString)
            return _unless_closed(method, metadata)

        self.classify = unary("Classify", pb.ClassifyRequest, pb.ClassifyResponse)
        self.explain = unary("Explain", pb.ExplainRequest, pb.ExplainResponse)
        self.get_model = unary("GetModel", pb.GetModelRequest, pb.GetModelResponse)
        self.list_models = unary("ListModels", pb.ListModelsRequest, pb.ListModelsResponse)
        self.classify_stream = _unless_closed(
            channel.stream_stream(
                "/convoy.v1.Classifier/ClassifyStream",
                pb.ClassifyStreamRequest.SerializeToString,
                pb.ClassifyStreamResponse.FromString,
            ),
            metadata,
        )


class Connection:
    """A client's channel and its RPCs. Thread-safe.

    A channel works in the process that made it alone, one of grpc.aio in one event loop. So a forked process gets a channel of its
    own, and so does a loop that runs after the one before is closed. grpc.aio itself works in no process that is forked while it
    has a channel: it would wait for a thread that is not there.
    """

    def __init__(self, settings: ChannelSettings, library: Any, *, shared: bool = True) -> None:
        """`library`: grpc, or grpc.aio; `shared`: with other channels to the same address.

        No channel is made before the first call.
        """
        self._settings = settings
        self._shared = shared
        self._library = library
        self._lock = threading.Lock()
        self._channel: Any = None
        self._stubs: Stubs | None = None
        self._process = 0
        self._loop: Any = None
        self.closed = False

    def stubs(self, loop: Any = None) -> Stubs:
        """The RPCs, in this process and, of grpc.aio, in this event loop.

        Raises CallFailed if the client is closed, UserError if another loop uses it, or grpc.aio does not work in this process.
        """
        if self._stubs is not None and self._loop is loop and self._process == os.getpid():
            return self._stubs
        with self._lock:
            if self.closed:
                raise client_closed()
            self._check_loop(loop)
            if self._stubs is None or self._loop is not loop or self._process != os.getpid():
                if loop is not None and any(process != os.getpid() for process in _ASYNCIO_CHANNELS.values()):
                    raise UserError(
                        "this process was forked while an AsyncClient was open, and gRPC's asyncio does not work in it: "
                        "use Client, or start processes by spawn or forkserver"
                    )
                if self._process not in (0, os.getpid()):
                    _OF_ANOTHER_PROCESS.append(self._channel)
                self._channel = self._settings.channel(self._library, own_connection=not self._shared)
                if loop is not None:
                    _ASYNCIO_CHANNELS[self._channel] = os.getpid()
                stubs = Stubs(self._channel, self._settings.metadata)
                self._stubs, self._loop, self._process = stubs, loop, os.getpid()
            return self._stubs

    def close(self, loop: Any = None) -> Any:
        """Refuses all further calls. Returns the channel, for its `close` to be called; None if there is nothing to close.

        Raises UserError if another loop uses it.
        """
        with self._lock:
            self._check_loop(loop)
            self.closed = True
            if self._process != os.getpid():
                return None
            channel, self._channel, self._stubs = self._channel, None, None
            return channel if self._loop is loop else None

    def _check_loop(self, loop: Any) -> None:
        if self._loop not in (None, loop) and not self._loop.is_closed() and self._process == os.getpid():
            raise UserError("this AsyncClient is used in another event loop: make one client for each loop")


_ASYNCIO_CHANNELS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""Channels of grpc.aio, each with the process that made it."""

_OF_ANOTHER_PROCESS: list[Any] = []
"""Channels of the process that this one was forked from. Deleting one would end the connection, which they share."""


def _unless_closed(method: Callable[..., Any], metadata: Callable[[], Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        given = metadata()
        try:
            return method(*arguments, metadata=given, **options)
        except (ValueError, grpc.aio.UsageError):
            raise client_closed() from None

    return call


def client_closed() -> CallFailed:
    """What a call of a closed client raises."""
    return CallFailed("CANCELLED", "the client is closed")


def _address(server: str | Sequence[str]) -> tuple[str, list[str], bool]:
    """The target of gRPC for one server or several, the hosts in it, and whether there can be several."""
    try:
        given = server if isinstance(server, str) else ",".join(server)
    except TypeError:
        given = ""
    if _XDS_TARGET.fullmatch(given):
        return given, [], False
    if given.startswith(_UNIX):
        return _unix_target(given.split(",")), [], "," in given
    rest = _SCHEME.sub("", given)
    scheme = given.removesuffix(rest)
    by_name = scheme.startswith("dns:")
    addresses = rest.split(",")
    matches = [_ADDRESS.fullmatch(address) for address in addresses]
    hosts = [match["host"] for match in matches if match is not None]
    ports = [match["port"] for match in matches if match is not None]
    several_plain = len(addresses) > 1 and not scheme
    by_ip = all(_IPV4.fullmatch(host) or host.startswith("[") for host in hosts)
    if None in matches or (None in ports and not by_name) or (several_plain and not by_ip):
        raise _invalid(server)
    for port in ports:
        if port is not None and not 1 <= int(port) <= 65535:
            raise UserError(f"invalid server address {server!r}: port {port} is not between 1 and 65535")
    if several_plain and not any(host.startswith("[") for host in hosts):
        given = "ipv4:" + given
    elif several_plain:  # gRPC takes addresses of one kind in a list
        as_ipv6 = [host if host.startswith("[") else f"[::ffff:{host}]" for host in hosts]
        given = "ipv6:" + ",".join(f"{host}:{port}" for host, port in zip(as_ipv6, ports, strict=True))
    return given, hosts, by_name or len(addresses) > 1


def _targets(target: str) -> list[str]:
    """Each server of a list as a target; none for a name."""
    scheme, _, rest = target.partition(":")
    return [f"{scheme}:{address}" for address in rest.split(",")] if f"{scheme}:" in (_UNIX, "ipv4:", "ipv6:") else []


def _is_here(host: str) -> bool:
    return is_loopback(host.strip("[]"))


def _unix_target(servers: Sequence[str]) -> str:
    """The target for unix sockets, each as `unix:PATH` or `unix:///PATH`."""
    paths = []
    for server in servers:
        path = server.removeprefix(_UNIX)
        path = path.removeprefix("//") if path.startswith("///") else path
        if not server.startswith(_UNIX) or not path or path.startswith("//"):
            raise _invalid(",".join(servers))
        if len(os.fsencode(path)) > _MAX_UNIX_PATH_BYTES:
            raise UserError(f"invalid server address {server!r}: the path has more than {_MAX_UNIX_PATH_BYTES} bytes")
        paths.append(quote(os.fsencode(path)))
    return _UNIX + ",".join(paths)


def _invalid(server: str | Sequence[str]) -> UserError:
    return UserError(
        f"invalid server address {server!r}: give HOST:PORT, such as 127.0.0.1:8001 or [::1]:8001, or unix:PATH; several servers "
        "as a list of IP addresses with ports, as a list of unix:PATH, or as dns:///HOST:PORT for all addresses of a name"
    )


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    if ca is None and cert is None and key is None:
        return None
    if ca is None or (cert is None) != (key is None):
        raise UserError("TLS needs --tls-ca; a client certificate needs both --tls-cert and --tls-key")
    pem_ca, pem_key, pem_cert = (read_pem(path) if path is not None else None for path in (ca, key, cert))
    # Checked here: gRPC does not report what is wrong with them, and trusts its built-in CAs if the file contains none.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise UserError(f"TLS: --tls-ca {str(ca)!r} contains no PEM certificate") from None
    try:
        if cert is not None:
            context.load_cert_chain(cert, key, password="")  # without one, OpenSSL would ask on the terminal
    except ssl.SSLError:
        raise UserError("TLS: --tls-cert and --tls-key must be a matching pair of PEM files, the key unencrypted") from None
    return grpc.ssl_channel_credentials(pem_ca, pem_key, pem_cert)


def read_pem(path: Path) -> bytes:
    """A PEM file as gRPC takes it: without a byte order mark, which OpenSSL ignores. Raises FileUnreadable."""
    return read_file(path).removeprefix(codecs.BOM_UTF8)


def checked_token(token: str) -> str:
    """A token as a header takes it. Raises UserError for one that cannot be sent; the message does not have it."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise UserError("the token is not one: it is empty, or has spaces or characters that are not ASCII")
    return token


def checked_connections(connections: int) -> int:
    """A client's number of connections. Raises UserError if it is not between 1 and MAX_CONNECTIONS."""
    if isinstance(connections, int) and 1 <= connections <= MAX_CONNECTIONS:
        return connections
    raise UserError(f"invalid value for connections: {connections!r} (give a number from 1 to {MAX_CONNECTIONS})")


def checked_timeout(seconds: float | None) -> float:
    """A client's timeout, infinite for None. Raises UserError if it is not a positive number."""
    if seconds is None:
        return float("inf")
    if isinstance(seconds, int | float) and seconds > 0:
        return float(seconds)
    raise UserError(f"invalid value for timeout_seconds: {seconds!r} (give a positive number, or None for no deadline)")


def deadline_seconds(client_seconds: float, server_seconds: float = 0.0) -> float | None:
    """A call's deadline as gRPC takes it, from the client's timeout and the server's, which is 0 if not set."""
    seconds = min(client_seconds, server_seconds + MARGIN_SECONDS) if server_seconds > 0 else client_seconds
    return seconds if seconds < FOREVER_SECONDS else None
