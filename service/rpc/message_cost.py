"""What a protobuf message would become in memory, counted from its tags and lengths before it is parsed.

protobuf makes an object of each submessage, of two bytes if it is empty: 16 MiB of them become 400 MB, and lists of small numbers
eight times their size. The walk here looks at tags and lengths alone, skips contents, and stops at a number of fields that no legal
request reaches. It is of use for large messages: what LARGE_MESSAGE_BYTES can become is small.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from service.errors import InvalidRequest

LARGE_MESSAGE_BYTES = 64 * 1024
"""A message of so many bytes is counted before it is parsed."""

MAX_FIELDS = 16 * 1024
"""Fields and submessages in a large message, beside those of its items: outputs, parameters, dimensions."""


def default_max_fields() -> int:
    """For methods whose requests have no items."""
    return MAX_FIELDS


FIELD_BYTES = 200
"""Memory for a field, at most: a submessage, its Python object and its place in a list."""

ELEMENT_BYTES = 8
"""Memory for an element of a packed list of numbers, at most: a number may have one byte in the message and 64 bits in memory."""

_MAX_VARINT_BYTES = 10
_FIXED_BYTES = {1: 8, 5: 4}
"""By wire type: the bytes of a 64-bit and of a 32-bit value."""

Layout = Mapping[int, "Layout | int"]
"""By field number: the layout of a submessage, or the fewest bytes of an element of a packed list. Other fields are not in it."""


def max_fields(items: int) -> int:
    """Fields in a large request of at most so many items, each of up to four fields."""
    return MAX_FIELDS + 4 * items


class Cost(NamedTuple):
    """Fields and submessages that the walk came across, and elements of packed lists, at most."""

    fields: int
    elements: int

    @property
    def overhead_bytes(self) -> int:
        """Memory that the parsed message needs beside the bytes of its contents, at most."""
        return self.fields * FIELD_BYTES + self.elements * ELEMENT_BYTES


def layout_of(message: Any) -> Layout:
    """The layout of a type of message, from its descriptor."""
    layout: dict[int, Layout | int] = {}
    for field in message.fields:
        if field.message_type is not None:
            layout[field.number] = layout_of(field.message_type)
        elif field.is_repeated and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            layout[field.number] = _ELEMENT_BYTES.get(field.type, 1)
    return layout


_ELEMENT_BYTES = {
    FieldDescriptor.TYPE_FLOAT: 4, FieldDescriptor.TYPE_FIXED32: 4, FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_DOUBLE: 8, FieldDescriptor.TYPE_FIXED64: 8, FieldDescriptor.TYPE_SFIXED64: 8,
}  # fmt: skip


def count(message: bytes, layout: Layout, max_fields: int) -> Cost:
    """Counts what is in a serialised message.

    Raises:
        DecodeError: it is malformed, or holds groups, which no message here has.
        InvalidRequest: it has more than `max_fields` fields.
    """
    try:
        fields, elements = _walk(message, 0, len(message), layout, max_fields)
    except IndexError:
        raise DecodeError("truncated") from None
    return Cost(fields, elements)


def _walk(message: bytes, at: int, end: int, layout: Layout, left: int) -> tuple[int, int]:
    """Counts in message[at:end], of which at most `left` fields are accepted."""
    fields = elements = 0
    while at < end:
        fields += 1
        if fields > left:
            raise InvalidRequest("the message has more fields than any request that is accepted")
        tag, at = _varint(message, at)
        wire_type = tag & 7
        if wire_type == 2:
            length, at = _varint(message, at)
            start, at = at, at + length
            inside = layout.get(tag >> 3)
            if isinstance(inside, int):
                elements += length // inside
            elif inside is not None and at <= end:
                more = _walk(message, start, at, inside, left - fields)
                fields += more[0]
                elements += more[1]
        elif wire_type == 0:
            _, at = _varint(message, at)
        elif wire_type in _FIXED_BYTES:
            at += _FIXED_BYTES[wire_type]
        else:
            raise DecodeError("a group, or an unknown wire type")
    if at != end:
        raise DecodeError("a field ends behind its message")
    return fields, elements


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    byte = message[at]
    if byte < 128:
        return byte, at + 1
    number = shift = 0
    for place in range(at, at + _MAX_VARINT_BYTES):
        byte = message[place]
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place + 1
        shift += 7
    raise DecodeError("a number of more than ten bytes")
