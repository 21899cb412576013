"""What a JSON text would become in memory, counted before Python makes objects of it."""

from service.errors import TooLarge
from service.requests.byte_budget import Holding

VALUE_BYTES = 48
"""A number with its place in a list, and in the array that it goes to."""

LIST_BYTES = 64
OBJECT_BYTES = 232
MEMBER_BYTES = 100
STRING_BYTES = 64

_WIDEST_CHARACTER = 4
"""Python stores a text with as many bytes a character as its widest character needs."""


def json_cost(text: bytes) -> int:
    """Bytes that the objects of a JSON text need, at most. Punctuation inside of strings counts too: it is an upper bound."""
    commas, lists, objects, members, quotes = map(text.count, (b",", b"[", b"{", b":", b'"'))
    values = commas + lists + objects + 1
    narrow = text.isascii() and b"\\u" not in text
    characters = 2 * len(text) * (1 if narrow else _WIDEST_CHARACTER)  # the text, and its strings
    strings = (quotes + 1) // 2 * STRING_BYTES
    return characters + strings + values * VALUE_BYTES + lists * LIST_BYTES + objects * OBJECT_BYTES + members * MEMBER_BYTES


def take_json(text: bytes, max_bytes: int, holding: Holding) -> None:
    """Takes what the objects of a JSON text need.

    Raises:
        TooLarge: the text has more than `max_bytes`, or its objects need more than there ever is.
        TooManyBytes: they need more than is left now.
    """
    if len(text) > max_bytes:
        raise TooLarge(
            f"the JSON has {len(text)} bytes; at most {max_bytes} are accepted (--max-json-bytes): send large tensors as binary "
            "data"
        )
    cost = json_cost(text)
    if len(text) + cost > holding.limit_bytes:  # the text is held too
        raise TooLarge(
            f"the JSON needs {len(text) + cost} bytes of memory; at most {holding.limit_bytes} are given (--max-inflight-bytes): "
            "send large tensors as binary data"
        )
    holding.take(cost)
