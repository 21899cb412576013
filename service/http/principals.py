"""Who sends an HTTP request."""

from collections.abc import Iterator, Mapping
from typing import Any

from werkzeug.wrappers import Request

from service.http.gate import grant_of
from service.requests.principal import UNIX, UNKNOWN, Principal, of_address


def principal_of(environ: Mapping[str, Any]) -> Principal:
    """Whom `--auth` knows, else the address: behind a trusted proxy the client's, which `proxy.py` puts into `REMOTE_ADDR`."""
    grant = grant_of(environ)
    if grant is not None:
        return grant.principal
    found = of_address(environ.get("REMOTE_ADDR", ""))
    return UNIX if found is UNKNOWN else found


def metadata_of(request: Request) -> Iterator[tuple[str, str]]:
    """The headers as gRPC has metadata, with names in lower case. Can be gone through once; costs nothing if it is not."""
    return ((name.lower(), value) for name, value in request.headers)


def caller_of(environ: Mapping[str, Any]) -> dict[str, Any]:
    """For the audit log: who sends a request, and from where."""
    return {"who": principal_of(environ), "peer": f"{environ.get('REMOTE_ADDR', '')}:{environ.get('REMOTE_PORT', '')}"}
