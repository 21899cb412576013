"""What a reverse proxy in front changes: `X-Forwarded-*` headers, taken from trusted addresses alone, and a prefix of all paths."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response

from service.errors import UserError
from service.requests.principal import proxy_network

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

UNIX = "unix"
"""Among the trusted proxies: whoever can connect to the unix socket."""

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_OWN_PATHS = ("v2", "page", "metrics", "livez", "readyz")


def behind_proxy(app: "WSGIApplication", trusted: Sequence[str], root_path: str) -> "WSGIApplication":
    """`app`, which gets each request as the client sent it to the proxy, and its path without the prefix.

    Args:
        app: the application.
        trusted: addresses and networks whose `X-Forwarded-For`, `-Proto`, `-Host` and `-Prefix` are true; UNIX for the unix socket.
        root_path: what checked_root_path returned. Paths that do not begin with it are taken too: the proxy may have cut it off.

    Raises:
        UserError: an address or network cannot be read.
    """
    if not trusted and not root_path:
        return app
    is_trusted = trusts(trusted)

    def strip_prefix(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        for prefix in (root_path, environ["SCRIPT_NAME"].rstrip("/")):
            if path == prefix != "":
                # The page's links are relative to its folder. So is the new place: the proxy may have cut off more.
                query = environ["QUERY_STRING"]
                location = f"{prefix.rpartition('/')[2]}/" + (f"?{query}" if query else "")
                return Response(status=308, headers={"Location": location})(environ, start_response)
            if prefix and path.startswith(f"{prefix}/"):
                environ["SCRIPT_NAME"], environ["PATH_INFO"] = prefix, path.removeprefix(prefix)
                break
        return app(environ, start_response)

    forwarded = ProxyFix(strip_prefix, x_for=1, x_proto=1, x_host=1, x_prefix=1)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        return (forwarded if is_trusted(environ["REMOTE_ADDR"]) else strip_prefix)(environ, start_response)

    return answer


def trusts(trusted: Sequence[str]) -> Callable[[str], bool]:
    """Whether an address is one of a trusted proxy. Raises UserError if an address or network cannot be read."""
    networks = [proxy_network(each) for each in trusted if each != UNIX]

    def is_trusted(address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return UNIX in trusted  # clients of a unix socket have a name, no address
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return any((mapped or parsed) in network for network in networks)

    return is_trusted


def checked_root_path(root_path: str) -> str:
    """The prefix without a slash at its end. Raises UserError for what cannot be one."""
    dots = {".", ".."}.intersection(root_path.split("/"))  # browsers and proxies resolve them
    if root_path and (not root_path.startswith("/") or not _ROOT_PATH.fullmatch(root_path) or dots):
        raise UserError(
            f"--root-path {root_path!r} is not accepted: a path such as /convoy or /ml/convoy, of letters, digits, - . _ ~"
        )
    root_path = root_path.rstrip("/")
    if root_path.split("/")[1:2] and root_path.split("/")[1] in _OWN_PATHS:
        raise UserError(f"--root-path {root_path!r} is not accepted: Convoy serves paths of its own that begin so")
    return root_path
