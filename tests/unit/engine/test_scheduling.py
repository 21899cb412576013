import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.engine.batch_latencies import BatchLatencies
from service.engine.entry import DONE, Entry
from service.engine.scheduling import (
    DEADLINE_HORIZON_SECONDS,
    INLINE_BACKOFF_SECONDS,
    INLINE_SECONDS,
    LATENCY_MAX_AGE_SECONDS,
    LINGER_SHARE,
    STALL_SECONDS,
    Batch,
    Scheduler,
)
from service.errors import DeadlineExceeded, QueueFull

NOW = 100.0
FAST = {1: 1e-4, 64: 1e-4}
SLOW = {1: 1.0, 64: 1.0}
LINEAR = {1: 4e-4, 2: 8e-4, 4: 16e-4, 8: 32e-4}


def make(
    measured: dict[int, float], max_batch_items: int = 8, max_queue_items: int = 64, instances: int = 1, delay: float = 0.0
) -> Scheduler:
    return Scheduler("m", instances, max_batch_items, max_queue_items, measured, delay, NOW)


def add(scheduler: Scheduler, *items: int, now: float = NOW, priority: int = 1, deadline: float = math.inf) -> list[Entry]:
    entries = [Entry(count, priority, deadline) for count in items]
    for entry in entries:
        scheduler.add(entry, now, reserved=False)
    return entries


def take(scheduler: Scheduler, now: float = NOW, *, on_transport: bool = True) -> Batch:
    expired, batch = scheduler.take(now, on_transport=on_transport)
    assert not expired
    assert batch is not None
    return batch


def size(batch: Batch) -> int:
    return sum(part.stop - part.start for part in batch.parts)


def run(scheduler: Scheduler, now: float = NOW) -> Batch:
    """Takes the next batch, which ends at once."""
    batch = take(scheduler, now)
    scheduler.finish(batch, now)
    return batch


def nothing_is_due(scheduler: Scheduler, now: float = NOW) -> bool:
    return scheduler.take(now, on_transport=True) == ([], None)


def test_a_batch_within_a_millisecond_runs_inline_and_only_for_the_transport() -> None:
    for measured, on_transport, inline in ((FAST, True, True), (FAST, False, False), (SLOW, True, False), ({}, True, False)):
        scheduler = make(measured)
        add(scheduler, 2)
        assert take(scheduler, on_transport=on_transport).inline == inline
        assert scheduler.runs_inline(NOW) == (measured is FAST)


def test_a_long_batch_is_cut_to_run_inline_unless_large_batches_gain_much() -> None:
    linear = make(LINEAR)
    add(linear, *[1] * 8)
    batches = [run(linear) for _ in range(4)]
    assert [(size(batch), batch.inline) for batch in batches] == [(2, True)] * 4, "two are expected to take less than a millisecond"
    assert nothing_is_due(linear)
    gaining = make({1: 9e-4, 8: 20e-4})
    add(gaining, *[1] * 8)
    batch = run(gaining)
    assert (size(batch), batch.inline) == (8, False)


@pytest.mark.parametrize(("items", "inline"), [(1, True), (2, False), (4, False)])
def test_a_request_too_long_to_run_inline_is_not_cut_for_that(items: int, inline: bool) -> None:
    """One of several items is sooner too long, because parsing and decoding the next such request is work to do meanwhile."""
    linear = make(LINEAR)
    add(linear, items)
    batch = run(linear)
    assert (size(batch), batch.inline) == (items, inline)


def test_a_model_that_held_up_the_transport_runs_on_its_own_thread_for_a_while() -> None:
    scheduler = make(FAST)
    now = NOW
    add(scheduler, 1, 1)
    scheduler.finish(take(scheduler, now), now + STALL_SECONDS)
    assert scheduler.runs_inline(now + STALL_SECONDS), "not longer than that"
    add(scheduler, 1)
    batch = take(scheduler, now)
    now += 2 * STALL_SECONDS
    scheduler.finish(batch, now)
    assert not scheduler.runs_inline(now)
    add(scheduler, 1, now=now)
    assert not run(scheduler, now).inline
    now += INLINE_BACKOFF_SECONDS
    assert scheduler.runs_inline(now)
    add(scheduler, 1, now=now)
    assert run(scheduler, now).inline


