"""How the queue shares batches and room between those who send requests."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.engine.entry import Entry
from service.engine.queue import RequestQueue
from service.engine.scheduling import Scheduler
from service.errors import QueueFull
from service.requests.principal import Principal

A, B, C, D = (Principal("address", name) for name in "abcd")


def push(queue: RequestQueue, principal: Principal, *items: int, priority: int = 1, deadline: float = math.inf) -> list[Entry]:
    entries = [Entry(count, priority, deadline, None, principal) for count in items]
    for entry in entries:
        assert queue.push(entry)
    return entries


def taken(queue: RequestQueue, items: int) -> Counter[str]:
    """Takes a batch; its items by principal."""
    counts: Counter[str] = Counter()
    for entry, start, stop in queue.take(items):
        counts[entry.principal.name] += stop - start
    return counts


def test_principals_share_each_batch_by_items_whatever_the_size_of_their_requests() -> None:
    queue = RequestQueue(1000)
    push(queue, A, *[1] * 100)
    push(queue, B, 100)
    push(queue, C, 3)
    assert taken(queue, 9) == {"a": 3, "b": 3, "c": 3}
    assert taken(queue, 9) in ({"a": 5, "b": 4}, {"a": 4, "b": 5})
    assert taken(queue, 20) == {"a": 10, "b": 10}


def test_what_one_has_no_use_for_goes_to_the_others() -> None:
    queue = RequestQueue(1000)
    push(queue, A, *[1] * 100)
    push(queue, B, 1)
    assert taken(queue, 64) == {"a": 63, "b": 1}


def test_a_request_of_another_does_not_wait_behind_a_long_line() -> None:
    queue = RequestQueue(1000)
    push(queue, A, *[8] * 100)
    taken(queue, 8)
    [polite] = push(queue, B, 1)
    assert [part.entry for part in queue.take(8)][-1] is polite


def test_priority_comes_before_fairness() -> None:
    queue = RequestQueue(1000)
    push(queue, A, *[1] * 10, priority=1)
    push(queue, B, *[1] * 10, priority=2)
    assert taken(queue, 8) == {"a": 8}
    assert taken(queue, 8) == {"a": 2, "b": 6}


def test_within_a_principal_the_order_is_deadline_then_arrival() -> None:
    queue = RequestQueue(1000)
    [late], [none], [soon], [other] = (
        push(queue, A, 1, deadline=9.0), push(queue, A, 1), push(queue, A, 1, deadline=5.0), push(queue, B, 1, deadline=1.0),
    )  # fmt: skip
    assert queue.items_before(Entry(1, 1, 7.0, None, A)) == 2  # `soon`, and as much of B
    assert [part.entry for part in queue.take(2)] == [soon, other]
    assert [part.entry for part in queue.take(2)] == [late, none]


def test_one_that_holds_less_takes_the_room_of_the_youngest_requests_of_the_one_that_holds_most() -> None:
    queue = RequestQueue(8)
    first, second, third = push(queue, A, 4, 2, 2)
    newcomer = Entry(3, 1, math.inf, None, B)
    assert not queue.push(newcomer)
    assert queue.make_room(newcomer) == [third, second]
    assert queue.push(newcomer)
    assert [part.entry for part in queue.take(8)] == [first, newcomer]


def test_nobody_takes_room_from_one_that_would_be_left_with_less() -> None:
    queue = RequestQueue(8)
    push(queue, A, 4)
    push(queue, B, 4)
    for principal, items in ((A, 1), (C, 5), (C, 3)):
        assert queue.make_room(Entry(items, 1, math.inf, None, principal)) == []
    assert queue.items == 8


def test_what_has_begun_keeps_its_room() -> None:
    queue = RequestQueue(8)
    push(queue, A, 8)
    queue.take(2)
    push(queue, A, 2)
    assert queue.make_room(Entry(4, 1, math.inf, None, B)) == []


def test_reserved_room_is_taken_away_too_and_its_request_is_refused() -> None:
    scheduler = Scheduler("m", 1, 8, 8, {}, 0.0, 0.0)
    decoding = [Entry(2, 1, math.inf, None, A) for _ in range(4)]
    for entry in decoding:
        scheduler.reserve(entry)
    scheduler.add(Entry(1, 1, math.inf, None, B), 0.0, reserved=False)
    assert (scheduler.queue.items, scheduler.queue.reserved, scheduler.displaced) == (1, 6, [])
    with pytest.raises(QueueFull) as refused:
        scheduler.check_reserved(decoding[3])
    assert 0.01 <= refused.value.retry_after_seconds <= 30
    with pytest.raises(QueueFull):
        scheduler.add(decoding[3], 0.0, reserved=True)
    for entry in decoding[:3]:
        scheduler.check_reserved(entry)
        scheduler.add(entry, 0.0, reserved=True)
    assert (scheduler.queue.items, scheduler.queue.reserved) == (7, 0)


class FairMachine(RuleBasedStateMachine):
    """Drives the queue beside a plain list of what waits, with a made-up clock."""

    @initialize(bound=st.integers(1, 60), batch=st.integers(1, 12))
    def begin(self, bound: int, batch: int) -> None:
        self.bound, self.batch, self.now = bound, batch, 0.0
        self.queue = RequestQueue(bound)
        self.waiting: list[Entry] = []  # in order of arrival
        self.reserved: list[Entry] = []

    @rule(
        items=st.integers(1, 9), priority=st.integers(1, 2), principal=st.sampled_from([A, B, C, D]),
        seconds=st.none() | st.floats(0, 10), reserve=st.booleans(),
    )  # fmt: skip
    def add(self, items: int, priority: int, principal: Principal, seconds: float | None, reserve: bool) -> None:
        entry = Entry(items, priority, math.inf if seconds is None else self.now + seconds, None, principal)
        room = self.queue.reserve if reserve else self.queue.push
        if not room(entry):
            held = self.held()
            displaced = self.queue.make_room(entry)
            for each in displaced:
                assert not each.taken
                (self.waiting if each in self.waiting else self.reserved).remove(each)
            own = held[principal] + items
            left = self.held()
            assert all(left[each.principal] >= own and each.principal != principal for each in displaced)
            assert bool(displaced) == room(entry)
            if not displaced:
                return
        (self.reserved if reserve else self.waiting).append(entry)

    @rule()
    def take(self) -> None:
        wanted: dict[int, Counter[Principal]] = {}
        for entry in self.waiting:
            wanted.setdefault(entry.priority, Counter())[entry.principal] += entry.items - entry.taken
        parts = self.queue.take(self.batch)
        given: dict[int, Counter[Principal]] = {}
        for entry, start, stop in parts:
            assert stop == entry.taken > start
            given.setdefault(entry.priority, Counter())[entry.principal] += stop - start
        assert sum(map(Counter.total, given.values())) == min(self.batch, sum(map(Counter.total, wanted.values()))), (
            "work-conserving"
        )
        for priority in given:
            assert all(given.get(better) == items for better, items in wanted.items() if better < priority)
            for one in wanted[priority]:
                for other in wanted[priority]:
                    if given[priority][one] > given[priority][other] + 1:
                        assert given[priority][other] == wanted[priority][other], "nobody gets more while another wants more"
        for entry in {part.entry for part in parts}:
            before = [
                other for other in self.waiting
                if (other.priority, other.principal) == (entry.priority, entry.principal)
                and (other.turn, other.arrival) < (entry.turn, entry.arrival)
            ]  # fmt: skip
            assert all(other.taken == other.items for other in before), "in order within a principal"
        self.waiting = [entry for entry in self.waiting if entry.taken < entry.items]

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        late = sorted((entry for entry in self.waiting if entry.deadline <= self.now), key=lambda entry: entry.deadline)
        assert self.queue.expire(self.now) == late
        self.waiting = [entry for entry in self.waiting if entry not in late]

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.waiting:
            entry = data.draw(st.sampled_from(self.waiting))
            assert self.queue.cancel(entry)
            assert not self.queue.cancel(entry)
            self.waiting.remove(entry)
        if self.reserved:
            entry = data.draw(st.sampled_from(self.reserved))
            assert self.queue.release(entry)
            assert not self.queue.release(entry)
            self.reserved.remove(entry)

    def held(self) -> Counter[Principal]:
        held: Counter[Principal] = Counter()
        for entry in self.waiting + self.reserved:
            held[entry.principal] += entry.items - entry.taken
        return held

    @invariant()
    def counts_are_exact_and_nothing_is_kept_of_those_who_have_nothing_here(self) -> None:
        if hasattr(self, "queue"):
            queue = self.queue
            assert queue.items == sum(entry.items - entry.taken for entry in self.waiting)
            assert queue.reserved == sum(entry.items for entry in self.reserved)
            assert queue.items + queue.reserved <= self.bound
            assert queue._held == self.held()
            lanes = {(priority, principal) for priority, lanes in queue._levels.items() for principal in lanes}
            assert lanes == {(entry.priority, entry.principal) for entry in self.waiting}
            assert set(queue) == set(self.waiting)
            assert queue.next_expiry() == min((entry.deadline for entry in self.waiting), default=math.inf)


TestFairMachine = FairMachine.TestCase
TestFairMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8), batch=st.integers(1, 4), newcomers=st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_nobody_starves_however_many_others_come(sizes: list[int], batch: int, newcomers: int) -> None:
    """Each round brings requests of principals that were never seen before, more than a batch holds, until the queue is full."""
    queue = RequestQueue(60)
    entries = push(queue, A, *sizes)
    rounds = 0
    while entries[-1].taken < entries[-1].items:
        for number in range(batch * newcomers):
            queue.push(Entry(1, 1, math.inf, None, Principal("address", f"{rounds}-{number}")))
        queue.take(batch)
        rounds += 1
        assert rounds <= 60 * sum(sizes)


def test_batches_are_no_larger_than_worth_while_as_long_as_several_send() -> None:
    def batch_items(measured: dict[int, float], *principals: Principal) -> int:
        scheduler = Scheduler("m", 1, 64, 1024, measured, 0.0, 100.0)
        for principal in principals:
            scheduler.add(Entry(200 // len(principals), principal=principal), 100.0, reserved=False)
        _, batch = scheduler.take(100.0, on_transport=False)
        assert batch is not None
        return sum(part.stop - part.start for part in batch.parts)

    linear = {items: 0.01 * items for items in (1, 2, 4, 8, 16, 32, 64)}
    gaining = {1: 0.05, 8: 0.06, 64: 0.1}
    short = {items: 0.0001 * items for items in (1, 2, 4, 8, 16, 32, 64)}
    assert [batch_items(measured, A) for measured in (linear, gaining, short)] == [64, 64, 64]
    assert [batch_items(measured, A, B) for measured in (linear, gaining, short)] == [1, 64, 8]
