"""A stream whose server begins to drain while a message is started: the request stays unanswered, and the client sends it again."""

from collections.abc import Callable
from functools import partial

import pytest

from service.errors import InvalidRequest, RequestError, Unavailable
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.call import Stream
from service.rpc.request_stream import RequestStream, StreamRequest
from tests.unit.rpc.recorded_stream import RecordedStream

MESSAGE = pb.ClassifyStreamRequest()
METHOD = Stream("/c.C/ClassifyStream", pb.ClassifyStreamRequest, lambda _: None, "bidi_stream")  # type: ignore[arg-type, return-value]


def refuses(
    error: RequestError, streams: list[RequestStream], message: pb.ClassifyStreamRequest, request: StreamRequest
) -> Callable[[], None]:
    for stream in streams:  # another thread begins to drain now
        stream.finish()
    raise error


@pytest.mark.parametrize("drains", [True, False])
@pytest.mark.parametrize("error", [Unavailable("the server is draining"), InvalidRequest("no items")])
def test_what_is_refused_for_the_drain_alone_stays_unanswered(drains: bool, error: RequestError) -> None:
    call, streams = RecordedStream(METHOD), list[RequestStream]()
    stream = RequestStream(call, partial(refuses, error, streams), lambda *_: b"an error")
    if drains:
        streams.append(stream)
    stream.on_message(MESSAGE)
    assert call.sent == ([] if drains and isinstance(error, Unavailable) else [b"an error"])
    assert not stream.pending
    assert (call.status is not None and call.status.name == "UNAVAILABLE") == drains, "the stream ends once nothing is unanswered"