def test_every_idle_instance_gets_a_batch_and_no_other() -> None:
    scheduler = make(SLOW, max_batch_items=2, instances=2)
    [entry] = add(scheduler, 5)
    first, second = take(scheduler), take(scheduler)
    assert {first.instance, second.instance} == {0, 1}
    assert [(part.start, part.stop) for batch in (first, second) for part in batch.parts] == [(0, 2), (2, 4)]
    assert nothing_is_due(scheduler)
    assert scheduler.wake_at(NOW) == math.inf, "an instance that finishes looks again"
    scheduler.finish(second, NOW)
    assert scheduler.wake_at(NOW) == -math.inf
    third = take(scheduler)
    assert third.parts == [(entry, 4, 5)]
    assert third.instance == second.instance


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    scheduler = make(SLOW, max_batch_items=2, max_queue_items=4)
    assert [scheduler.add(Entry(1), NOW, reserved=False) for _ in range(3)] == [False, True, True]
    with pytest.raises(QueueFull, match="the queue of model 'm' is full: 3 of 4 items wait, the request has 2") as refused:
        add(scheduler, 2)
    assert refused.value.retry_after_seconds == pytest.approx(2.0)
    assert scheduler.queue.items == 3


def test_reserved_room_counts_against_the_bound_and_is_given_back() -> None:
    scheduler = make(FAST, max_queue_items=4)
    decoding = Entry(3)
    scheduler.reserve(decoding)
    with pytest.raises(QueueFull, match="3 of 4 items wait, the request has 2"):
        add(scheduler, 2)
    with pytest.raises(QueueFull):
        scheduler.reserve(Entry(2))
    scheduler.add(decoding, NOW, reserved=True)
    late = Entry(1, deadline=NOW)
    scheduler.reserve(late)
    with pytest.raises(DeadlineExceeded):
        scheduler.add(late, NOW, reserved=True)
    assert (scheduler.queue.items, scheduler.queue.reserved) == (3, 0)


def test_an_expired_request_is_taken_out_even_while_all_instances_are_busy() -> None:
    scheduler = make(SLOW)
    add(scheduler, 1)
    take(scheduler)
    [late] = add(scheduler, 1, deadline=NOW + 5)
    [alive] = add(scheduler, 1)
    assert scheduler.wake_at(NOW) == NOW + 5
    assert scheduler.take(NOW + 5, on_transport=True) == ([late], None)
    assert list(scheduler.queue) == [alive]
    assert scheduler.wake_at(NOW + 5) == math.inf


def test_with_a_delay_a_batch_waits_to_be_filled_and_no_longer() -> None:
    scheduler = make(FAST, max_batch_items=4, delay=0.5)
    add(scheduler, 1)
    assert scheduler.wake_at(NOW) == NOW + 0.5
    add(scheduler, 1, now=NOW + 0.3)
    assert scheduler.wake_at(NOW + 0.3) == NOW + 0.5
    assert nothing_is_due(scheduler, NOW + 0.499)
    assert size(run(scheduler, NOW + 0.5)) == 2
    assert scheduler.wake_at(NOW + 0.5) == math.inf
    add(scheduler, *[1] * 5, now=NOW + 1)
    assert size(run(scheduler, NOW + 1)) == 4, "a full batch does not wait"
    assert scheduler.wake_at(NOW + 1) == NOW + 1.5, "the one that is left over does"


def test_with_a_delay_the_rest_of_a_full_batch_that_was_cut_does_not_wait() -> None:
    scheduler = make({1: 3e-4, 2: 5e-4, 4: 9e-4, 8: 1.7e-3}, delay=60)
    add(scheduler, *[1] * 8)
    assert size(run(scheduler)) == 4
    assert scheduler.wake_at(NOW) == -math.inf, "four of eight that were due are left"
    assert size(run(scheduler)) == 4
    add(scheduler, 1)
    assert scheduler.wake_at(NOW) == NOW + 60, "the next waits"


def test_a_deadline_ends_the_wait_for_a_full_batch() -> None:
    scheduler = make({1: 0.01, 8: 0.02}, delay=0.5)
    add(scheduler, 1)
    add(scheduler, 1, deadline=NOW + 0.3)
    assert scheduler.wake_at(NOW) == pytest.approx(NOW + 0.15), "half of the time that it has"
    assert size(run(scheduler, NOW + 0.151)) == 2


def test_after_a_flush_no_request_waits_for_others() -> None:
    scheduler = make(FAST, delay=60)
    add(scheduler, 1)
    scheduler.flush()
    assert size(run(scheduler)) == 1
    add(scheduler, 1)
    assert scheduler.wake_at(NOW) == -math.inf


def test_after_a_long_batch_the_clients_that_got_answers_are_waited_for_a_moment() -> None:
    scheduler = make({1: 1.0, 2: 2.0, 4: 4.0})
    add(scheduler, 3)
    batch = take(scheduler)
    now = NOW + 4.0
    scheduler.observe(3, NOW, now)
    scheduler.finish(batch, now)
    add(scheduler, 1, now=now)
    assert scheduler.wake_at(now) == pytest.approx(now + 4.0 * LINGER_SHARE)
    add(scheduler, 1, now=now)
    assert nothing_is_due(scheduler, now)
    add(scheduler, 1, now=now)
    assert size(run(scheduler, now)) == 3, "as many are back as there were"
    add(scheduler, 1, now=now)
    assert size(run(scheduler, now + 1.0)) == 1, "for no longer"


