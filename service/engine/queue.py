"""Bounded priority queue of requests. Pure; scheduling is in scheduling.py.

The rules:
- A request of n items waits as one entry. It may be taken in several parts, for several batches, and may share a batch.
- Order: priority (1 first), then turn, then arrival. The turn of an entry is its deadline unless it was given an earlier one.
- The bound counts queued items and reserved room, exactly. An entry that does not fit whole is not queued.
- An entry that expires or is cancelled leaves the queue at once: it costs no inference and holds no room. Parts of it that were
  taken before are the caller's to drop.

Times are seconds on the caller's clock. The entries are kept in sorted lists: at the sizes that the bound allows, moving a few
pointers costs less than the book-keeping that removal from a heap needs.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple

from service.engine.entry import QUEUED, RUNNING, Entry


class Part(NamedTuple):
    """The items `start` to `stop` of an entry: what one entry gives to one batch."""

    entry: Entry
    start: int
    stop: int


class RequestQueue:
    """Entries that wait, at most `max_items` items in all. Not thread-safe: the caller holds a lock."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self.items = 0
        self.reserved = 0
        self._arrivals = 0
        self._waiting: list[tuple[int, float, int, Entry]] = []  # sorted by priority, turn, arrival; arrival is unique
        self._deadlines: list[tuple[float, int, Entry]] = []  # the entries that have a deadline, sorted by it

    def reserve(self, items: int) -> bool:
        """Reserves room for items to be pushed later, such as images that are being decoded; False if there is none."""
        if self.items + self.reserved + items > self.max_items:
            return False
        self.reserved += items
        return True

    def release(self, items: int) -> None:
        """Gives back reserved room."""
        self.reserved -= items

    def push(self, entry: Entry) -> bool:
        """Queues an entry; False, and nothing changed, if its items do not fit."""
        if self.items + self.reserved + entry.items > self.max_items:
            return False
        self._arrivals += 1
        entry.arrival = self._arrivals
        insort(self._waiting, (entry.priority, entry.turn, entry.arrival, entry))
        if entry.deadline != math.inf:
            insort(self._deadlines, (entry.deadline, entry.arrival, entry))
        self.items += entry.items
        entry.state = QUEUED
        return True

    def take(self, max_items: int) -> list[Part]:
        """The next batch: parts of at most `max_items` items in all, in order; empty if the queue is.

        Does not look at deadlines: call `expire` first.
        """
        parts: list[Part] = []
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
            if not start:
                entry.state = RUNNING
            if stop < entry.items:
                break
            emptied += 1
            if entry.deadline != math.inf:
                self._forget_deadline(entry)
        del self._waiting[:emptied]
        self.items -= max_items - room
        return parts

    def expire(self, now: float) -> list[Entry]:
        """Removes and returns the entries whose deadline is at or before `now`, the earliest first."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            expired.append(self._deadlines[0][2])
            self.cancel(expired[-1])
        return expired

    def cancel(self, entry: Entry) -> bool:
        """Removes what still waits of an entry; False if nothing does."""
        key = (entry.priority, entry.turn, entry.arrival)
        at = bisect_left(self._waiting, key)
        if at == len(self._waiting) or self._waiting[at][3] is not entry:
            return False
        del self._waiting[at]
        if entry.deadline != math.inf:
            self._forget_deadline(entry)
        self.items -= entry.items - entry.taken
        return True

    def first(self) -> Entry:
        """The entry that is next. Only for a queue that is not empty."""
        return self._waiting[0][3]

    def items_before(self, entry: Entry) -> int:
        """How many queued items would be taken before those of an entry that has not been pushed yet."""
        before = bisect_left(self._waiting, (entry.priority, entry.turn, self._arrivals + 1))
        return sum(other.items - other.taken for _, _, _, other in self._waiting[:before])

    def __iter__(self) -> Iterator[Entry]:
        """The queued entries, in order."""
        return (entry for _, _, _, entry in self._waiting)

    def next_expiry(self) -> float:
        """The earliest deadline; infinite if no entry has one."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def next_expiry_within(self, items: int) -> float:
        """The earliest deadline among the entries that a batch of so many items would take; infinite if none has one."""
        earliest = math.inf
        for _, _, _, entry in self._waiting if self._deadlines else ():
            if items <= 0:
                break
            items -= entry.items - entry.taken
            earliest = min(earliest, entry.deadline)
        return earliest

    def _forget_deadline(self, entry: Entry) -> None:
        del self._deadlines[bisect_left(self._deadlines, (entry.deadline, entry.arrival))]
