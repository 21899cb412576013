"""The state of `classify_many`: whatever servers answer, and in whatever order, each image gets exactly one outcome."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.client import CallFailed, Classification, Outcome, Prediction, RequestTooLarge
from service.client.flow import BACKOFF_SECONDS, HELD_BYTES, Flow, check_arguments
from service.client.images import LargeFile
from service.client.in_flight import STREAM_BYTES, Limits, Stream
from service.client.packing import REQUEST_BYTES
from service.errors import ConvoyError, UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

LIMITS = Limits(512, 1024)
FULL = CallFailed("RESOURCE_EXHAUSTED", "the queue is full", "", 0.5)
LOADING = CallFailed("UNAVAILABLE", "the server is still loading its models", "", 1.0)


class Server:
    """What servers do, in one thread: it sees what is sent, and is told when to answer."""

    def __init__(self, streams: int = 1, *, ordered: bool = True, wait_seconds: float = 60.0, limits: Limits = LIMITS) -> None:
        self.flow = Flow(pb.ClassifyRequest(model="m", top_k=3), streams, ordered=ordered, wait_seconds=wait_seconds)
        self.now = 0.0
        self.unanswered: list[tuple[Stream, int, list[bytes]]] = []
        for stream in self.flow.streams:
            self.flow.begin(stream, limits)

    def add(self, *contents: bytes) -> "Server":
        for content in contents:
            self.flow.add(content, {"encoded": content})
        return self

    def send(self, stream: Stream | None = None) -> list[list[bytes]]:
        """All that may be sent now, on one stream or each; the contents of each request."""
        sent = []
        for each in self.flow.streams if stream is None else [stream]:
            while self.flow.can_send(each) and not self.flow.pause_seconds(each, self.now):
                place, request = each.placed, self.flow.next_message(each).request
                assert (request.model, request.top_k) == ("m", 3)
                sent.append([item.encoded for item in request.items])
                self.unanswered.append((each, place, sent[-1]))
        return sent

    def answer(self, at: int = 0, failed: CallFailed | None = None) -> None:
        """The request sent first, or another, is answered."""
        stream, place, contents = self.unanswered.pop(at)
        if failed is None:
            self.flow.answered(stream, place, [row(content) for content in contents])
        else:
            self.flow.refused(stream, place, failed, self.now)

    def break_stream(self, stream: Stream, failed: CallFailed, limits: Limits = LIMITS) -> None:
        self.unanswered = [each for each in self.unanswered if each[0] is not stream]
        self.flow.broken(stream, failed, self.now)
        self.flow.begin(stream, limits)

    def finish(self, bad: Iterable[bytes] = ()) -> list[Outcome]:
        """The source ends, and the servers answer all the rest: those that are bad with an error."""
        self.flow.end()
        found = []
        for _ in range(10_000):
            self.send()
            while self.unanswered:
                at_fault = next((i for i, each in enumerate(self.unanswered[0][2]) if each in bad), None)
                self.answer(0, None if at_fault is None else invalid(at_fault))
            self.now += 10
            found += self.flow.outcomes()
            if self.flow.finished():
                return found + self.flow.outcomes()
        raise AssertionError("it does not end")


def row(content: bytes) -> Classification:
    return Classification("m", "1", [[Prediction(content.decode(), 0, 1.0)]], {})


def invalid(item: int) -> CallFailed:
    return CallFailed("INVALID_ARGUMENT", f"item {item}: no picture", f"items[{item}].encoded")


def said(answer: Classification | ConvoyError) -> str:
    return answer.results[0][0].label if isinstance(answer, Classification) else str(answer)


def names(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def test_images_are_packed_as_the_window_grows_and_answered_one_by_one() -> None:
    server = Server().add(*names(300))
    assert [len(request) for request in server.send()] == [4] * 4, "of a window of 16"
    while server.unanswered:
        server.answer()
        server.send()
    found = server.finish()
    assert [(each.index, each.image, said(each.answer)) for each in found] == [
        (number, name, name.decode()) for number, name in enumerate(names(300))
    ]


def test_a_slow_source_is_sent_image_by_image_and_a_fast_one_in_full_requests() -> None:
    server = Server().add(b"0")
    assert server.send() == [[b"0"]]
    server.add(b"1", b"2")
    assert server.send() == [], "a full request is waited for while something is unanswered"
    server.add(b"3", b"4", b"5")
    assert server.send() == [[b"1", b"2", b"3", b"4"]]
    server.answer()
    server.answer()
    assert server.send() == [[b"5"]]
    server.add(b"6")
    assert server.send() == []
    server.flow.end()
    assert server.send() == [[b"6"]], "no more come"


def test_a_full_queue_is_waited_for_and_the_images_are_sent_first() -> None:
    server = Server().add(*names(200))
    sent = server.send()
    server.answer(1, FULL)
    assert server.send() == [], "not before the time that the server asks for"
    server.now += 0.5
    assert server.flow.streams[0].window.images == 8
    for _ in sent[1:]:
        server.answer()
    assert server.send()[:2] == [sent[1][:3], sent[1][3:]], "in smaller requests"
    assert [said(each.answer) for each in server.finish()] == [name.decode() for name in names(200)]


def test_another_stream_takes_what_one_has_no_room_for() -> None:
    server = Server(2).add(*names(4))
    first, second = server.flow.streams
    sent = server.send(first)
    assert server.send(second) == []
    server.answer(0, FULL)
    assert server.send(first) == []
    assert server.send(second) == sent


def test_half_of_the_queue_is_left_to_others() -> None:
    server = Server(limits=Limits(3, 20)).add(*names(100))
    for _ in range(200):
        server.send()
        in_flight = [request for _, _, request in server.unanswered]
        assert sum(map(len, in_flight)) <= 10
        assert max(map(len, in_flight), default=0) <= 3
        if in_flight:
            server.answer()
    assert len(server.finish()) == 100


def test_what_is_held_is_bounded() -> None:
    server = Server()
    taken = 0
    while server.flow.has_room():
        server.add(bytes(100_000))
        taken += 1
    assert taken * 100_000 <= HELD_BYTES + 100_000
    for request in server.send():
        assert sum(map(len, request)) <= REQUEST_BYTES
    for _ in range(30):
        server.answer()
        server.send()
        assert sum(len(image) for _, _, request in server.unanswered for image in request) <= STREAM_BYTES
    assert not server.flow.has_room(), "what is answered is the caller's, who has to take it"
    assert server.flow.outcomes()
    assert server.flow.has_room()
    endless = Server()
    while endless.flow.has_room():
        endless.add(b"")
    assert endless.flow._taken < 3000


def test_an_image_larger_than_everything_is_sent_alone() -> None:
    server = Server().add(b"0", bytes(STREAM_BYTES + 1), b"1")
    assert [len(request) for request in server.send()] == [1, 1]
    assert [each.index for each in server.finish()] == [0, 1, 2]


def test_files_are_read_as_there_is_room_and_those_that_cannot_be_are_outcomes() -> None:
    flow = Server().flow
    for name in ("a", "b"):
        flow.add(name, None)
    assert flow.can_read()
    inputs = flow.to_read()
    assert [each.image for each in inputs] == ["a", "b"]
    flow.add("c", None)
    flow.read(inputs, [UserError("a: none"), {"encoded": bytes(HELD_BYTES)}])
    assert not flow.can_read(), "until what is read is answered"
    assert [(each.image, said(each.answer)) for each in flow.outcomes()] == [("a", "a: none")]
    stream = flow.streams[0]
    flow.next_message(stream)
    flow.answered(stream, 0, [row(b"b")])
    assert flow.can_read()
    flow.read(flow.to_read(), [UserError("c: none")])
    flow.end()
    assert flow.finished()
    assert flow.can_read()
    assert flow.to_read() == []


def test_large_files_are_read_one_by_one_as_there_is_room_for_their_bytes() -> None:
    flow = Server().flow
    for name in "abcdefghij":
        flow.add(name, None)
    first = flow.to_read()
    assert [each.image for each in first] == list("abcdefgh")
    flow.read(first, [{"encoded": b"a"}, LargeFile(HELD_BYTES), {"encoded": b"c"}, LargeFile(HELD_BYTES // 2)])
    second = flow.to_read()
    assert [each.image for each in second] == ["b"], "those before them are read before them"
    assert not flow.can_read(), "while it is read"
    flow.read(second, [{"encoded": bytes(HELD_BYTES)}])
    assert not flow.can_read(), "and until it is answered"
    flow.end()
    stream = flow.streams[0]
    for place in range(3):
        contents = [item.encoded for item in flow.next_message(stream).request.items]
        flow.answered(stream, place, [row(b"x") for _ in contents])
        if len(contents[-1]) > 1:
            break
    assert flow.can_read()
    assert [[each.image for each in flow.to_read()] for _ in range(2)] == [["d"], list("efghij")]


def test_a_source_of_pil_images_is_taken_by_the_bytes_of_their_pixels() -> None:
    flow = Server().flow
    image: Any = Image.new("RGB", (1000, 1000))
    taken = 0
    while flow.has_room():
        if taken % 2:
            flow.add(image, {"encoded": b"a"})
        else:
            flow.unreadable(image, UserError("broken"))
        taken += 1
    assert taken == -(-HELD_BYTES // 4_000_000)
    flow.end()
    stream = flow.streams[0]
    while not flow.finished():
        place = stream.placed
        flow.answered(stream, place, [row(b"a") for _ in flow.next_message(stream).request.items])
    assert len(flow.outcomes()) == taken
    assert (flow._held_bytes, flow._unanswered_bytes) == (0, 0)


@pytest.mark.parametrize("ordered", [True, False])
def test_outcomes_come_in_order_or_as_they_are_ready(ordered: bool) -> None:
    server = Server(ordered=ordered).add(*names(20))
    server.send()
    server.answer(1)
    assert server.flow.has_outcomes() is not ordered
    server.answer(0)
    expected = list(range(8)) if ordered else [4, 5, 6, 7, 0, 1, 2, 3]
    assert [each.index for each in server.flow.outcomes()] == expected


@pytest.mark.parametrize("bad", [[3], [0, 1, 2, 3], [1, 2, 40, 63]])
def test_the_images_at_fault_alone_get_the_error(bad: list[int]) -> None:
    server = Server().add(*names(64))
    answers = [said(each.answer) for each in server.finish([str(number).encode() for number in bad])]
    assert answers == ["INVALID_ARGUMENT: item 0: no picture" if number in bad else str(number) for number in range(64)]


@pytest.mark.parametrize(
    "failed",
    [
        CallFailed("INTERNAL", "the model failed"),
        CallFailed("DEADLINE_EXCEEDED", "late"),
        CallFailed("RESOURCE_EXHAUSTED", "too much memory"),
        CallFailed("INVALID_ARGUMENT", "too many", "items"),
        RequestTooLarge(2000, 1000),
    ],
)
def test_a_request_that_fails_as_a_whole_is_halved(failed: CallFailed) -> None:
    server = Server().add(*names(4))
    server.flow.end()
    requests = []
    while not server.flow.finished():
        requests += server.send()
        server.answer(0, failed if b"2" in server.unanswered[0][2] else None)
    assert [b"2"] in requests
    assert [said(each.answer) for each in server.flow.outcomes()] == ["0", "1", str(failed), "3"]


def test_a_request_that_breaks_the_stream_by_its_size_is_halved_and_the_others_are_sent_again() -> None:
    server = Server().add(*names(6))
    server.flow.end()
    stream = server.flow.streams[0]
    server.send()
    message = server.flow._packing.message(stream.in_flight[0].inputs)
    server.break_stream(stream, RequestTooLarge(message.ByteSize(), 10_000))
    assert server.send() == [[b"0", b"1"], [b"2", b"3"], [b"4", b"5"]]
    assert not server.flow.pause_seconds(stream, server.now)
    assert server.flow._packing.request_bytes == 7_500
    assert len(server.finish()) == 6


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
def test_what_a_stream_that_breaks_leaves_is_sent_again_in_order(code: str) -> None:
    server = Server().add(*names(16))
    sent = server.send()
    server.answer(1)
    server.break_stream(server.flow.streams[0], CallFailed(code, "broken"))
    assert server.send() == [sent[0], sent[2], sent[3]]
    assert len(server.finish()) == 16


@pytest.mark.parametrize("streams", [1, 3])
def test_an_image_that_kills_its_server_alone_gets_the_error(streams: int) -> None:
    server = Server(streams, wait_seconds=30).add(*names(200))
    server.flow.end()
    deadly = {b"0", b"77"}
    kills = 0
    for _ in range(10_000):
        server.send()
        if server.flow.over():
            break
        if deadly.intersection(image for _, _, request in server.unanswered for image in request):
            kills += 1
            for stream in server.flow.streams:
                server.break_stream(stream, CallFailed("UNAVAILABLE", "Socket closed"))
            server.now += 5
        elif server.unanswered:
            server.answer()
        else:
            server.now += 1
    assert kills < 30
    lost = "UNAVAILABLE: the server was lost 3 times when it had this image alone: Socket closed"
    answers = [said(each.answer) for each in server.flow.outcomes()]
    assert answers == [lost if name in deadly else name.decode() for name in names(200)]


def test_what_may_kill_a_server_is_sent_when_nothing_else_is_in_flight() -> None:
    server = Server(2).add(*names(8))
    first, second = server.flow.streams
    for _ in range(3):
        assert [b"0", b"1", b"2", b"3"] in server.send(first)
        server.break_stream(first, CallFailed("CANCELLED", "broken"))
        server.now += 2
    assert len(server.send(first)) == 1
    assert server.send(second) == []
    server.answer()
    assert len(server.send()) == 1


def test_an_image_is_not_at_fault_when_the_server_says_when_to_come_back() -> None:
    server = Server().add(b"0")
    for _ in range(20):
        server.send()
        server.break_stream(server.flow.streams[0], LOADING)
        server.now += 1
    assert [said(each.answer) for each in server.finish()] == ["0"]


def test_an_image_that_no_request_can_hold_gets_the_error() -> None:
    server = Server().add(b"0", b"1")
    told = server.flow.add(b"large", {"encoded": bytes(2**31 - 20)})  # pages that nobody touches take no memory
    assert told, "it is answered, and somebody may wait for outcomes"
    server.flow.add("file", None)
    server.flow.read(server.flow.to_read(), [{"encoded": bytes(2**31 - 1)}])
    answers = [said(each.answer) for each in server.finish()]
    assert answers[:2] == ["0", "1"]
    assert all(answer.endswith("a request holds at most 2147483647") for answer in answers[2:])
    assert server.flow._held_bytes == 0


def test_a_server_that_loads_is_waited_for_and_given_up() -> None:
    server = Server(wait_seconds=30).add(b"0")
    server.send()
    server.answer(0, LOADING)
    assert server.send() == []
    server.now += 1
    assert server.send() == [[b"0"]]
    server.now = 29
    server.answer(0, LOADING)
    assert not server.flow.over()
    assert server.flow.pause_seconds(server.flow.streams[0], server.now) == 1, "not longer than it waits at all"
    server.now = 30
    server.send()
    server.answer(0, LOADING)
    assert server.flow.has_outcomes()
    with pytest.raises(CallFailed, match="still loading"):
        server.flow.outcomes()


def test_a_server_that_is_away_is_not_given_up_while_another_answers() -> None:
    server = Server(2, wait_seconds=10).add(*names(8))
    away, there = server.flow.streams
    for _ in range(100):
        server.break_stream(away, LOADING)
        server.now += 1
    assert not server.flow.over()
    server.send(there)
    server.answer()
    server.break_stream(there, LOADING)
    assert not server.flow.over(), "only as long since the last answer"
    server.break_stream(there, LOADING)
    server.now += 10
    server.break_stream(away, LOADING)
    assert server.flow.over()
    pauses = []
    alone = Server()
    for _ in range(len(BACKOFF_SECONDS) + 1):
        alone.break_stream(alone.flow.streams[0], CallFailed("UNAVAILABLE", "away"))
        pauses.append(alone.flow.pause_seconds(alone.flow.streams[0], alone.now))
        alone.now += pauses[-1]
    assert pauses == pytest.approx([*BACKOFF_SECONDS, BACKOFF_SECONDS[-1]])


def test_only_time_with_something_to_send_counts_towards_giving_up() -> None:
    server = Server(2, wait_seconds=60).add(b"0")
    first, second = server.flow.streams
    server.send(first)
    server.answer()
    for server.now in (100, 1000):  # servers close connections that are idle
        for stream in server.flow.streams:
            server.break_stream(stream, CallFailed("UNAVAILABLE", "idle"))
    assert not server.flow.over()
    server.now = 2000
    server.add(b"1")
    server.break_stream(first, LOADING)
    server.break_stream(second, LOADING)
    assert not server.flow.over()
    assert server.flow.answer_seconds(2010) == 50
    assert server.flow.answer_seconds(2070) == 1
    server.now = 2060
    server.break_stream(first, LOADING)
    assert server.flow.over()


@pytest.mark.parametrize(
    "failed",
    [
        CallFailed("NOT_FOUND", "no such model"),
        CallFailed("UNAUTHENTICATED", "who?"),
        CallFailed("PERMISSION_DENIED", "no"),
        CallFailed("INVALID_ARGUMENT", "99 is no priority", "priority"),
        CallFailed("INVALID_ARGUMENT", "the model takes no pictures", "items[0].encoded"),
    ],
)
def test_what_concerns_all_images_ends_everything(failed: CallFailed) -> None:
    for breaks in (False, True):
        server = Server().add(*names(5))
        server.send()
        if breaks:
            server.flow.broken(server.flow.streams[0], failed, 0.0)
        else:
            server.answer(0, failed)
        assert server.flow.over()
        with pytest.raises(CallFailed) as raised:
            server.flow.outcomes()
        assert raised.value is failed


def test_a_token_that_expires_is_asked_for_again() -> None:
    server = Server().add(*names(12))
    server.send()
    server.answer()
    server.break_stream(server.flow.streams[0], CallFailed("UNAUTHENTICATED", "expired"))
    assert not server.flow.over()
    server.break_stream(server.flow.streams[0], CallFailed("UNAUTHENTICATED", "expired"))
    assert server.flow.over()


def test_a_token_that_is_refused_after_it_has_expired_ends_everything() -> None:
    server = Server().add(*names(12))
    server.send()
    server.answer()
    expired = CallFailed("UNAUTHENTICATED", "expired")
    stream = server.flow.streams[0]
    server.flow.broken(stream, expired, server.now)
    assert not server.flow.over()
    server.flow.broken(stream, expired, server.now)  # no RPC has begun: the server was asked for its limits
    assert server.flow.outcomes()
    with pytest.raises(CallFailed, match="expired"):
        server.flow.outcomes()


def test_requests_that_an_expired_token_has_refused_are_sent_again_on_another_stream() -> None:
    server = Server().add(*names(16))
    expired = CallFailed("UNAUTHENTICATED", "expired")
    sent = server.send()
    stream = server.flow.streams[0]
    rpc = stream.rpc
    server.answer()
    for _ in sent[1:]:
        server.answer(0, expired)
    assert not server.flow.over()
    assert server.flow.ended(stream, rpc), "which sends the same token"
    server.break_stream(stream, CallFailed("UNAVAILABLE", "the server ended the stream"))
    assert sorted(server.send()) == sorted(sent[1:])
    server.answer(0, expired)
    assert server.flow.over(), "the next token is refused too"


@pytest.mark.parametrize("how", ["age", "token"])
def test_a_stream_that_ends_after_answers_gets_a_successor_even_if_nobody_wants_to_wait(how: str) -> None:
    server = Server(wait_seconds=0).add(*names(200))
    stream = server.flow.streams[0]
    ended = CallFailed("UNAVAILABLE", "the server ended the stream")
    for _ in range(3):
        server.send()
        server.answer()
        if how == "token":
            server.answer(0, CallFailed("UNAUTHENTICATED", "expired"))
        server.break_stream(stream, ended)
        assert not server.flow.over()
        assert not server.flow.pause_seconds(stream, server.now)
    server.send()
    server.break_stream(stream, ended)
    assert server.flow.over(), "the successor had no answer"


def test_a_server_that_is_away_from_the_beginning_is_given_up_at_once_if_nobody_wants_to_wait() -> None:
    server = Server(wait_seconds=0).add(b"0")
    server.flow.broken(server.flow.streams[0], CallFailed("UNAVAILABLE", "refused"), 0.0)
    assert server.flow.over()


def test_a_source_that_raises_is_answered_up_to_there() -> None:
    server = Server().add(*names(5))
    server.flow.end(KeyError("source"))
    server.send()
    server.answer()
    assert len(server.flow.outcomes()) == 4
    server.send()
    server.answer()
    assert len(server.flow.outcomes()) == 1
    with pytest.raises(KeyError, match="source"):
        server.flow.outcomes()


@pytest.mark.parametrize("wrong", [-1, float("nan"), "60", None])
def test_an_invalid_time_to_wait_is_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match="invalid value for wait_seconds"):
        check_arguments([], Iterable, wrong)


WHAT = ["add", "answer", "full", "loading", "internal", "late", "break", "crash", "take", "wait"]
EVENTS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 63)), max_size=80)


@settings(max_examples=150)
@given(EVENTS, st.integers(1, 3), st.booleans(), st.integers(1, 40), st.sets(st.integers(0, 40), max_size=6))
def test_each_image_gets_exactly_one_outcome(
    events: list[tuple[str, int]], streams: int, ordered: bool, queue: int, bad: set[int]
) -> None:
    server = Server(streams, ordered=ordered, limits=Limits(8, queue))
    added, found = 0, list[Outcome]()
    for event, number in events:
        if event == "add":
            for _ in range(number % 8):
                server.add(str(added).encode())
                added += 1
        elif event == "take":
            found += server.flow.outcomes()
        elif event == "wait":
            server.now += number / 10
        elif event == "break":
            server.break_stream(server.flow.streams[number % streams], LOADING, Limits(8, queue))
        elif event == "crash":
            for stream in server.flow.streams:
                server.break_stream(stream, CallFailed("UNAVAILABLE", "Socket closed"), Limits(8, queue))
        elif server.unanswered:
            at = number % len(server.unanswered)
            several = len(server.unanswered[at][2]) > 1  # alone it would get the error
            server.answer(at, {
                "full": FULL, "loading": LOADING,
                "internal": CallFailed("INTERNAL", "it failed") if several else None,
                "late": CallFailed("DEADLINE_EXCEEDED", "late") if several else None,
            }.get(event))  # fmt: skip
        server.send()
    answered = {each.index for each in found} | set(server.flow._done)
    at_fault = {number for number in bad if number < added and number not in answered}
    found += server.finish({str(number).encode() for number in at_fault})
    indices = [each.index for each in found]
    assert (indices if ordered else sorted(indices)) == list(range(added))
    for each in found:
        if "lost 3 times" in said(each.answer):
            assert sum(event == "crash" for event, _ in events) >= 3
            continue
        assert said(each.answer) == ("INVALID_ARGUMENT: item 0: no picture" if each.index in at_fault else str(each.index))
    assert (server.flow._held, server.flow._held_bytes, server.flow._unanswered_bytes) == (0, 0, 0)
    assert server.flow._packing.waiting_bytes == 0