def test_after_an_inline_batch_no_client_is_waited_for() -> None:
    scheduler = make(FAST)
    add(scheduler, 3)
    batch = take(scheduler)
    scheduler.observe(3, NOW, NOW + 0.9 * INLINE_SECONDS)
    scheduler.finish(batch, NOW + 0.9 * INLINE_SECONDS)
    add(scheduler, 1)
    assert size(run(scheduler)) == 1


def test_a_request_without_a_deadline_lets_others_pass_only_for_so_long() -> None:
    scheduler = make({1: 1e-4}, max_batch_items=1)
    patient, late = Entry(1), Entry(1, deadline=NOW + 60)
    near, later = Entry(1, deadline=NOW + DEADLINE_HORIZON_SECONDS / 2), Entry(1, deadline=NOW + DEADLINE_HORIZON_SECONDS * 5 / 4)
    for entry in (patient, late, near):
        scheduler.add(entry, NOW, reserved=False)
    now = NOW + DEADLINE_HORIZON_SECONDS / 4
    scheduler.add(later, now, reserved=False)
    assert [run(scheduler, now).parts[0].entry for _ in range(4)] == [near, patient, late, later]


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    scheduler = make({1: 1.0, 2: 1.1, 4: 1.2}, max_batch_items=4)
    with pytest.raises(DeadlineExceeded, match=r"cannot be met: estimated 1100\.0 ms, 500\.0 ms left \(500\.0 ms allowed\)"):
        add(scheduler, 1, deadline=NOW + 0.5)
    with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
        add(scheduler, 1, deadline=NOW)
    add(scheduler, 4, deadline=NOW + 10)  # 1.2 s
    with pytest.raises(DeadlineExceeded):
        add(scheduler, 1, priority=2, deadline=NOW + 2)
    add(scheduler, 1, deadline=NOW + 2)  # goes ahead: an earlier deadline, the same priority
    assert scheduler.queue.items == 5


def test_a_deadline_is_held_against_the_batch_that_runs_too() -> None:
    scheduler = make(SLOW)
    add(scheduler, 1)
    take(scheduler)
    with pytest.raises(DeadlineExceeded, match=r"estimated 2200\.0 ms"):
        add(scheduler, 1, deadline=NOW + 2)
    with pytest.raises(DeadlineExceeded, match=r"estimated 1700\.0 ms"):
        add(scheduler, 1, now=NOW + 0.5, deadline=NOW + 2)
    add(scheduler, 1, now=NOW + 1, deadline=NOW + 2.3)


def test_a_request_that_has_to_queue_leaves_time_for_more_than_the_smallest_batches() -> None:
    scheduler = make({1: 1.0, 2: 1.0}, max_batch_items=2)
    add(scheduler, 1, deadline=NOW + 1.2)  # alone, it is in time: 1.1 s
    with pytest.raises(DeadlineExceeded, match=r"3000\.0 ms left \(2000\.0 ms allowed\)"):
        add(scheduler, 2, deadline=NOW + 3)  # behind it, it would take 2.2 s
    add(scheduler, 2, deadline=NOW + 4)


def test_the_deadline_of_a_request_that_is_not_in_it_does_not_shorten_a_batch() -> None:
    scheduler = make({1: 1.0, 2: 2.0, 4: 4.0}, max_batch_items=4)
    now = NOW + LATENCY_MAX_AGE_SECONDS + 1  # old times refuse nothing
    add(scheduler, *[1] * 4, now=now)
    add(scheduler, 1, now=now, priority=2, deadline=now + 2.5)
    scheduler.observe(1, now - 1.0, now)
    assert size(take(scheduler, now + 1.0 * LINGER_SHARE)) == 4


def test_old_times_refuse_nothing() -> None:
    scheduler = make(SLOW)
    now = NOW + LATENCY_MAX_AGE_SECONDS + 1
    [entry] = add(scheduler, 1, now=now, deadline=now + 0.5)
    assert take(scheduler, now).parts == [(entry, 0, 1)]
    with pytest.raises(DeadlineExceeded):
        add(scheduler, 1, now=now, deadline=now)


def test_a_request_that_has_waited_too_long_to_be_in_time_costs_no_inference() -> None:
    scheduler = make(SLOW)
    [hopeless] = add(scheduler, 1, deadline=NOW + 1.5)
    assert scheduler.take(NOW + 0.6, on_transport=True) == ([hopeless], None)


