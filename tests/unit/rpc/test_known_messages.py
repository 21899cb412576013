"""Messages that are read without being parsed: only those that differ from an earlier one in their content alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.known_messages import MAX_ALIKE, MAX_KNOWN, MIN_CONTENT_BYTES, KnownMessages

Known = KnownMessages[pb.ClassifyRequest, tuple[str, int]]

SIZE = 100


def pixels_of(request: pb.ClassifyRequest) -> bytes:
    return request.items[0].pixels


def facts_of(request: pb.ClassifyRequest) -> tuple[str, int] | None:
    return (request.model, request.top_k) if len(request.items) == 1 and not request.id else None


def message(pixels: bytes, model: str = "m", top_k: int = 3, request_id: str = "") -> bytes:
    return pb.ClassifyRequest(model=model, top_k=top_k, items=[pb.Item(pixels=pixels)], id=request_id).SerializeToString()


def learn(known: Known, payload: bytes, times: int = 2) -> None:
    for _ in range(times):
        known.learn(payload, pb.ClassifyRequest.FromString(payload))


@pytest.fixture
def known() -> Known:
    return KnownMessages(pb.ClassifyRequest, pixels_of, facts_of)


CONTENTS = st.binary(min_size=SIZE, max_size=SIZE) | st.sampled_from([bytes(SIZE), b"\x12\x64" * 50, b"m" * SIZE])


@given(CONTENTS, CONTENTS, st.text(min_size=1, max_size=70))
def test_other_content_is_found_as_protobuf_finds_it(first: bytes, other: bytes, model: str) -> None:
    known: Known = KnownMessages(pb.ClassifyRequest, pixels_of, facts_of)
    learn(known, message(first, model))
    payload = message(other, model)
    found = known.find(payload)
    if found is not None:
        facts, start, stop = found
        assert (facts, payload[start:stop]) == ((model, 3), other)
    else:  # the content that it was learned from is at another place of the message, too
        learned = message(first, model)
        assert learned.find(first) < learned.rfind(first)


def test_a_message_is_learned_when_it_comes_again(known: Known) -> None:
    payload = message(np.random.default_rng(0).bytes(SIZE))
    learn(known, payload, 1)
    assert known.find(payload) is None
    learn(known, payload, 1)
    assert known.find(payload) is not None


@pytest.mark.parametrize(
    "other",
    [
        message(bytes(SIZE), model="n"), message(bytes(SIZE), top_k=4), message(bytes(SIZE + 1)),
        message(bytes(SIZE), request_id="1"), message(bytes(SIZE - 3), request_id="1"), b"",
    ],
)  # fmt: skip
def test_a_message_that_differs_in_anything_else_is_parsed(known: Known, other: bytes) -> None:
    learn(known, message(np.random.default_rng(0).bytes(SIZE)))
    assert known.find(other) is None


def test_two_models_whose_messages_are_of_one_length_are_both_known(known: Known) -> None:
    for model in ("a", "b"):
        learn(known, message(np.random.default_rng(0).bytes(SIZE), model))
    for model in ("a", "b"):
        found = known.find(message(bytes(SIZE), model))
        assert found is not None
        assert found[0] == (model, 3)


def test_what_is_not_to_be_learned_is_not(known: Known) -> None:
    for payload in (message(bytes(SIZE), request_id="1"), message(bytes(range(MIN_CONTENT_BYTES - 1)))):
        learn(known, payload, 3)
        assert known.find(payload) is None


def test_what_has_much_beside_its_content_is_not_remembered(known: Known) -> None:
    pixels = np.random.default_rng(0).bytes(SIZE)
    unknown_field = b"\xba\x3e"  # of number 999, as are those of a newer client
    little, much = (message(pixels) + unknown_field + bytes([0x80 | size & 127, size >> 7]) + bytes(size) for size in (900, 1100))
    learn(known, little)
    learn(known, much)
    assert known.find(little) is not None
    assert known.find(much) is None


def test_however_many_kinds_there_are_few_are_remembered(known: Known) -> None:
    for size in range(MIN_CONTENT_BYTES, MIN_CONTENT_BYTES + 3 * MAX_KNOWN):
        learn(known, message(np.random.default_rng(0).bytes(size)))
    assert len(known._known) <= MAX_KNOWN
    assert len(known._seen) <= MAX_KNOWN
    for top_k in range(3 * MAX_ALIKE):
        learn(known, message(np.random.default_rng(0).bytes(SIZE), top_k=top_k + 1))
    assert [len(alike) for alike in known._known.values() if len(alike) > 1] == [MAX_ALIKE]
