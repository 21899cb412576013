"""Asks `--auth` about every HTTP request, once its route is known and before its body is looked at."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from service.access.authenticator import Authenticator
from service.access.grant import Grant
from service.access.rights import ADMIN, HTTP
from service.errors import PermissionDenied, Refused, Unauthenticated
from service.http.certificates import PEER_CERTIFICATE, certificate_names

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

GATE = "convoy.gate"
"""The key in a request's environment for the Gate; missing without `--auth`."""

GRANT = "convoy.grant"
"""The key for what the client may do; missing where nothing is asked."""


class Gate:
    """Asks an Authenticator about every request."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def check(self, route: str, arguments: Mapping[str, Any], environ: "WSGIEnvironment") -> None:
        """Raises Unauthenticated or PermissionDenied unless the client may have what a route gives."""
        right = HTTP.get(route, ADMIN)
        if right == "open":
            return
        try:
            grant = self._authenticator.grant(environ.get("HTTP_AUTHORIZATION"), partial(_certificate_names, environ))
        except (Unauthenticated, PermissionDenied) as error:
            self._authenticator.refused(error, None, _peer(environ), route)
            raise
        environ[GRANT] = grant
        if right in ("infer", "describe") and "model" in arguments:
            grant.require_model(right, arguments["model"])
        else:
            grant.require(right)


def check_route(route: str, arguments: Mapping[str, Any], environ: "WSGIEnvironment") -> None:
    """Asks the request's gate, if there is one."""
    gate: Gate | None = environ.get(GATE)
    if gate is not None:
        gate.check(route, arguments, environ)


def grant_of(environ: Mapping[str, Any]) -> Grant | None:
    """What the client may do; None without `--auth`."""
    grant: Grant | None = environ.get(GRANT)
    return grant


def count_refusal(error: Refused, environ: "WSGIEnvironment") -> None:
    """Has it counted that a client, which is known, does not have a right that it needs."""
    grant = grant_of(environ)
    if grant is not None:
        grant.counter.refused(error, grant.principal, _peer(environ), environ["PATH_INFO"])


def _certificate_names(environ: "WSGIEnvironment") -> Sequence[str]:
    der = environ.get(PEER_CERTIFICATE)
    try:
        return () if der is None else certificate_names(der)
    except Exception:  # noqa: BLE001 - cryptography's errors of many kinds, for what OpenSSL lets pass
        raise Unauthenticated("the client's certificate cannot be read", "malformed") from None


def _peer(environ: "WSGIEnvironment") -> str:
    return f"{environ.get('REMOTE_ADDR', '')}:{environ.get('REMOTE_PORT', '')}"
