"""Where a client's servers are, and how it speaks to them: the address, gRPC's settings, TLS, deadlines."""

import json
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from service.client.messages import read_file
from service.errors import UserError

MAX_RETRIED_BYTES = 1024 * 1024
"""gRPC keeps a request to try it again up to this size. No server's limit is below it (`--max-message-bytes`), so that a request
which is refused as too large, with the status of a full queue, is never sent twice."""

MARGIN_SECONDS = 1.0
"""How much longer than the server a call is waited for: its own word that the time is up says more than silence."""

_FOREVER_SECONDS = 1e9

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            # Not of streams: gRPC's retries can leave one without an end, and `client/stream.py` knows what is to be sent again.
            "name": [{"service": "convoy.v1.Classifier", "method": name} for name in ("Classify", "GetModel", "ListModels")],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # CANCELLED, if it is not the caller's own will, is a server that stops.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ],
    # Where most calls fail, retries would only multiply them.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
_OTHER_TARGET = re.compile(r"(unix|xds):\S+")
_SCHEME = re.compile(r"^(dns:(//[^/\s]*/)?|ipv4:|ipv6:)")
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_LOOPBACK = re.compile(r"127\..*|localhost|\[::1\]", re.IGNORECASE)


class Connection:
    """The target, options and credentials of a channel. Raises UserError for what cannot be any."""

    def __init__(self, server: str | Sequence[str], tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None) -> None:
        self.target, hosts, several = _address(server)
        config = _SERVICE_CONFIG
        if several:
            # A server that is about to leave says so first. One that stands alone may say itself why it does not answer.
            config = config | {"healthCheckConfig": {"serviceName": ""}}
        local = bool(hosts) and all(_LOOPBACK.fullmatch(host) for host in hosts)
        self.options: list[tuple[str, Any]] = [
            # What is too large is the server's to say.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.service_config", json.dumps(config)),
            ("grpc.per_rpc_retry_buffer_size", MAX_RETRIED_BYTES),
            # A server that comes back is found soon: within the retries of a call at first, within seconds after hours without one.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.min_reconnect_backoff_ms", 5_000),  # for how long one attempt to connect may take, whatever its name
            # A server that vanishes while calls are in flight is noticed in 30 seconds, not after TCP's quarter of an hour.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # A proxy in the environment is for other machines; gRPC would send calls to this one through it too.
            ("grpc.enable_http_proxy", 0 if local else 1),
        ]
        self.credentials = _credentials(tls_ca, tls_cert, tls_key)


def _address(server: str | Sequence[str]) -> tuple[str, list[str], bool]:
    """The one name that gRPC knows a server, or several, by; the hosts in it; and whether it stands for several."""
    try:
        given = server if isinstance(server, str) else ",".join(server)
    except TypeError:
        given = ""
    if _OTHER_TARGET.fullmatch(given):
        return given, [], False
    rest = _SCHEME.sub("", given)
    scheme = given.removesuffix(rest)
    by_name = scheme.startswith("dns:")
    places = [_PLACE.fullmatch(place) for place in rest.split(",")]
    hosts = [place["host"] for place in places if place is not None]
    ports = [place["port"] for place in places if place is not None]
    several_plain = len(places) > 1 and not scheme
    if None in places or (None in ports and not by_name) or (several_plain and not all(_IPV4.fullmatch(host) for host in hosts)):
        raise UserError(
            f"server {server!r}: give it as HOST:PORT, such as 127.0.0.1:8001 or [::1]:8001; several servers as a list of IPv4 "
            "addresses with ports, or as dns:///HOST:PORT, which stands for all addresses of the name"
        )
    for port in ports:
        if port is not None and not 1 <= int(port) <= 65535:
            raise UserError(f"server {server!r}: port {port} is not between 1 and 65535")
    return ("ipv4:" + given if several_plain else given), hosts, by_name or len(places) > 1


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    if ca is None and cert is None and key is None:
        return None
    if ca is None or (cert is None) != (key is None):
        raise UserError("TLS needs the server's CA, and a client certificate needs its key: --tls-ca, --tls-cert, --tls-key")
    pem_ca, pem_key, pem_cert = (read_file(path) if path is not None else None for path in (ca, key, cert))
    # gRPC says nothing of what is wrong with them, and trusts the CAs that it knows if there is none in the file.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise UserError(f"TLS: --tls-ca {str(ca)!r} holds no certificate in PEM form") from None
    try:
        if cert is not None:
            context.load_cert_chain(cert, key, password="")  # without one, it would be asked for on the terminal
    except ssl.SSLError:
        raise UserError("TLS: --tls-cert and --tls-key must be PEM files that belong together, the key not encrypted") from None
    return grpc.ssl_channel_credentials(pem_ca, pem_key, pem_cert)


def checked_timeout(seconds: float | None) -> float:
    """A client's timeout, infinite for none. Raises UserError if it is none at all."""
    if seconds is None:
        return float("inf")
    if isinstance(seconds, int | float) and seconds > 0:
        return float(seconds)
    raise UserError(f"timeout_seconds {seconds!r}: give a positive number, or None for no deadline")


def deadline_seconds(client_seconds: float, server_seconds: float = 0.0) -> float | None:
    """The deadline of a call, as gRPC takes it: of a client's timeout, and the time that the server is given if it is not 0."""
    seconds = min(client_seconds, server_seconds + MARGIN_SECONDS) if server_seconds > 0 else client_seconds
    return seconds if seconds < _FOREVER_SECONDS else None
