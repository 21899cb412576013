"""Server reflection: gRPC clients can list the services and call them without our .proto files.

grpcio-reflection gives the answers. `grpc.reflection.v1` and `v1alpha` have the same messages on the wire, and clients ask for
either, so both are served.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection import ReflectionServicer as LibraryServicer

from service.errors import InvalidRequest
from service.rpc import health
from service.rpc.call import Method, Receiver, Stream, StreamCall
from service.rpc.open_streams import OpenStreams

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

MAX_REQUEST_BYTES = 4096
"""Far more than any name here has. The response repeats the request, and stays here while the client does not read it."""

_NO_CONTEXT: Any = None  # the library does not use it


class ReflectionServicer:
    """Answers questions about the services named."""

    def __init__(self, services: Sequence[str]) -> None:
        self._library = LibraryServicer([*services, SERVICES[1]])
        self._health = LibraryServicer([], health.DESCRIPTORS)
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """The methods of this servicer."""
        return [
            Stream(f"/{service}/ServerReflectionInfo", pb.ServerReflectionRequest, self._open, "bidi_stream")
            for service in SERVICES
        ]

    def _open(self, call: StreamCall) -> Receiver:
        stream = _ReflectionStream(self, call)
        self._streams.add(stream)
        call.receive()
        return stream

    def end_streams(self) -> None:
        """Ends every stream, for a server that stops: it would wait for an idle one for its whole grace."""
        self._streams.finish_all()

    def answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """The response to one request."""
        asked = pb.ServerReflectionRequest()
        asked.CopyFrom(request)
        about_health = asked.file_containing_symbol.startswith(health.PACKAGE) or asked.file_by_filename == health.FILE
        library, pool = (self._health, health.DESCRIPTORS) if about_health else (self._library, descriptor_pool.Default())
        with contextlib.suppress(KeyError):  # the library finds a method by its service alone
            method = pool.FindMethodByName(request.file_containing_symbol)
            asked.file_containing_symbol = method.containing_service.full_name
        answers: list[pb.ServerReflectionResponse] = list(library.ServerReflectionInfo(iter([asked]), _NO_CONTEXT))
        answers[0].original_request.CopyFrom(request)
        return answers[0]


class _ReflectionStream:
    def __init__(self, servicer: ReflectionServicer, call: StreamCall) -> None:
        self._servicer = servicer
        self._call = call

    def on_message(self, request: pb.ServerReflectionRequest) -> None:
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise InvalidRequest(f"the request has {request.ByteSize()} bytes; at most {MAX_REQUEST_BYTES} are accepted")
        # The next request is read when this response is sent: a client that does not read cannot fill the memory.
        self._call.send(self._servicer.answer(request).SerializeToString(), sent=self._call.receive)

    def on_half_close(self) -> None:
        self._call.finish()

    def finish(self) -> None:
        """See Finishable."""
        self._call.finish()
