"""The header of an HTTP/1.1 request: found in what was received, checked, and read by h11.

It is looked at before h11 gets it: its size and its number of lines are limited, and a request that a proxy in front may read
otherwise is refused (RFC 9112, sections 2.2, 3.2, 5.2 and 6.3): with two lengths of its body, without exactly one host, with lines
that end in LF alone or go on in the next.
"""

import re
from typing import TYPE_CHECKING, NamedTuple

import h11

from service.errors import InvalidRequest
from service.http.wsgi import environ_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MAX_HEADER_LINES = 100
MAX_CHUNK_HEADER_BYTES = 64 * 1024

_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:[ \t]*(.*?)[ \t]*\r$")
_ORIGIN = re.compile(rb"(?im)^origin:[ \t]*([!-~]{1,255})[ \t]*\r$")
_FIRST_LETTER = 0x21


class Refused(Exception):
    """A request is answered with an error before it has been read whole."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestHead(NamedTuple):
    """A request whose header has been read.

    Attributes:
        protocol: reads its body, and writes its response.
        environ: its environment, without its body.
        method: such as GET.
        length: the bytes of its body; None if it comes in chunks.
    """

    protocol: h11.Connection
    environ: "WSGIEnvironment"
    method: bytes
    length: int | None

    @property
    def has_body(self) -> bool:
        """Whether a body follows."""
        return self.length != 0


def take_head(buffer: bytearray, searched: int, max_bytes: int) -> bytes | None:
    """Takes a header with its empty line out of the buffer, of which `searched` bytes were looked at before; None if it has no end.

    Raises:
        Refused: it is too large, or is no header.
    """
    while buffer.startswith(b"\r\n"):  # before a request line: RFC 9112, section 2.2
        del buffer[:2]
    if buffer and buffer[0] < _FIRST_LETTER:
        raise Refused(400, "bad request: this is not HTTP")
    begin = max(0, searched - 3)
    end = buffer.find(b"\r\n\r\n", begin)
    if (len(buffer) if end < 0 else end + 4) > max_bytes:
        raise Refused(431, f"the header is too large: at most {max_bytes} bytes are accepted")
    if end < 0:
        if buffer.find(b"\n\n", begin) >= 0:
            raise Refused(400, "bad request: a line ends without CR")
        return None
    head = bytes(buffer[: end + 4])
    del buffer[: end + 4]
    return head


def parse_head(head: bytes, connection: "WSGIEnvironment") -> RequestHead:
    """Reads a header. `connection` is what the requests of its connection have in common. Raises Refused."""
    _check_lines(head)
    protocol = h11.Connection(h11.SERVER, MAX_CHUNK_HEADER_BYTES)
    protocol.receive_data(head)
    try:
        request = protocol.next_event()
    except h11.RemoteProtocolError as error:
        reason = "one Host is needed" if "Host:" in str(error) else str(error)[:200]
        raise Refused(error.error_status_hint, f"bad request: {reason}") from None
    if type(request) is not h11.Request:
        raise Refused(400, "bad request: this is no request")
    if request.method == b"CONNECT":
        raise Refused(405, "this is no proxy")
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(505, "HTTP/1.1 and HTTP/1.0 are accepted")
    try:
        environ = environ_of(request, connection)
    except InvalidRequest as error:
        raise Refused(400, f"bad request: {error}") from None
    chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
    if chunked and ("CONTENT_LENGTH" in environ or request.http_version == b"1.0"):
        raise Refused(400, "bad request: Content-Length with Transfer-Encoding, or Transfer-Encoding in HTTP/1.0")
    if "," in environ.get("HTTP_HOST", ""):
        raise Refused(400, "bad request: one Host is needed")
    return RequestHead(protocol, environ, request.method, None if chunked else int(environ.get("CONTENT_LENGTH", 0)))


def origin_in(head: bytes | bytearray) -> str | None:
    """The header Origin of a request that was refused because of its header."""
    found = _ORIGIN.search(head)
    return None if found is None else found[1].decode("ascii")


def _check_lines(head: bytes) -> None:
    lines = head.count(b"\r\n")
    if lines > MAX_HEADER_LINES + 2:  # with the request line and the empty one
        raise Refused(431, f"the header has too many lines: at most {MAX_HEADER_LINES} are accepted")
    if head.count(b"\n") != lines or b"\r\n " in head or b"\r\n\t" in head:
        raise Refused(400, "bad request: a line ends without CR, or goes on in the next")
    lengths = _LENGTH.findall(head)
    if lengths and (len(lengths) > 1 or not lengths[0].isdigit()):
        raise Refused(400, "bad request: Content-Length is invalid")
