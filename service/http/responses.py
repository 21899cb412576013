"""JSON responses of the HTTP port, and errors as responses: `{"error": "..."}` with the status of their class."""

import json
import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.wrappers import Response

from service.errors import (
    ByErrorClass,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    LoadError,
    ModelFailed,
    NotFound,
    PermissionDenied,
    QueueFull,
    QuotaExceeded,
    Refused,
    RequestError,
    SharedMemoryFull,
    TooLarge,
    TooManyBytes,
    TooManyResults,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    forget_traceback,
)
from service.http.gate import count_refusal
from service.requests.byte_budget import out_of_memory

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = logging.getLogger(__name__)

STATUSES: dict[type[BaseException], int] = {
    RequestError: 400, InvalidRequest: 400, NotFound: 404, QueueFull: 429, QuotaExceeded: 429, DeadlineExceeded: 504,
    Cancelled: 499, Unavailable: 503,
    Unimplemented: 501, ModelFailed: 500, LoadError: 400, TooManyResults: 400,
    SharedMemoryFull: 507, TooLarge: 413, TooManyBytes: 429,
    Unauthenticated: 401, PermissionDenied: 403,
}  # fmt: skip
"""A subclass has the status of its nearest base class here."""

_statuses = ByErrorClass(STATUSES)

MAX_MESSAGE_CHARACTERS = 1000

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""For every response: no browser takes it for a page or a script, whatever text of a client is in it."""


def missing_security_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that every response has, as far as they are not among its own."""
    names = {name for name, _ in headers}
    return [header for header in _SECURITY_HEADERS.items() if header[0] not in names]


def json_response(document: Any, status: int = 200) -> Response:
    """A response with a JSON document."""
    return Response(json.dumps(document), status, mimetype="application/json")


def error_response(status: int, message: str) -> Response:
    """A response that says why a request failed. A long message is cut: it may repeat what the client sent."""
    shortened = message if len(message) <= MAX_MESSAGE_CHARACTERS else message[:MAX_MESSAGE_CHARACTERS] + "…"
    return json_response({"error": shortened}, status)


def response_to_error(error: Exception, environ: "WSGIEnvironment") -> Response:
    """The response to a request whose handler raised. Unexpected errors are logged, and their text is not sent."""
    response = _describe(error, environ)
    forget_traceback(error)
    return response


def _describe(error: Exception, environ: "WSGIEnvironment") -> Response:
    request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
    if isinstance(error, MethodNotAllowed) and environ["REQUEST_METHOD"] == "OPTIONS":
        return Response(status=204, headers={"Allow": ", ".join(sorted({*(error.valid_methods or ()), "OPTIONS"}))})
    if isinstance(error, HTTPException):
        response = error_response(error.code or 500, f"{request}: {(error.name or 'not accepted').lower()}")
        response.headers.extend(header for header in error.get_headers(environ) if header[0] == "Allow")
        return response
    if isinstance(error, MemoryError):
        error = out_of_memory()
    status = _statuses[type(error)]
    if status is None:
        log.error("%s failed", request, exc_info=error)
        return error_response(500, "internal error; see the server's log")
    response = error_response(status, str(error))
    if isinstance(error, QueueFull | Unavailable):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, Refused):
        count_refusal(error, environ)
    if isinstance(error, Unauthenticated):
        invalid = "" if error.cause == "missing" else ', error="invalid_token"'
        response.headers["WWW-Authenticate"] = f'Bearer realm="convoy"{invalid}'
    return response
