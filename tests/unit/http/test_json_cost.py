"""What JSON is counted to become, compared with what Python makes of it."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import TooLarge, TooManyBytes
from service.http.json_cost import json_cost, take_json
from service.requests.byte_budget import ByteBudget, Holding

PARSER_BYTES = 5000
"""The parser's own objects."""

WORST = {
    "numbers": [300 + number for number in range(20_000)],
    "floats": [number / 7 for number in range(20_000)],
    "zeros": [0] * 50_000,
    "empty lists": [[]] * 30_000,
    "lists of one": [[0]] * 30_000,
    "empty objects": [{}] * 30_000,
    "objects of one": [{"a": 0}] * 30_000,
    "members": {str(number): number for number in range(20_000)},
    "texts": [str(number) for number in range(20_000)],
    "one wide character": ["x" * 200_000 + "\N{PILE OF POO}"],
    "pixels": [[[0, 1, 2]] * 100] * 100,
}


def allocated(text: bytes) -> int:
    """Bytes that Python has allocated at the most while it parses a text."""
    tracemalloc.start()
    try:
        document = json.loads(text)
        del document
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", WORST)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_no_kind_of_json_needs_more_than_is_counted(kind: str, ascii_only: bool) -> None:
    text = json.dumps(WORST[kind], separators=(",", ":"), ensure_ascii=ascii_only).encode()
    assert allocated(text) <= json_cost(text) + PARSER_BYTES


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
DOCUMENTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=50)


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS)
def test_no_document_needs_more_than_is_counted(document: Any) -> None:
    text = json.dumps([document] * 20, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
    assert allocated(text) <= json_cost(text) + PARSER_BYTES


def test_json_is_taken_from_the_budget_and_refused_if_it_can_never_fit() -> None:
    budget = ByteBudget(100_000)
    text = json.dumps([0.5] * 500).encode()
    with Holding(budget) as holding:
        take_json(text, 10_000, holding)
        assert budget.in_flight_bytes == json_cost(text)
        with pytest.raises(TooLarge, match=r"at most 100 are accepted \(--max-json-bytes\): send large tensors as binary data"):
            take_json(text, 100, holding)
        with pytest.raises(TooLarge, match="--max-inflight-bytes"):
            take_json(b"[" * 5000, 10_000, holding)
        with pytest.raises(TooLarge, match="--max-inflight-bytes"), Holding(ByteBudget(json_cost(text) + len(text) - 1)) as small:
            take_json(text, 10_000, small)
        assert budget.take(100_000 - budget.in_flight_bytes - 10)
        with pytest.raises(TooManyBytes):
            take_json(text, 10_000, holding)
        holding.add(100_000 - json_cost(text) - 10)
    assert budget.in_flight_bytes == 0
