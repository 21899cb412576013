"""`grpc.channelz.v1.Channelz`: C core's statistics of its servers, channels and connections. grpcio-channelz writes the answers."""

from collections.abc import Callable
from typing import Any

import grpc
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1.channelz import ChannelzServicer as LibraryServicer

from service.errors import NotFound
from service.rpc.call import Method, Unary, UnaryCall

SERVICE = "grpc.channelz.v1.Channelz"


class ChannelzServicer:
    """Answers all methods of the service. C core counts only if `grpc.enable_channelz` is set."""

    def methods(self) -> list[Method]:
        """The methods of this servicer."""
        return [
            Unary(f"/{SERVICE}/{method.name}", getattr(pb, method.input_type.name), _handler(getattr(LibraryServicer, method.name)))
            for method in pb.DESCRIPTOR.services_by_name["Channelz"].methods
        ]


def _handler(answer: Any) -> Callable[[Any, UnaryCall], None]:
    def handle(request: Any, call: UnaryCall) -> None:
        context = _Context()
        response = answer(request, context)
        if response is None and context.code is grpc.StatusCode.NOT_FOUND:
            raise NotFound(context.details)
        if response is None:
            raise RuntimeError(context.details)
        call.reply(response.SerializeToString())

    return handle


class _Context:
    """The part of a servicer context that the library uses."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.OK
        self.details = ""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the status code."""
        self.code = code

    def set_details(self, details: str) -> None:
        """Sets the status message."""
        self.details = details
