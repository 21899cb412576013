"""Who sends an HTTP request."""

from collections.abc import Mapping
from typing import Any

from service.principal import UNIX, UNKNOWN, Principal, of_address


def principal_of(environ: Mapping[str, Any]) -> Principal:
    """By address: behind a trusted proxy that of the client, as `proxy.py` has put it into `REMOTE_ADDR`."""
    found = of_address(environ.get("REMOTE_ADDR", ""))
    return UNIX if found is UNKNOWN else found
