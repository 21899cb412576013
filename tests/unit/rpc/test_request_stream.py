"""A stream whose server begins to drain while a message is started: the request stays unanswered, and the client sends it again."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from service.errors import InvalidRequest, RequestError, Unavailable
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.call import NEVER, Stream, StreamCall
from service.rpc.request_stream import RequestStream, StreamRequest
from service.rpc.status import Status
from tests.integration.transport_service import RecordingMethodObserver, RecordingObserver

MESSAGE = pb.ClassifyStreamRequest()
METHOD = Stream("/c.C/ClassifyStream", pb.ClassifyStreamRequest, lambda _: None, "bidi_stream")  # type: ignore[arg-type, return-value]


class ACall(StreamCall):
    """A stream without a transport: notes what is sent, and how it ends."""

    def __init__(self) -> None:
        super().__init__(
            METHOD, NEVER, (), RecordingMethodObserver(RecordingObserver(), "bidi_stream", METHOD.service, METHOD.name)
        )
        self.sent: list[bytes] = []
        self.status: Status | None = None

    def peer(self) -> str:
        return ""

    def certificate_names(self) -> Sequence[str]:
        return ()

    def _read(self) -> None:
        pass

    def _write(self, payload: bytes, *, more: bool) -> None:
        self.sent.append(payload)
        self.written()

    def _close(self, status: Status) -> None:
        self.status = status


def refuses(
    error: RequestError, streams: list[RequestStream], message: pb.ClassifyStreamRequest, request: StreamRequest
) -> Callable[[], None]:
    for stream in streams:  # another thread begins to drain now
        stream.finish()
    raise error


@pytest.mark.parametrize("drains", [True, False])
@pytest.mark.parametrize("error", [Unavailable("the server is draining"), InvalidRequest("no items")])
def test_what_is_refused_for_the_drain_alone_stays_unanswered(drains: bool, error: RequestError) -> None:
    call, streams = ACall(), list[RequestStream]()
    stream = RequestStream(call, partial(refuses, error, streams), lambda *_: b"an error")
    if drains:
        streams.append(stream)
    stream.on_message(MESSAGE)
    assert call.sent == ([] if drains and isinstance(error, Unavailable) else [b"an error"])
    assert not stream.pending
    assert (call.status is not None and call.status.name == "UNAVAILABLE") == drains, "the stream ends once nothing is unanswered"
