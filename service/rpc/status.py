"""The one place where an error becomes a gRPC status.

Clients see the message of errors that Convoy raises on purpose, with a detail message of google.rpc where one helps a program:
BadRequest names the field, RetryInfo says when to come back. `grpc-retry-pushback-ms` says the same to gRPC's own retries, which
obey it. Anything else that was raised becomes INTERNAL without its text, which might hold paths or data.
"""

from typing import NamedTuple

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status as StatusProto

from service.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    LoadError,
    ModelFailed,
    NotFound,
    QueueFull,
    Unavailable,
    Unimplemented,
)

_MOST_BYTES = 1000
"""Of a message. Trailers of over 8 KiB may end the call with another code; these have it percent-encoded, and twice in Base64."""

Metadata = tuple[tuple[str, str | bytes], ...]


class Status(NamedTuple):
    """How an RPC ends: a code, its name and number, a message for people, and trailing metadata for programs."""

    code: grpc.StatusCode
    name: str
    number: int
    message: str = ""
    trailing: Metadata = ()


def _status(code: grpc.StatusCode, message: str = "", trailing: Metadata = ()) -> Status:
    number: int = code.value[0]
    return Status(code, code.name, number, message, trailing)


OK = _status(grpc.StatusCode.OK)

_CODES: dict[type[BaseException], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Cancelled: grpc.StatusCode.CANCELLED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    ModelFailed: grpc.StatusCode.INTERNAL,
    LoadError: grpc.StatusCode.FAILED_PRECONDITION,
}


def status_of(error: BaseException) -> Status:
    """The status that an RPC ends with because of `error`."""
    code = _CODES.get(type(error))
    if code is None:
        return _status(grpc.StatusCode.INTERNAL, "the server failed on this request; its log says why")
    message = _shortened(str(error))
    if isinstance(error, InvalidRequest):
        violation = BadRequest.FieldViolation(field=error.field, description=message)
        return _status(code, message, _details(code, message, BadRequest(field_violations=[violation])))
    if isinstance(error, QueueFull | Unavailable):
        milliseconds = max(1, round(error.retry_after_seconds * 1000))
        delay = Duration()
        delay.FromMilliseconds(milliseconds)
        trailing = _details(code, message, RetryInfo(retry_delay=delay))
        return _status(code, message, (*trailing, ("grpc-retry-pushback-ms", str(milliseconds))))
    return _status(code, message)


def _shortened(message: str) -> str:
    encoded = message.encode()
    return message if len(encoded) <= _MOST_BYTES else encoded[:_MOST_BYTES].decode(errors="ignore") + "…"


def _details(code: grpc.StatusCode, message: str, detail: Message) -> Metadata:
    packed = Any()
    packed.Pack(detail)
    number: int = code.value[0]
    status = StatusProto(code=number, message=message, details=[packed])
    return (("grpc-status-details-bin", status.SerializeToString()),)
