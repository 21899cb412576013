import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.engine.entry import Entry
from service.engine.queue import RequestQueue


def test_packs_small_requests_and_splits_large_ones_in_order() -> None:
    queue = RequestQueue(100)
    first, second, third = Entry(2), Entry(5), Entry(1)
    for entry in (first, second, third):
        assert queue.push(entry)
    assert queue.take(4) == [(first, 0, 2), (second, 0, 2)]
    assert queue.take(4) == [(second, 2, 5), (third, 0, 1)]
    assert queue.take(4) == []
    assert queue.items == 0


def test_order_is_priority_then_deadline_then_arrival() -> None:
    queue = RequestQueue(100)
    late, none, soon, urgent, none_again = Entry(1, 2, 9.0), Entry(1, 2), Entry(1, 2, 5.0), Entry(1, 1), Entry(1, 2)
    for entry in (late, none, soon, urgent, none_again):
        queue.push(entry)
    assert [part.entry for part in queue.take(5)] == [urgent, soon, late, none, none_again]


def test_an_entry_that_does_not_fit_whole_changes_nothing() -> None:
    queue = RequestQueue(4)
    assert queue.push(Entry(3))
    assert not queue.push(Entry(2))
    assert queue.items == 3
    assert queue.push(Entry(1))
    assert queue.items == 4


def test_expired_and_cancelled_entries_give_their_room_back() -> None:
    queue = RequestQueue(10)
    expiring, staying = Entry(4, deadline=1.0), Entry(6)
    queue.push(expiring)
    queue.push(staying)
    assert queue.next_expiry() == 1.0
    assert queue.expire(0.999) == []
    assert queue.expire(1.0) == [expiring]
    assert queue.items == 6
    assert queue.next_expiry() == math.inf
    assert queue.take(2) == [(staying, 0, 2)]
    assert queue.cancel(staying)
    assert queue.items == 0
    assert not queue.cancel(staying)
    assert queue.take(10) == []


class QueueMachine(RuleBasedStateMachine):
    """Drives the queue with a made-up clock beside a model of it that is a plain list."""

    @initialize(bound=st.integers(1, 40), batch=st.integers(1, 12))
    def begin(self, bound: int, batch: int) -> None:
        self.bound, self.batch, self.now = bound, batch, 0.0
        self.queue = RequestQueue(bound)
        self.waiting: list[Entry] = []  # in order of arrival
        self.given: dict[Entry, int] = {}  # items taken of each entry ever pushed

    @rule(items=st.integers(1, 15), priority=st.integers(1, 3), seconds=st.one_of(st.none(), st.floats(0, 10)))
    def push(self, items: int, priority: int, seconds: float | None) -> None:
        entry = Entry(items, priority, math.inf if seconds is None else self.now + seconds)
        fits = self.left() + items <= self.bound
        assert self.queue.push(entry) == fits
        if fits:
            self.waiting.append(entry)
            self.given[entry] = 0

    @rule()
    def take(self) -> None:
        expected, room = [], self.batch
        for entry in sorted(self.waiting, key=lambda entry: (entry.priority, entry.deadline)):  # stable: arrival last
            if room:
                start = self.given[entry]
                stop = min(entry.items, start + room)
                expected.append((entry, start, stop))
                room -= stop - start
        assert self.queue.take(self.batch) == expected
        for entry, _, stop in expected:
            self.given[entry] = stop
            if stop == entry.items:
                self.waiting.remove(entry)

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        expired = self.queue.expire(self.now)
        late = [entry for entry in self.waiting if entry.deadline <= self.now]
        assert expired == sorted(late, key=lambda entry: entry.deadline)
        self.waiting = [entry for entry in self.waiting if entry.deadline > self.now]

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.given:
            return
        entry = data.draw(st.sampled_from(list(self.given)))
        assert self.queue.cancel(entry) == (entry in self.waiting)
        if entry in self.waiting:
            self.waiting.remove(entry)

    def left(self) -> int:
        return sum(entry.items - self.given[entry] for entry in self.waiting)

    @invariant()
    def the_count_is_exact_and_within_the_bound(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.items == self.left() <= self.bound
            deadlines = [entry.deadline for entry in self.waiting]
            assert self.queue.next_expiry() == min(deadlines, default=math.inf)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=20), batch=st.integers(1, 9))
@settings(deadline=None)
def test_every_item_is_given_once_and_batches_are_as_full_as_can_be(sizes: list[int], batch: int) -> None:
    queue = RequestQueue(1000)
    entries = [Entry(size) for size in sizes]
    for entry in entries:
        queue.push(entry)
    given_items: list[tuple[Entry, int]] = []
    taken = []
    while parts := queue.take(batch):
        taken.append(sum(part.stop - part.start for part in parts))
        given_items += [(part.entry, item) for part in parts for item in range(part.start, part.stop)]
    assert given_items == [(entry, item) for entry in entries for item in range(entry.items)]
    assert all(items == batch for items in taken[:-1])
