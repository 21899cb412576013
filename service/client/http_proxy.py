"""The HTTP proxy of the environment: whether gRPC connects through it, by gRPC's own rules, and what a failure then means."""

import ipaddress
import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from service.client.messages import CallFailed

THROUGH_PROXY = "through the HTTP proxy"
"""In the message of every failure to connect through a proxy."""

_PLACE = re.compile(r"^[A-Z_]+: (ipv[46]:\S+: )?")
"""What gRPC's messages begin with: a status, and the address of the proxy."""

_NOT_CONNECTED = re.compile(r"connections to all backends|failed to connect to all|errors resolving|DNS resolution failed")


class HttpProxy(NamedTuple):
    """A proxy's HOST:PORT, without user and password, and the variable of the environment that names it."""

    address: str
    variable: str

    def explain(self, failed: CallFailed, target: str, host: str) -> CallFailed:
        """A failure to connect to `target` names the proxy, and how to do without it; any other stays as it is."""
        if failed.code != "UNAVAILABLE" or not _NOT_CONNECTED.search(failed.message):
            return failed
        cause = _PLACE.sub("", failed.message.rpartition("last error: ")[2])
        return CallFailed(
            failed.code,
            f"no connection to {target} {THROUGH_PROXY} {self.address} of ${self.variable}: {cause} "
            f"(no_grpc_proxy={host} in the environment goes round the proxy)",
            failed.field,
            failed.retry_after_seconds,
        )


def http_proxy(host: str) -> HttpProxy | None:
    """The proxy for connections to a host; None if there is none, or the host is one of `no_grpc_proxy` or `no_proxy`."""
    variable = _first_set("grpc_proxy", "https_proxy", "http_proxy")
    if not variable:
        return None
    try:
        url = urlsplit(os.environ[variable])
    except ValueError:
        return None
    if url.scheme != "http" or not url.netloc:  # gRPC takes no other
        return None
    excluded = os.environ.get(_first_set("no_grpc_proxy", "no_proxy"), "")
    if any(_matches(host.strip("[]"), entry.strip()) for entry in excluded.split(",") if entry):
        return None
    return HttpProxy(url.netloc.rpartition("@")[2], variable)


def _first_set(*variables: str) -> str:
    return next((name for name in variables if name in os.environ), "")


def _matches(host: str, entry: str) -> bool:
    """Whether a host is an entry of the list: any host for `*`, the host or the end of its name, or a network with it."""
    if entry == "*" or host.lower().endswith(entry.lower()):
        return True
    try:
        return "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
