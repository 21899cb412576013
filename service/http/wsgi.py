"""A request as WSGI has it (PEP 3333), and an application's answer as a whole."""

import io
import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

import h11

from service.errors import InvalidRequest
from service.http.responses import error_response, missing_security_headers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment
    from werkzeug.wrappers import Response

log = logging.getLogger(__name__)

Headers = list[tuple[str, str]]

_ABSOLUTE = re.compile(rb"(?i:https?)://[^/?#]+(.*)")
_PLAIN_NAMES = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}


class Reply(NamedTuple):
    """A response: `status` is like `200 OK`."""

    status: str
    headers: Headers
    body: bytes


class Body(io.BytesIO):
    """A request's body, which is let go of once it has been read: it is large, and the request waits for its answer."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See io.BytesIO.read. All that is left is not copied."""
        read = super().read(size)
        if size is None or size < 0:
            self.seek(0)
            self.truncate(0)
        return read


def environ_of(request: h11.Request, connection: "WSGIEnvironment") -> "WSGIEnvironment":
    """The environment of a request, without its body. `connection` has what all requests of its connection share.

    Headers with an underscore are left out: WSGI cannot tell them from those with a hyphen, which a proxy in front may set.

    Raises:
        InvalidRequest: the target is neither a path nor a URL.
    """
    path, _, query = _path_and_query(request.target).partition(b"?")
    environ = connection | {
        "REQUEST_METHOD": request.method.decode("ascii"),
        "PATH_INFO": "/" + unquote_to_bytes(path).decode("latin-1").lstrip("/"),
        "QUERY_STRING": query.decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{request.http_version.decode('ascii')}",
    }
    for name, value in request.headers:
        if b"_" in name or name == b"transfer-encoding":
            continue
        key = _PLAIN_NAMES.get(name) or "HTTP_" + name.decode("ascii").upper().replace("-", "_")
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]}{'; ' if name == b'cookie' else ', '}{text}" if key in environ else text
    return environ


def _path_and_query(target: bytes) -> bytes:
    if target.startswith(b"/") or target == b"*":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise InvalidRequest("the target is neither a path nor a URL")
    return absolute[1].partition(b"#")[0]


def connection_environ(client: tuple[str, int] | None, server: tuple[str, int], scheme: str) -> "WSGIEnvironment":
    """What the requests of one connection have in common. `client` is None at a unix socket: its address is then `unix`."""
    return {
        "REMOTE_ADDR": "unix" if client is None else client[0],
        "REMOTE_PORT": "" if client is None else str(client[1]),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SCRIPT_NAME": "",
        "wsgi.url_scheme": scheme,
        "wsgi.version": (1, 0),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }


def call(application: "WSGIApplication", environ: "WSGIEnvironment") -> Reply:
    """The whole answer of an application; 500 if it raises, which is logged."""
    started: list[tuple[str, Headers]] = []

    def start_response(status: str, headers: Headers, exc_info: object = None) -> Callable[[bytes], object]:  # noqa: ARG001 - WSGI's
        started[:] = [(status, headers)]
        return _no_write

    try:
        chunks = application(environ, start_response)
        try:
            body = b"".join(chunks)
        finally:
            if (close := getattr(chunks, "close", None)) is not None:
                close()
        [(status, headers)] = started
    except Exception:
        log.exception("an HTTP request failed")
        return to_reply(error_response(500, "internal error; see the server's log"), ())
    return Reply(status, headers, body)


def _no_write(_: bytes) -> object:
    raise NotImplementedError("applications here return their body")


def to_reply(response: "Response", headers: Iterable[tuple[str, str]]) -> Reply:
    """A reply that no application has made, with further headers and those that every response has."""
    own = [*response.headers.items(), *headers]
    return Reply(response.status, own + missing_security_headers(own), response.get_data())
