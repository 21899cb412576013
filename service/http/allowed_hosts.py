"""Which names the HTTP port may be asked by: a defence against DNS rebinding.

The attack. A page of `http://evil.example:8002` is open in a browser that can reach this server. The owner of that name lets it
resolve to this server's address, and the page asks `http://evil.example:8002/v2/...`. For the browser that is the page's own site:
it lets the page read the answers, and `Origin` is equal to `Host`. Only the name in `Host` is wrong.

What cannot be the name of such a page: an IP literal; `localhost` and names under it, which browsers never ask DNS for; the name of
this machine and those of `--host`, which the owner of another name cannot give out. These are always accepted.

Which requests are checked.
- All of them, on a server that listens on loopback addresses alone: whoever uses it is on the same machine and says localhost.
- All of them, on every server with `--allowed-hosts`.
- Otherwise those that change something and come from a page over plain HTTP, which is what a rebound page can send: browsers put
  `Origin` on them, and `Sec-Fetch-Site`, which a page cannot set, goes to https and localhost alone. Over https the certificate
  would have to be that of the page's name. So services, proxies and scrapers may use any name without configuration. A rebound
  page may then still read what every client of the network may; `--allowed-hosts` or `--auth` closes that.
- Never `/livez` and `/readyz`, which tell nothing, nor, without `--allowed-hosts`, what comes by the unix socket: no browser does.
"""

import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from service.errors import UserError
from service.http.responses import error_response
from service.sockets import listeners
from service.sockets.loopback import is_loopback

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

ANY = "*"
PROBES = ("/livez", "/readyz")

_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_HOST = re.compile(r"(\[[^\[\]\s]*\]|[^:\[\]\s/@,]*)(:[0-9]*)?")


class AllowedHosts:
    """The names in `Host` that requests may have, and the requests for which that matters."""

    def __init__(self, allowed: Sequence[str], listening: Sequence[str], allows_origin: Callable[[str], bool]) -> None:
        """Raises UserError for a name that is not accepted, or an unknown host.

        Args:
            allowed: names, `*.example.com` for those under one, `*` for all. With any, every request is checked.
            listening: the hosts of `--host`.
            allows_origin: whether pages of an origin may ask whatever name they know the server by.
        """
        for name in allowed:
            if name != ANY and not _NAME.fullmatch(name.lower()) and not _is_address(name):
                raise UserError(
                    f"--allowed-hosts {name!r} is not accepted: a name is like convoy.example.com, or *.example.com for all names "
                    "under one, without a port; * alone allows every name"
                )
        self._any = ANY in allowed
        self._names = {_normal(name) for name in (*allowed, *listening, socket.gethostname()) if not name.startswith("*")}
        self._under = (".localhost", *(name[1:].lower() for name in allowed if name.startswith("*.")))
        self._allows_origin = allows_origin
        self._all_requests = bool(allowed)
        self._all_of_network = bool(allowed) or all(is_loopback(address.host) for address in listeners.resolve(listening))
        self._logged = False

    def accepts(self, environ: "WSGIEnvironment") -> bool:
        """Whether a request, as a trusted proxy describes it, may be answered."""
        return self.allows(environ.get("HTTP_HOST", "")) or not self._matters(environ)

    def allows(self, host: str) -> bool:
        """Whether the name in a `Host` header is accepted. Requests of HTTP/1.0 may have none; browsers always send one."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = _normal(match[1])
        return (
            self._any or name in ("", "localhost") or name in self._names or name.endswith(self._under) or _is_address(name)
        )  # fmt: skip

    def wrap(self, app: "WSGIApplication") -> "WSGIApplication":
        """`app`, which gets only requests that are accepted."""

        def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            if self.accepts(environ):
                return app(environ, start_response)
            host = environ.get("HTTP_HOST", "")
            if not self._logged:  # once: an operator who sees it knows whether that is a name of this server
                self._logged = True
                log.warning("refused a request to the host %.200r: if that is a name of this server, see --allowed-hosts", host)
            reason = f"host {host[:200]!r} is not accepted: if it is a name of this server, start it with --allowed-hosts"
            return error_response(403, reason)(environ, start_response)

        return answer

    def _matters(self, environ: "WSGIEnvironment") -> bool:
        if environ["PATH_INFO"] in PROBES:
            return False
        if self._all_requests:
            return True
        peer = environ.get("werkzeug.proxy_fix.orig", environ)["REMOTE_ADDR"]  # not what a proxy says of the client
        if not _is_address(peer):  # the unix socket's
            return False
        if self._all_of_network:
            return True
        origin = environ.get("HTTP_ORIGIN")
        return (
            origin is not None
            and environ["REQUEST_METHOD"] not in ("GET", "HEAD")
            and "HTTP_SEC_FETCH_SITE" not in environ
            and environ["wsgi.url_scheme"] != "https"
            and not self._allows_origin(origin)
        )


def _normal(host: str) -> str:
    bare = host[1:-1] if host.startswith("[") else host
    return bare.lower().removesuffix(".")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
