"""Which web pages may send requests: this server's own and those of `--allowed-origins`, which may read the answers too (CORS)."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from service.errors import UserError
from service.http.bodies import JSON_LENGTH

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ANY = "*"
PREFLIGHT_SECONDS = 600
"""How long a browser may remember that it may send a request."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,*\\]+")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class AllowedOrigins:
    """The origins whose pages may send requests."""

    def __init__(self, origins: Sequence[str]) -> None:
        """`origins` are exact, such as `https://cats.example`; `*` stands for all. Raises UserError for anything else."""
        for origin in origins:
            if origin != ANY and not _ORIGIN.fullmatch(origin.lower()):
                raise UserError(
                    f"--allowed-origins {origin!r} is not accepted: an origin is like https://cats.example or "
                    "http://localhost:3000, without a path and whole; * alone allows every origin"
                )
        self._any = ANY in origins
        self._origins = {_without_default_port(*origin.lower().split("://")) for origin in origins if origin != ANY}

    def is_cross_site(self, environ: "WSGIEnvironment") -> bool:
        """Whether a browser sent the request for a page that is neither this server's nor of an allowed origin.

        Such a page could unload a model without its user's knowing. Sec-Fetch-Site is right behind a proxy too, but browsers send
        it to https and localhost alone.
        """
        origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
        if origin is not None and self.allows(origin):
            return False
        if site is not None:
            return site not in ("same-origin", "none")
        if origin is None:
            return False
        scheme, _, host = origin.partition("://")
        return _without_default_port(scheme, host) != _without_default_port(scheme, environ.get("HTTP_HOST", ""))

    def wrap(self, app: "WSGIApplication") -> "WSGIApplication":
        """`app`, with the headers of CORS in responses to allowed origins, and answers to preflight requests."""
        if not self._any and not self._origins:
            return app

        def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            origin = environ.get("HTTP_ORIGIN")
            own = self.headers(origin)
            asks_first = environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
            if asks_first and origin is not None and self.allows(origin):
                own = own[:-1] + _preflight(environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS"))
                return Response(status=204, headers=own)(environ, start_response)

            def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
                return start_response(status, headers + own, exc_info)

            return app(environ, start)

        return answer

    def headers(self, origin: str | None) -> list[tuple[str, str]]:
        """The headers of CORS in a response to a request with this header Origin."""
        if not self._any and not self._origins:
            return []
        own: list[tuple[str, str]] = [] if self._any else [("Vary", "Origin")]
        if origin is not None and self.allows(origin):
            own.append(("Access-Control-Allow-Origin", ANY if self._any else origin))
            own.append(("Access-Control-Expose-Headers", f"{JSON_LENGTH}, Retry-After"))
        return own

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may send requests and read the answers."""
        return self._any or origin in self._origins


def _preflight(requested_headers: str | None) -> list[tuple[str, str]]:
    allowed = [
        ("Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS"),
        ("Access-Control-Max-Age", str(PREFLIGHT_SECONDS)),
    ]
    return allowed if requested_headers is None else [*allowed, ("Access-Control-Allow-Headers", requested_headers)]


def _without_default_port(scheme: str, host: str) -> str:
    """An origin, as browsers write it."""
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ':'))}"
