"""Bounded priority queue of requests, fair between those who send them. Pure; scheduling is in scheduling.py.

The rules:
- A request of n items waits as one entry. It may be taken in several parts, for several batches, and may share a batch.
- Order: priority (1 first). Within a priority, principals share each batch evenly, by items: what one of them has no use for goes
  to the others, and the odd item to whoever has waited longest for one. Within a principal: turn, then arrival. The turn of an
  entry is its deadline unless it was given an earlier one. So of one principal alone, the order is priority, turn, arrival.
- The bound counts queued items and reserved room, exactly. An entry that does not fit whole is not queued.
- A full queue is shared too: `make_room` takes the youngest entries of the principal that holds most, for one that holds less. So
  no principal fills the queue alone.
- An entry that expires or is cancelled leaves the queue at once: it costs no inference and holds no room. Parts of it that were
  taken before are the caller's to drop.

Of a principal nothing is kept once it has nothing here. Times are seconds on the caller's clock. The entries are kept in sorted
lists: at the sizes that the bound allows, moving a few pointers costs less than the book-keeping that removal from a heap needs.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from service.engine.entry import QUEUED, RUNNING, Entry
from service.requests.principal import Principal


class Part(NamedTuple):
    """The items `start` to `stop` of an entry: what one entry gives to one batch."""

    entry: Entry
    start: int
    stop: int


class _Lane:
    """What waits of one principal at one priority: entries sorted by turn and arrival, and how many items they have left."""

    __slots__ = ("entries", "items")

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, Entry]] = []  # arrival is unique
        self.items = 0


_Lanes = dict[Principal, _Lane]
"""Of one priority, whoever has waited longest for an odd item first."""


class RequestQueue:
    """Entries that wait, at most `max_items` items in all. Not thread-safe: the caller holds a lock."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self.items = 0
        self.reserved = 0
        self._arrivals = 0
        self._levels: dict[int, _Lanes] = {}  # by priority, sorted
        self._deadlines: list[tuple[float, int, Entry]] = []  # the entries that have a deadline, sorted by it
        self._reservations: dict[Entry, None] = {}  # in order
        self._held: dict[Principal, int] = {}  # items and reserved room

    def reserve(self, entry: Entry) -> bool:
        """Reserves room for an entry to be pushed later, such as one whose images are being decoded; False if there is none."""
        if not self._fits(entry):
            return False
        self._reservations[entry] = None
        self.reserved += entry.items
        self._hold(entry, entry.items)
        return True

    def release(self, entry: Entry) -> bool:
        """Gives back the room that was reserved for an entry; False if it has been taken away."""
        if entry not in self._reservations:
            return False
        del self._reservations[entry]
        self.reserved -= entry.items
        self._hold(entry, -entry.items)
        return True

    def held(self, principal: Principal) -> int:
        """Items and reserved room of a principal."""
        return self._held.get(principal, 0)

    def is_reserved(self, entry: Entry) -> bool:
        """Whether room is reserved for an entry."""
        return entry in self._reservations

    def push(self, entry: Entry) -> bool:
        """Queues an entry; False, and nothing changed, if its items do not fit."""
        items = entry.items
        if not self._fits(entry):
            return False
        self._arrivals += 1
        entry.arrival = self._arrivals
        lanes = self._levels.get(entry.priority)
        if lanes is None:
            lanes = self._levels[entry.priority] = {}
            if len(self._levels) > 1:
                self._levels = dict(sorted(self._levels.items()))
        lane = lanes.get(entry.principal)
        if lane is None:
            lane = lanes[entry.principal] = _Lane()
        insort(lane.entries, (entry.turn, entry.arrival, entry))
        lane.items += items
        if entry.deadline != math.inf:
            insort(self._deadlines, (entry.deadline, entry.arrival, entry))
        self.items += items
        self._hold(entry, items)
        entry.state = QUEUED
        return True

    def make_room(self, entry: Entry) -> list[Entry]:
        """Removes entries of those who hold most, until `entry` fits; returns them. None, and nothing changed, if that is not fair.

        It is fair as long as nobody is left with less than the principal of `entry` will hold. Of the one who holds most the entry
        that came last goes first: queued ones that have not begun, of the least urgent priority, then reservations.
        """
        own = self._held.get(entry.principal, 0) + entry.items
        missing = self.items + self.reserved + entry.items - self.max_items
        if missing <= 0 or not self._held or max(self._held.values()) <= own:
            return []
        held = dict(self._held)
        held.pop(entry.principal, None)
        stacks: dict[Principal, list[Entry]] = {}
        chosen: list[Entry] = []
        while missing > 0 and held:
            greediest = max(held, key=held.__getitem__)
            stack = stacks.get(greediest)
            if stack is None:
                stack = stacks[greediest] = self._removable(greediest)
            if not stack or held[greediest] - stack[-1].items < own:
                del held[greediest]
                continue
            last = stack.pop()
            chosen.append(last)
            held[greediest] -= last.items
            missing -= last.items
        if missing > 0:
            return []
        for each in chosen:
            if not self.release(each):
                self.cancel(each)
        return chosen

    def take(self, max_items: int) -> list[Part]:
        """The next batch: parts of at most `max_items` items in all, in order; empty if the queue is.

        Does not look at deadlines: call `expire` first.
        """
        parts: list[Part] = []
        for lanes, principal, lane, room in self._shares(max_items):
            lane.items -= room
            self.items -= room
            self._release_held(principal, room)
            emptied = 0
            for _, _, entry in lane.entries:
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
            del lane.entries[:emptied]
            if not lane.entries:
                self._remove_lane(lanes, principal, parts[-1].entry.priority)
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
        lanes = self._levels.get(entry.priority)
        lane = None if lanes is None else lanes.get(entry.principal)
        if lanes is None or lane is None:
            return False
        at = bisect_left(lane.entries, (entry.turn, entry.arrival))
        if at == len(lane.entries) or lane.entries[at][2] is not entry:
            return False
        del lane.entries[at]
        left = entry.items - entry.taken
        lane.items -= left
        if not lane.entries:
            self._remove_lane(lanes, entry.principal, entry.priority)
        if entry.deadline != math.inf:
            self._forget_deadline(entry)
        self.items -= left
        self._release_held(entry.principal, left)
        return True

    def first(self) -> Entry:
        """The entry that is next. Only for a queue that is not empty."""
        lanes = next(iter(self._levels.values()))
        return next(iter(lanes.values())).entries[0][2]

    def items_before(self, entry: Entry) -> int:
        """How many queued items would be taken before the last of an entry that has not been pushed yet: an estimate from above."""
        before = 0
        for priority, lanes in self._levels.items():
            if priority < entry.priority:
                before += sum(lane.items for lane in lanes.values())
        lanes = self._levels.get(entry.priority, {})
        own = lanes.get(entry.principal)
        if own is not None:
            at = bisect_left(own.entries, (entry.turn, self._arrivals + 1))
            own_before = sum(other.items - other.taken for _, _, other in own.entries[:at])
            before += own_before
        if own is None or len(lanes) > 1:
            share = entry.items + (own_before if own is not None else 0)
            before += sum(min(lane.items, share) for lane in lanes.values() if lane is not own)
        return before

    def __iter__(self) -> Iterator[Entry]:
        """The queued entries."""
        return (entry for lanes in self._levels.values() for lane in lanes.values() for _, _, entry in lane.entries)

    def next_expiry(self) -> float:
        """The earliest deadline; infinite if no entry has one."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def next_expiry_within(self, items: int) -> float:
        """The earliest deadline among the entries that a batch of so many items would take; infinite if none has one."""
        earliest = math.inf
        for _, _, lane, room in self._shares(items, rotate=False) if self._deadlines else ():
            for _, _, entry in lane.entries:
                if room <= 0:
                    break
                room -= entry.items - entry.taken
                earliest = min(earliest, entry.deadline)
        return earliest

    def _shares(self, room: int, *, rotate: bool = True) -> list[tuple[_Lanes, Principal, _Lane, int]]:
        """How many items each lane gives to a batch of at most `room`. `rotate` puts those behind that are given an odd item."""
        shares = []
        for lanes in self._levels.values():
            if room <= 0:
                break
            if len(lanes) == 1:
                [(principal, lane)] = lanes.items()
                items = min(room, lane.items)
                shares.append((lanes, principal, lane, items))
                room -= items
                continue
            given, odd = _divide(lanes, room)
            for principal, items in given.items():
                shares.append((lanes, principal, lanes[principal], items))
                room -= items
            if rotate:
                for principal in odd:
                    lanes[principal] = lanes.pop(principal)
        return shares

    def _removable(self, principal: Principal) -> list[Entry]:
        """What `make_room` may take from a principal, the first to go last."""
        removable = [entry for entry in self._reservations if entry.principal == principal]
        for _, lanes in sorted(self._levels.items()):
            lane = lanes.get(principal)
            waiting = [] if lane is None else [entry for _, _, entry in lane.entries if not entry.taken]
            removable += sorted(waiting, key=lambda entry: entry.arrival)
        return removable

    def _fits(self, entry: Entry) -> bool:
        return self.items + self.reserved + entry.items <= self.max_items

    def _hold(self, entry: Entry, items: int) -> None:
        if items < 0:
            self._release_held(entry.principal, -items)
        else:
            self._held[entry.principal] = self._held.get(entry.principal, 0) + items

    def _release_held(self, principal: Principal, items: int) -> None:
        left = self._held[principal] - items
        if left:
            self._held[principal] = left
        else:
            del self._held[principal]

    def _remove_lane(self, lanes: _Lanes, principal: Principal, priority: int) -> None:
        del lanes[principal]
        if not lanes:
            del self._levels[priority]

    def _forget_deadline(self, entry: Entry) -> None:
        del self._deadlines[bisect_left(self._deadlines, (entry.deadline, entry.arrival))]


def _divide(lanes: _Lanes, room: int) -> tuple[dict[Principal, int], list[Principal]]:
    """Divides the room of a batch: items by principal, and who got an odd one.

    Of two who want more, one gets more than the other only by an odd item.
    """
    given: dict[Principal, int] = {}
    hungry = [(principal, lane.items) for principal, lane in islice(lanes.items(), room + 1)]
    while hungry:
        share = room // len(hungry)
        if share == 0:
            odd = [principal for principal, _ in hungry[:room]]
            for principal in odd:
                given[principal] = given.get(principal, 0) + 1
            return given, odd
        still_hungry = []
        for principal, wanted in hungry:
            items = min(share, wanted)
            given[principal] = given.get(principal, 0) + items
            room -= items
            if wanted > items:
                still_hungry.append((principal, wanted - items))
        hungry = still_hungry
    return given, []