def test_a_batch_is_no_longer_than_the_earliest_deadline_allows() -> None:
    scheduler = make({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
    add(scheduler, *[1] * 6, deadline=NOW + 100)
    [near] = add(scheduler, 1, deadline=NOW + 3)
    batch = take(scheduler)
    assert size(batch) == 2
    assert batch.parts[0].entry is near


MEASURED = st.sampled_from([{}, FAST, LINEAR, {1: 0.2, 2: 0.35, 4: 0.6, 8: 1.2}, SLOW])


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler with a made-up clock; each batch takes some time, and what ran is observed."""

    @initialize(
        measured=MEASURED, instances=st.integers(1, 3), batch=st.integers(1, 8), bound=st.integers(1, 40),
        delay=st.sampled_from([0.0, 0.05, 2.0]),
    )  # fmt: skip
    def begin(self, measured: dict[int, float], instances: int, batch: int, bound: int, delay: float) -> None:
        self.now = NOW
        self.instances = instances
        self.scheduler = make(measured, batch, bound, instances, delay)
        self.delay = delay
        self.running: list[Batch] = []
        self.taken: dict[Entry, int] = {}  # items taken of each entry that was accepted, as long as it lives
        self.reserved = 0

    @rule(items=st.integers(1, 12), priority=st.integers(1, 2), seconds=st.none() | st.floats(-0.1, 3), reserve=st.booleans())
    def add(self, items: int, priority: int, seconds: float | None, reserve: bool) -> None:
        entry = Entry(items, priority, math.inf if seconds is None else self.now + seconds)
        before = self.scheduler.queue.items
        try:
            if reserve:
                self.scheduler.reserve(entry)
            full = self.scheduler.add(entry, self.now, reserved=reserve)
        except QueueFull:
            assert before + items > self.scheduler.queue.max_items
        except DeadlineExceeded:
            assert seconds is not None
        else:
            assert entry.deadline > self.now
            assert full == (self.scheduler.queue.items >= self.scheduler.max_batch_items)
            self.taken[entry] = 0

    @rule(on_transport=st.booleans())
    def take(self, on_transport: bool) -> None:
        scheduler, latencies = self.scheduler, self.scheduler.latencies
        wake_at = scheduler.wake_at(self.now)
        trusted = self.now - scheduler._measured_at <= LATENCY_MAX_AGE_SECONDS and latencies.expected(1) != math.inf
        expired, batch = scheduler.take(self.now, on_transport=on_transport)
        for entry in expired:
            assert entry.deadline <= self.now + (latencies.likely(1) if trusted else 0)
            del self.taken[entry]
        if batch is None:
            assert wake_at > self.now or expired, "what was due was taken"
            assert scheduler.due_at() > self.now
            return
        assert wake_at <= self.now or expired, "nothing else was due"
        assert batch.instance not in [other.instance for other in self.running]
        self.running.append(batch)
        items = size(batch)
        assert 1 <= items <= scheduler.max_batch_items
        assert not batch.inline or (on_transport and latencies.expected(items) <= INLINE_SECONDS)
        for entry, start, stop in batch.parts:
            assert self.taken[entry] == start < stop <= entry.items, "each item once, in order"
            self.taken[entry] = stop
            assert entry.deadline > self.now
            if trusted:
                assert self.now + latencies.likely(items) <= entry.deadline + 1e-9, "the batch should end in time"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.floats(1e-4, 3))
    def finish(self, data: st.DataObject, seconds: float) -> None:
        batch = data.draw(st.sampled_from(self.running))
        self.running.remove(batch)
        start, self.now = self.now, self.now + seconds
        self.scheduler.observe(size(batch), start, self.now)
        self.scheduler.finish(batch, self.now)
        for entry, _, stop in batch.parts:
            if stop == entry.items:
                entry.state = DONE
                del self.taken[entry]

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def flush(self) -> None:
        self.scheduler.flush()
        self.delay = 0.0

    @invariant()
    def nothing_is_lost_and_nothing_waits_without_need(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        assert scheduler.queue.items == sum(entry.items - taken for entry, taken in self.taken.items())
        assert scheduler.queue.reserved == 0
        due = scheduler.due_at()
        if scheduler.queue.items and len(self.running) < self.instances:
            longest = max(self.delay, LINGER_SHARE * 3)
            assert due <= self.now + longest, "never longer than the delay, or the moment after a long batch"
            if scheduler.queue.items >= scheduler.max_batch_items:
                assert due == -math.inf
        else:
            assert due == math.inf


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_the_likely_times_are_what_promises_are_made_of() -> None:
    """A request that is alone is accepted if, and only if, the likely time of its batch fits."""
    likely = BatchLatencies(SLOW).likely(1)
    add(make(SLOW), 1, deadline=NOW + likely + 1e-6)
    with pytest.raises(DeadlineExceeded):
        add(make(SLOW), 1, deadline=NOW + likely - 1e-6)
