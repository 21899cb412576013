"""The fields of an ONNX file are counted before protobuf makes objects of them."""

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import InvalidModel
from service.model import onnx_messages
from service.model.onnx_messages import _count, check_fields, parse_model

MANY = 300


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def field(*path: int, content: bytes) -> bytes:
    """Fields of bytes, one in the other."""
    for number in reversed(path):
        content = varint(number << 3 | 2) + varint(len(content)) + content
    return content


TENSOR = (7, 5)
ATTRIBUTE = (7, 1, 5)

AMPLIFIED = {
    "nodes": field(7, content=field(1, content=b"") * MANY),
    "attributes of small nodes": field(7, content=field(1, content=field(5, content=b"") * 10) * (MANY // 10)),
    "attributes in functions": field(25, 7, content=field(5, content=b"") * MANY),
    "graphs in attributes": field(*ATTRIBUTE, content=field(11, content=b"") * MANY),
    "sparse tensors": field(*ATTRIBUTE, content=field(23, content=field(1, content=b"")) * MANY),
    "places of data": field(*TENSOR, content=field(13, content=b"") * MANY),
    "sides, packed": field(*TENSOR, 1, content=bytes(MANY)),
    "sides, one by one": field(*TENSOR, content=b"\x08\x00" * MANY),
    "dimensions": field(7, 11, 2, 1, 2, content=field(1, content=b"") * MANY),
    "graphs": field(7, content=b"") * MANY,
    "metadata": field(14, content=b"") * MANY,
}


@pytest.mark.parametrize("kind", AMPLIFIED)
def test_what_becomes_large_in_memory_is_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = AMPLIFIED[kind]
    parse_model(content)
    check_fields(content)
    monkeypatch.setattr(onnx_messages, "MAX_FIELDS", MANY - 1)
    with pytest.raises(InvalidModel, match=f"more than {MANY - 1} fields"):
        check_fields(content)


def test_the_numbers_of_a_large_forest_of_trees_are_no_fields() -> None:
    numbers = b"".join(b"\x40" + varint(number) for number in range(1000)) * 600
    floats = (b"\x3d" + struct.pack("<f", 0.5)) * 600_000
    for content in (field(*ATTRIBUTE, content=numbers), field(*ATTRIBUTE, content=floats)):
        assert len(content) > onnx_messages.MAX_FIELDS
        check_fields(content)


def objects(message: Any) -> int:
    """What protobuf has made of a message: submessages and numbers in lists."""
    found = 1
    for each, value in message.ListFields():
        parts = value if each.is_repeated else (value,)
        found += sum(objects(part) if each.message_type else 1 for part in parts)
    return found


numbers = st.sampled_from([1, 2, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 22, 25])
scalars = st.builds(lambda number, value: varint(number << 3) + varint(value), numbers, st.integers(0, 2**64 - 1))
messages = st.recursive(
    st.binary(max_size=4) | scalars,
    lambda inner: st.lists(st.builds(lambda number, content: field(number, content=content), numbers, inner) | scalars).map(
        b"".join
    ),
)


@given(messages)
@example(b"\xba\x80\x80\x80\x00\x02\x0a\x00")  # a tag with more bytes than it needs
@example(b"\xba\x80\x80\x80\x80\x01\x02\x0a\x00")  # and one of more than 32 bits
def test_protobuf_makes_no_more_of_a_file_than_is_counted(content: bytes) -> None:
    try:
        made = objects(parse_model(content))
    except InvalidModel:
        return
    with contextlib.suppress(InvalidModel, IndexError):  # refused, which is also well
        assert _count(content, 0, len(content), "Model", 0, 1) + 1 >= made
