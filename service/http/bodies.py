"""Bodies of HTTP requests: size limits, compression, JSON and its members. Compression of responses."""

import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any

from werkzeug.wrappers import Request, Response

from service.errors import InvalidRequest, TooLarge
from service.requests.byte_budget import Holding

JSON_LENGTH = "Inference-Header-Content-Length"
"""The header with the bytes of JSON in a body; binary tensors follow it. 0 says that the body is the input alone, without JSON."""

MIN_COMPRESSED_BYTES = 1024
"""Shorter responses are not worth compressing."""

MAX_MEMBERS = 100
"""Compressed data may be of several members, one after the other. Each costs time, however little is in it."""

_CHUNK_BYTES = 4096
_MAX_LENGTH_DIGITS = 20


def read_body(request: Request, max_bytes: int, holding: Holding) -> bytes:
    """The decompressed body. What decompressing adds is taken from the budget, into `holding`.

    Raises:
        InvalidRequest: it has more than `max_bytes` or MAX_MEMBERS, or is not in its Content-Encoding.
        TooLarge: it needs more than the budget ever has.
        TooManyBytes: the budget does not have so many left.
    """
    if (request.content_length or 0) > max_bytes:
        raise InvalidRequest(f"the body is larger than {max_bytes} bytes")
    body = request.get_data(cache=False)  # the request lives until it is answered, the body need not
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise InvalidRequest(f"Content-Encoding {encoding[:64]!r} is none of gzip, deflate, identity")
    try:
        return _decompress(body, encoding, max_bytes, holding)
    except zlib.error:
        raise InvalidRequest(f"the body is not {encoding} data") from None


def _decompress(body: bytes, encoding: str, max_bytes: int, holding: Holding) -> bytes:
    """All members of the compressed data. Raises InvalidRequest if they are too many or too large, or the last is incomplete."""
    either_format = zlib.MAX_WBITS + 32
    decompressor = zlib.decompressobj(either_format)
    members = 1
    parts = []
    left = max_bytes
    # In chunks, because zlib copies the data after each member.
    for start in range(0, len(body), _CHUNK_BYTES):
        chunk = body[start : start + _CHUNK_BYTES]
        while chunk:
            if decompressor.eof:
                members += 1
                if members > MAX_MEMBERS:
                    raise InvalidRequest(f"the body is {encoding} data of more than {MAX_MEMBERS} members")
                decompressor = zlib.decompressobj(either_format)
            part = decompressor.decompress(chunk, left + 1)
            left -= len(part)
            if left < 0:
                raise InvalidRequest(f"the decompressed body is larger than {max_bytes} bytes")
            if len(body) + max_bytes - left > holding.limit_bytes:  # the body is held by whoever read it
                raise TooLarge(f"the body and what is in it have more than {holding.limit_bytes} bytes (--max-inflight-bytes)")
            if part:
                holding.take(len(part))
                parts.append(part)
            chunk = decompressor.unused_data
    if not decompressor.eof:
        raise InvalidRequest(f"the body is incomplete {encoding} data")
    return b"".join(parts)


def compress(request: Request, response: Response) -> Response:
    """Compresses a response if it is long and the client accepts that."""
    body = response.get_data()
    encoding = request.accept_encodings.best_match(["gzip", "deflate"]) if len(body) >= MIN_COMPRESSED_BYTES else None
    if encoding is not None:
        response.set_data(gzip.compress(body, 1) if encoding == "gzip" else zlib.compress(body, 1))
        response.headers["Content-Encoding"] = encoding
    return response


def split_body(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    """The JSON that a body begins with, and the bytes after it. `json_length` is the header's value, None without it."""
    if json_length is None:
        return body, b""
    # A limit on the digits, because int() refuses some thousands of them.
    too_long = len(json_length) > _MAX_LENGTH_DIGITS
    if not json_length.isascii() or not json_length.isdigit() or too_long or int(json_length) > len(body):
        raise InvalidRequest(f"{JSON_LENGTH} is {json_length[:64]!r}; it must be the length of the JSON, at most that of the body")
    length = int(json_length)
    return body[:length], body[length:]


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises InvalidRequest for anything else."""
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "not UTF-8, nested too deeply, or NaN or Infinity"
        raise InvalidRequest(f"the body is not JSON: {reason} (to send an image file alone, set {JSON_LENGTH}: 0)") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body is JSON, but not an object")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(name)  # Python's parser accepts NaN and Infinity


_REQUIRED = object()
_TYPE_NAMES = {str: "a string", dict: "an object", list: "an array", bool: "true or false", int: "an integer"}


def member(document: Mapping[str, Any], name: str, kind: type, default: Any = _REQUIRED) -> Any:
    """A member of a JSON object, of type `kind`; `default` if it is missing, or null. Raises InvalidRequest."""
    value = document.get(name)
    if value is None:
        value = default
    if value is _REQUIRED:
        raise InvalidRequest(f"{name!r} is missing; it must be {_TYPE_NAMES[kind]}", name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRequest(f"{name!r} is not {_TYPE_NAMES[kind]}", name)
    return value
