"""Errors to gRPC statuses, for every method.

Clients see the messages of the errors in errors.py, with a detail message of google.rpc where it helps a program: BadRequest names
the field, RetryInfo says when to retry. gRPC's own retries obey `grpc-retry-pushback-ms`. Any other exception becomes INTERNAL
without its text, which might hold paths or data.
"""

import math
from typing import NamedTuple

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status as StatusProto

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
    RequestError,
    SharedMemoryFull,
    TooLarge,
    TooManyBytes,
    TooManyResults,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from service.requests.byte_budget import out_of_memory

_MAX_MESSAGE_BYTES = 1000
"""Trailers of over 8 KiB may end the call with another code; they hold the message percent-encoded, and twice in Base64."""

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

CODES: dict[type[BaseException], grpc.StatusCode] = {
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    TooManyResults: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SharedMemoryFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyBytes: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Cancelled: grpc.StatusCode.CANCELLED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    ModelFailed: grpc.StatusCode.INTERNAL,
    LoadError: grpc.StatusCode.FAILED_PRECONDITION,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
}
"""A subclass has the code of its nearest base class here."""

_codes = ByErrorClass(CODES)


def status_of(error: BaseException) -> Status:
    """The status that an RPC ends with because of `error`."""
    if isinstance(error, MemoryError):
        error = out_of_memory()
    code = _codes[type(error)]
    if code is None:
        return _status(grpc.StatusCode.INTERNAL, "internal error; see the server's log")
    message = _shortened(str(error))
    if isinstance(error, InvalidRequest):
        violation = BadRequest.FieldViolation(field=error.field, description=message)
        return _status(code, message, _details(code, message, BadRequest(field_violations=[violation])))
    if isinstance(error, QueueFull | Unavailable):
        milliseconds = max(1, math.ceil(error.retry_after_seconds * 1000))
        delay = Duration()
        delay.FromMilliseconds(milliseconds)
        trailing = _details(code, message, RetryInfo(retry_delay=delay))
        return _status(code, message, (*trailing, ("grpc-retry-pushback-ms", str(milliseconds))))
    return _status(code, message)


def _shortened(message: str) -> str:
    encoded = message.encode()
    return message if len(encoded) <= _MAX_MESSAGE_BYTES else encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "…"


def _details(code: grpc.StatusCode, message: str, detail: Message) -> Metadata:
    packed = Any()
    packed.Pack(detail)
    number: int = code.value[0]
    status = StatusProto(code=number, message=message, details=[packed])
    return (("grpc-status-details-bin", status.SerializeToString()),)
