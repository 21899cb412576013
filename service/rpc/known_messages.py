"""Reads a message that differs from earlier ones in one field's bytes alone, such as the pixels, without parsing it.

Clients send the same message again and again, each time with another picture in it. Where a message has the length of one that was
parsed before, and the same bytes before and behind the place where that one had its content, it is that message with other content:
what protobuf makes of those bytes depends on nothing else. Where that place is, is not guessed: it is tried with other bytes.
"""

import os
from collections.abc import Callable
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

MIN_CONTENT_BYTES = 64
"""Shorter contents might be found by chance at another place of the message."""

MAX_AROUND_BYTES = 1024
"""A message with more around its content is not remembered: what is kept is bounded. Real clients send tens of bytes."""

MAX_KNOWN = 256
"""Lengths of messages that are remembered. Beyond them everything is forgotten, and learned again."""

MAX_ALIKE = 4
"""Messages of one length that are remembered, such as those to several models: of more, the latest."""

M = TypeVar("M", bound=Message)
T = TypeVar("T")  # hashable


_Known = tuple[bytes, bytes, int, int, T]
"""The bytes before and behind the content, where it starts and stops, and the facts."""


class KnownMessages(Generic[M, T]):
    """Messages of type M, of which one field is the content, and facts T about all that have the same bytes around it.

    For the transport's thread alone.
    """

    def __init__(self, message: type[M], content_of: Callable[[M], bytes], facts_of: Callable[[M], T | None]) -> None:
        """`facts_of` gives None for a message that is not to be learned; of others `content_of` gives the content."""
        self._message = message
        self._content_of = content_of
        self._facts_of = facts_of
        self._known: dict[int, tuple[_Known[T], ...]] = {}  # by length of the message
        self._seen: set[tuple[int, T]] = set()  # once, by length

    def find(self, payload: bytes) -> tuple[T, int, int] | None:
        """What is known of a message, and where its content starts and stops; None if it has to be parsed."""
        for head, tail, start, stop, facts in self._known.get(len(payload), ()):
            if payload.startswith(head) and payload.endswith(tail):
                return facts, start, stop
        return None

    def learn(self, payload: bytes, message: M) -> None:
        """Learns from a message that was parsed and is what it should be. The second of its kind is remembered, not the first."""
        facts = self._facts_of(message)
        if facts is None:
            return
        length = len(payload)
        if (length, facts) not in self._seen:
            if len(self._seen) >= MAX_KNOWN:
                self._seen.clear()
                self._known.clear()
            self._seen.add((length, facts))
            return
        content = self._content_of(message)
        size = len(content)
        start = payload.find(content)
        if size < MIN_CONTENT_BYTES or start < 0 or length - size > MAX_AROUND_BYTES:
            return
        head, tail = payload[:start], payload[start + size :]
        if self._is_content(head, tail, size, facts):
            known = head, tail, start, start + size, facts
            self._known[length] = (known, *self._known.get(length, ())[: MAX_ALIKE - 1])

    def _is_content(self, head: bytes, tail: bytes, size: int, facts: T) -> bool:
        """Whether what is between them is the content, whatever bytes it has.

        So many random bytes are at no other place of the message: if they are its content, that is where the content is.
        """
        other = os.urandom(size)
        try:
            message = self._message.FromString(head + other + tail)
        except DecodeError:
            return False
        return self._facts_of(message) == facts and self._content_of(message) == other
