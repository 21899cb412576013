"""The batching policy, without threads, I/O or a clock of its own.

The rules:
- A request of n items waits as one entry. It may be taken in several parts, for several batches, and it may share a batch.
- Order: priority (1 first), then turn, then arrival. The turn of an entry is its deadline, unless it was given an earlier one.
- The bound counts items that wait and room that is reserved, exactly. An entry that does not fit whole is not taken in.
- An entry whose deadline has passed, or whose client has left, is out of the queue from that call on: it costs no inference
  and holds no room. Parts of it already taken are the taker's business.

Times are seconds on whatever clock the caller uses; there is no other here, so tests make one up. The waiting entries are kept
in sorted lists: at the sizes that the bound allows, moving a few pointers beats the book-keeping that a heap needs for removal.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar


class Entry:
    """A request as the queue sees it. `deadline` and `turn` are in seconds on the caller's clock, infinite if there is none."""

    __slots__ = ("deadline", "items", "order", "priority", "taken", "turn")

    def __init__(self, items: int, priority: int = 1, deadline: float = math.inf) -> None:
        self.items = items
        self.priority = priority
        self.deadline = self.turn = deadline
        self.taken = 0
        self.order = 0


E = TypeVar("E", bound=Entry)


class Part(NamedTuple, Generic[E]):
    """The items `start` to `stop` of an entry: what one entry gives to one batch."""

    entry: E
    start: int
    stop: int


class BatchQueue(Generic[E]):
    """Entries that wait, at most `max_items` items of them. Not safe for threads: the caller holds a lock."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self.items = 0
        self.reserved = 0
        self._arrivals = 0
        self._waiting: list[tuple[int, float, int, E]] = []  # sorted by priority, turn, arrival; arrival is unique
        self._deadlines: list[tuple[float, int, E]] = []  # those that have a deadline, sorted by it

    def reserve(self, items: int) -> bool:
        """Keeps room for items that are to come, such as images that are being decoded; False if there is none."""
        if self.items + self.reserved + items > self.max_items:
            return False
        self.reserved += items
        return True

    def release(self, items: int) -> None:
        """Gives back room that was reserved."""
        self.reserved -= items

    def push(self, entry: E) -> bool:
        """Takes an entry in; False, and nothing changed, if its items do not fit."""
        if self.items + self.reserved + entry.items > self.max_items:
            return False
        self._arrivals += 1
        entry.order = self._arrivals
        insort(self._waiting, (entry.priority, entry.turn, entry.order, entry))
        if entry.deadline != math.inf:
            insort(self._deadlines, (entry.deadline, entry.order, entry))
        self.items += entry.items
        return True

    def take(self, max_items: int) -> list[Part[E]]:
        """The next batch: parts of at most `max_items` items in all, in order; empty if nothing waits.

        Call `expire` first: an entry is not looked at for its deadline here.
        """
        parts: list[Part[E]] = []
        room = max_items
        emptied = 0
        for _, _, _, entry in self._waiting:
            if room == 0:
                break
            start = entry.taken
            stop = min(entry.items, start + room)
            parts.append(Part(entry, start, stop))
            room -= stop - start
            entry.taken = stop
            if stop < entry.items:
                break
            emptied += 1
            if entry.deadline != math.inf:
                self._forget_deadline(entry)
        del self._waiting[:emptied]
        self.items -= max_items - room
        return parts

    def expire(self, now: float) -> list[E]:
        """Removes and returns the entries whose deadline is at or before `now`, the earliest first."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            expired.append(self._deadlines[0][2])
            self.cancel(expired[-1])
        return expired

    def cancel(self, entry: E) -> bool:
        """Removes what still waits of an entry; False if nothing of it does."""
        key = (entry.priority, entry.turn, entry.order)
        at = bisect_left(self._waiting, key)
        if at == len(self._waiting) or self._waiting[at][3] is not entry:
            return False
        del self._waiting[at]
        if entry.deadline != math.inf:
            self._forget_deadline(entry)
        self.items -= entry.items - entry.taken
        return True

    def ahead(self, entry: E) -> int:
        """How many items wait that would be taken before those of an entry that has not been pushed yet."""
        before = bisect_left(self._waiting, (entry.priority, entry.turn, self._arrivals + 1))
        return sum(other.items - other.taken for _, _, _, other in self._waiting[:before])

    def __iter__(self) -> Iterator[E]:
        """The entries that wait, in order."""
        return (entry for _, _, _, entry in self._waiting)

    def next_expiry(self) -> float:
        """The earliest deadline among those that wait; infinite if none has one."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def next_expiry_of(self, items: int) -> float:
        """The earliest deadline among the entries that so many items would be taken of; infinite if none has one."""
        earliest = math.inf
        for _, _, _, entry in self._waiting if self._deadlines else ():
            if items <= 0:
                break
            items -= entry.items - entry.taken
            earliest = min(earliest, entry.deadline)
        return earliest

    def _forget_deadline(self, entry: E) -> None:
        del self._deadlines[bisect_left(self._deadlines, (entry.deadline, entry.order))]
