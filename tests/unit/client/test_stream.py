"""The state of a client's stream: what is sent again, and when it gives up."""

import grpc
import pytest

from service.client import CallFailed
from service.client.messages import call_failed, classify_request
from service.client.stream import BACKOFF_SECONDS, Window
from service.errors import UserError


def broken(code: str, details: str) -> CallFailed:
    return call_failed(grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), details=details))


UNAVAILABLE = broken("UNAVAILABLE", "draining")


def window(*sizes: int, in_flight: int = 8) -> Window:
    """With a request for each size of its image in bytes, and an RPC that has sent none of them."""
    found = Window(in_flight)
    for size in sizes:
        found.add(classify_request([bytes(size)]))
    found.begin()
    return found


def sent(window: Window, rpc: int) -> list[str]:
    ids = []
    while (message := window.next_message(rpc)) is not None:
        ids.append(message.request.id)
    return ids


def test_a_new_rpc_begins_with_what_is_unanswered_in_order() -> None:
    stream = window(1, 1, 1)
    assert sent(stream, 1) == ["0", "1", "2"]
    assert stream.remove(1)
    assert not stream.remove(1), "both servers have answered it"
    assert stream.begin() == 2
    stream.add(classify_request([b"new"]))
    assert stream.next_message(1) is None, "a broken RPC sends nothing more"
    assert sent(stream, 2) == ["0", "2", "3"]


def test_a_window_is_bounded() -> None:
    stream = window(1, 1, in_flight=2)
    assert not stream.has_room()
    stream.remove(0)
    assert stream.has_room()
    stream.add(classify_request([b""]))
    stream.closed = True
    assert stream.has_room(), "nobody waits for room once it is closed"
    for wrong in (0, -1, "4", 1.5, None):
        with pytest.raises(UserError, match=f"invalid value for in_flight: {wrong!r}"):
            Window(wrong)  # type: ignore[arg-type]


def test_an_rpc_waits_for_requests_and_ends_with_them() -> None:
    stream = window(1)
    assert stream.can_send(1)
    assert sent(stream, 1) == ["0"]
    assert not stream.can_send(1)
    stream.exhausted = True
    assert stream.can_send(1)
    assert stream.next_message(1) is None
    assert window().can_send(0), "an RPC before the current one has to stop"


def test_rpcs_without_an_answer_are_given_up() -> None:
    stream = window(1, 1)
    assert [stream.backoff_seconds(UNAVAILABLE) for _ in BACKOFF_SECONDS] == list(BACKOFF_SECONDS)
    with pytest.raises(CallFailed, match="UNAVAILABLE: draining"):
        stream.backoff_seconds(UNAVAILABLE)
    stream.remove(0)
    assert stream.backoff_seconds(broken("CANCELLED", "stopping")) == 0.0, "an answer begins the count anew"
    with pytest.raises(CallFailed, match="INTERNAL: a defect"):
        stream.backoff_seconds(broken("INTERNAL", "a defect"))
    stream.remove(1)
    assert stream.backoff_seconds(broken("INTERNAL", "a defect")) == 0.0, "nothing was lost"


def test_the_request_that_is_too_large_is_found_by_its_size() -> None:
    stream = window(10, 5000, 10)
    message = stream.next_message(1), stream.next_message(1)
    size = message[1].ByteSize() if message[1] is not None else 0
    assert stream.too_large(broken("RESOURCE_EXHAUSTED", f"Received message larger than max ({size} vs. 4096)")) == 1
    assert stream.too_large(broken("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)")) is None
    assert stream.too_large(UNAVAILABLE) is None


def test_where_grpc_loses_the_status_the_largest_request_is_suspect() -> None:
    stream = window(10, 5000, 10)
    lost = broken("INTERNAL", "Internal error from Core")
    suspect = stream.suspect(lost)
    assert suspect is not None
    assert suspect.id == "1"
    assert stream.suspect(UNAVAILABLE) is None
    assert window().suspect(lost) is None


def test_a_stream_that_ends_early_is_an_error() -> None:
    stream = window(1, 1)
    with pytest.raises(CallFailed, match="INTERNAL: the server ended the stream with 2 requests unanswered"):
        stream.check_complete()
    stream.error = UserError("no such file")
    with pytest.raises(UserError, match="no such file"):
        stream.check_complete()
    window().check_complete()
