"""Server reflection: any gRPC client can list the services and call them without our .proto files.

The answers are grpcio-reflection's own. `grpc.reflection.v1` and `v1alpha` have the same messages on the wire, and clients ask
for either, so both names are offered.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection import ReflectionServicer as Answers

from service.rpc.call import Method, OpenStreams, Receiver, Stream, StreamCall

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_NO_CONTEXT: Any = None  # the library's answers ask nothing of it


class ReflectionServicer:
    """Answers questions about the services named."""

    def __init__(self, services: Sequence[str]) -> None:
        self._answers = Answers([*services, SERVICES[1]])
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """What this servicer offers."""
        return [
            Stream(f"/{service}/ServerReflectionInfo", pb.ServerReflectionRequest, self._open, "bidi_stream")
            for service in SERVICES
        ]

    def _open(self, call: StreamCall) -> Receiver:
        self._streams.add(call)
        call.receive()
        return _Conversation(self, call)

    def end_conversations(self) -> None:
        """Ends every conversation, for a server that stops: an idle one would hold the stop for its whole grace."""
        self._streams.finish_all()

    def answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """One answer to one question."""
        asked = pb.ServerReflectionRequest()
        asked.CopyFrom(request)
        with contextlib.suppress(KeyError):  # the library finds a method by its service alone
            method = descriptor_pool.Default().FindMethodByName(request.file_containing_symbol)
            asked.file_containing_symbol = method.containing_service.full_name
        answers: list[pb.ServerReflectionResponse] = list(self._answers.ServerReflectionInfo(iter([asked]), _NO_CONTEXT))
        answers[0].original_request.CopyFrom(request)
        return answers[0]


class _Conversation:
    def __init__(self, servicer: ReflectionServicer, call: StreamCall) -> None:
        self._servicer = servicer
        self._call = call

    def message(self, request: pb.ServerReflectionRequest) -> None:
        # The next question is read when this answer is out: a client cannot fill the memory by asking faster than it listens.
        self._call.send(self._servicer.answer(request).SerializeToString(), sent=self._call.receive)

    def half_closed(self) -> None:
        self._call.finish()
