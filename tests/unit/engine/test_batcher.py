import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.batcher import LINGER, PATIENCE_SECONDS, REPRIEVE_SECONDS, STALL_SECONDS, TRUST_SECONDS, Batcher, Work
from service.errors import Cancelled, DeadlineExceeded, ModelFailed, QueueFull

FAST = {1: 1e-4, 64: 1e-4}
SLOW = {1: 1.0, 64: 1.0}


class Clock:
    """Made-up time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A model that adds its pixels up, and that can be held in the middle of a batch."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.held = False
        self.takes: Callable[[], None] = lambda: None
        self.threads: list[str] = []
        self.batches: list[int] = []

    def __call__(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        self.threads.append(threading.current_thread().name)
        self.batches.append(len(images))
        self.takes()
        if self.held:
            self.entered.release()
            assert self.go_on.acquire(timeout=10)
        if (images == 255).any():
            raise RuntimeError("poison in /secret/path")
        total = images.reshape(len(images), -1).sum(axis=1).astype(np.float32)
        return [np.stack([total, -total], axis=1)]


class Asked(Work):
    """A work that says to a function that it is done."""

    def __init__(
        self, images: NDArray[np.uint8], tell: Callable[[Work], None], priority: int = 1, deadline: float = math.inf
    ) -> None:
        super().__init__(len(images), priority, deadline)
        self.images = images
        self._tell = tell

    def done(self) -> None:
        self._tell(self)


class Outcomes:
    """Collects the works that are done."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self._more = threading.Condition()

    def __call__(self, work: Work) -> None:
        with self._more:
            self.works.append(work)
            self._more.notify_all()

    def wait_for(self, count: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: len(self.works) >= count, timeout=10)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def done() -> Outcomes:
    return Outcomes()


Make = Callable[..., Batcher]


@pytest.fixture
def make(gate: Gate) -> Iterator[Make]:
    made: list[Batcher] = []

    def build(
        measured: dict[int, float], max_batch_items: int = 8, max_queue_items: int = 64, instances: int = 1, **more: object
    ) -> Batcher:
        batcher = Batcher(
            *[gate] * instances, name="m", max_batch_items=max_batch_items, max_queue_items=max_queue_items,
            measured=measured, **more,  # type: ignore[arg-type]
        )  # fmt: skip
        batcher.start()
        made.append(batcher)
        return batcher

    yield build
    for batcher in made:
        batcher.close()


def images(*values: int) -> NDArray[np.uint8]:
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def test_a_short_batch_runs_on_the_callers_thread_and_a_long_one_on_the_models(make: Make, gate: Gate, done: Outcomes) -> None:
    fast, slow = make(FAST), make(SLOW)
    fast.submit(Asked(images(1, 2), done))
    fast.pump()
    assert len(done.works) == 1
    slow.submit(Asked(images(3), done))
    slow.pump()
    done.wait_for(2)
    assert gate.threads == [threading.current_thread().name, "batcher-m-1"]
    assert fast.inline
    assert not slow.inline


def test_a_model_that_held_up_the_callers_thread_computes_on_its_own_for_a_while(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(FAST, clock=clock)

    def submit(value: int) -> None:
        batcher.submit(Asked(images(value), done))
        batcher.pump()
        done.wait_for(value)

    gate.takes = lambda: setattr(clock, "now", clock.now + 2 * STALL_SECONDS)
    submit(1)
    gate.takes = lambda: None
    submit(2)
    assert not batcher.inline
    clock.now += REPRIEVE_SECONDS
    submit(3)
    here = threading.current_thread().name
    assert gate.threads == [here, "batcher-m-1", here]
    assert batcher.inline


def test_a_long_batch_is_cut_to_run_inline_unless_large_batches_gain_much(make: Make, gate: Gate, done: Outcomes) -> None:
    linear = make({1: 4e-4, 2: 8e-4, 4: 16e-4, 8: 32e-4})
    for value in range(8):
        linear.submit(Asked(images(value), done))
    assert linear.pump() == -math.inf
    assert gate.batches == [2], "two are expected to take less than a millisecond"
    while linear.pump() == -math.inf:
        pass
    ran = len(gate.batches)
    assert sum(gate.batches) == 8
    assert set(gate.threads) == {threading.current_thread().name}
    gaining = make({1: 9e-4, 8: 20e-4})
    for value in range(8):
        gaining.submit(Asked(images(value), done))
    gaining.pump()
    done.wait_for(16)
    assert gate.batches[ran:] == [8]
    assert gate.threads[-1] == "batcher-m-1"


@pytest.mark.parametrize(("pixels", "inline"), [((1,), True), ((1, 2), False), ((1, 2, 3, 4), False)])
def test_a_request_too_long_to_run_inline_is_not_cut_for_that(
    pixels: tuple[int, ...], inline: bool, make: Make, gate: Gate, done: Outcomes
) -> None:
    """One of several items is sooner too long, because it is work to take in the next such."""
    linear = make({1: 4e-4, 2: 8e-4, 4: 16e-4, 8: 32e-4})
    linear.submit(Asked(images(*pixels), done))
    linear.pump()
    done.wait_for(1)
    assert gate.batches == [len(pixels)]
    assert gate.threads == [threading.current_thread().name if inline else "batcher-m-1"]


def test_hand_over_never_runs_a_batch_on_the_caller(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(FAST)
    batcher.submit(Asked(images(1), done))
    batcher.hand_over()
    done.wait_for(1)
    assert gate.threads == ["batcher-m-1"]


def test_what_is_more_than_one_batch_wakes_as_many_instances(make: Make, gate: Gate, done: Outcomes) -> None:
    gate.held = True
    batcher = make(FAST, max_batch_items=2, instances=3)
    batcher.submit(Asked(images(*range(5)), done))
    batcher.hand_over()
    for _ in range(3):
        assert gate.entered.acquire(timeout=10)
    gate.go_on.release(3)
    done.wait_for(1)
    assert sorted(gate.batches) == [1, 2, 2]


def test_an_idle_instance_holds_no_pictures(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW)
    poison = images(255)
    held = weakref.ref(poison)
    batcher.submit(Asked(poison, done))
    del poison
    batcher.pump()
    done.wait_for(1)
    done.works.clear()
    deadline = time.monotonic() + 10
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() is None


def test_requests_share_a_batch_and_large_ones_are_put_together_again(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(FAST, max_batch_items=4)
    sent = [images(1), images(*range(10, 20)), images(2, 3)]
    for pixels in sent:
        batcher.submit(Asked(pixels, done))
    while batcher.pump() == -math.inf:
        pass
    done.wait_for(3)
    assert gate.batches == [4, 4, 4, 1]
    by_size = {work.items: work for work in done.works}
    for pixels in sent:
        outputs = by_size[len(pixels)].outputs
        assert outputs[0][:, 0].tolist() == pixels.ravel().tolist()


def test_one_of_four_cancelled_while_the_model_runs_leaves_three_answered(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW)
    gate.held = True
    works = [Asked(images(value), done) for value in (1, 2, 3, 4)]
    for work in works:
        batcher.submit(work)
    batcher.pump()
    assert gate.entered.acquire(timeout=10)
    batcher.cancel(works[1])
    assert isinstance(works[1].error, Cancelled)
    gate.go_on.release()
    done.wait_for(4)
    assert gate.batches == [4]
    assert len(done.works) == 4
    for work, value in ((works[0], 1), (works[2], 3), (works[3], 4)):
        assert work.error is None
        assert work.outputs[0][0, 0] == value


def test_a_cancelled_request_that_still_waits_costs_no_inference(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW)
    gate.held = True
    batcher.submit(Asked(images(1), done))
    batcher.pump()
    assert gate.entered.acquire(timeout=10)
    waiting = Asked(images(2, 3), done)
    batcher.submit(waiting)
    batcher.cancel(waiting)
    batcher.cancel(waiting)
    assert batcher.queued_items == 0
    gate.go_on.release()
    done.wait_for(2)
    assert gate.batches == [1]
    assert [work is waiting for work in done.works] == [True, False]


def test_a_full_queue_refuses_with_a_time_to_come_back(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW, max_batch_items=2, max_queue_items=4)
    assert not batcher.submit(Asked(images(1), done))
    assert batcher.submit(Asked(images(2), done))
    assert batcher.submit(Asked(images(3), done))
    with pytest.raises(QueueFull, match="3 of 4 items wait, 2 more came") as refused:
        batcher.submit(Asked(images(4, 5), done))
    assert refused.value.retry_after_seconds == pytest.approx(2.0)
    batcher.pump()
    done.wait_for(3)
    assert batcher.queued_items == 0


def test_a_request_that_expires_in_the_queue_costs_no_inference(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(FAST, clock=clock)
    late, alive = Asked(images(1), done, deadline=clock.now + 1), Asked(images(2), done, deadline=clock.now + 3)
    batcher.submit(late)
    batcher.submit(alive)
    clock.now += 1
    batcher.pump()
    assert isinstance(late.error, DeadlineExceeded)
    assert gate.batches == [1]


def test_pump_asks_to_be_called_at_the_earliest_deadline_while_the_model_is_busy(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(SLOW, clock=clock)
    gate.held = True
    batcher.submit(Asked(images(1), done))
    assert batcher.pump() == math.inf
    assert gate.entered.acquire(timeout=10)
    expiring = Asked(images(2), done, deadline=clock.now + 5)
    batcher.submit(expiring)
    assert batcher.pump() == clock.now + 5
    clock.now += 5
    assert batcher.pump() == math.inf
    assert isinstance(expiring.error, DeadlineExceeded)
    gate.held = False
    gate.go_on.release()
    done.wait_for(2)


def test_a_poisonous_request_fails_alone_and_without_the_models_words(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(FAST, max_batch_items=4)
    works = [Asked(images(value), done) for value in (1, 255, 2, 3, 4)]
    for work in works:
        batcher.submit(work)
    while batcher.pump() == -math.inf:
        pass
    assert [type(work.error) for work in works] == [type(None), ModelFailed, type(None), type(None), type(None)]
    assert "secret" not in str(works[1].error)
    assert [work.outputs[0][0, 0] for work in works if work.outputs] == [1, 2, 3, 4]
    assert gate.batches == [4, 1, 1, 1, 1, 1]


def test_a_model_that_gives_too_few_answers_fails_the_request_and_goes_on(done: Outcomes) -> None:
    batcher = Batcher(lambda images: [np.zeros((1, 2), np.float32)], name="m", max_batch_items=8, max_queue_items=8, measured=FAST)
    wrong, right = Asked(images(1, 2), done), Asked(images(3), done)
    for work in (wrong, right):
        batcher.submit(work)
        batcher.pump()
    assert isinstance(wrong.error, ModelFailed)


def test_whatever_fails_round_a_batch_everybody_is_told_and_the_next_is_answered(
    make: Make, done: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = make(SLOW, max_batch_items=2)
    split, small = Asked(images(1, 2, 3), done), Asked(images(4), done)

    def fail(*_: object) -> bool:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Batcher, "_put_together", fail)
        batcher.submit(split)
        batcher.hand_over()
        done.wait_for(1)
    assert isinstance(split.error, ModelFailed)
    assert batcher.queued_items == 0, "nor does what was left of it wait"
    batcher.submit(small)
    batcher.hand_over()
    done.wait_for(2)
    assert small.outputs[0][:, 0].tolist() == [4.0]


def test_a_batch_that_cannot_be_counted_is_answered_all_the_same(done: Outcomes) -> None:
    def cannot_count(items: int, seconds: float) -> None:
        raise RuntimeError("no room for more figures")

    batcher = Batcher(Gate(), name="m", max_batch_items=8, max_queue_items=8, measured=FAST, on_batch=cannot_count)
    batcher.start()
    batcher.submit(Asked(np.ones((2, 1, 1, 1), np.uint8), done))
    batcher.pump()
    batcher.close()
    [work] = done.works
    assert work.error is None
    assert work.outputs[0][:, 0].tolist() == [1.0, 1.0]


def test_room_reserved_counts_against_the_bound(make: Make, done: Outcomes) -> None:
    batcher = make(FAST, max_queue_items=4)
    batcher.reserve(3)
    with pytest.raises(QueueFull, match="3 of 4 items wait, 2 more came"):
        batcher.submit(Asked(images(1, 2), done))
    with pytest.raises(QueueFull):
        batcher.reserve(2)
    batcher.submit(Asked(images(1, 2, 3), done), reserved=True)
    batcher.pump()
    batcher.reserve(4)
    batcher.release(4)
    batcher.reserve(4)


def test_an_answer_that_cannot_be_delivered_harms_nobody_else(make: Make, done: Outcomes) -> None:
    def broken(work: Work) -> None:
        raise RuntimeError("no way to send this")

    batcher = make(FAST)
    batcher.submit(Asked(images(1), broken))
    batcher.submit(Asked(images(2), done))
    batcher.pump()


def test_every_work_ends_once_under_submissions_and_cancellations_from_many_threads(make: Make, done: Outcomes) -> None:
    batcher = make(SLOW, max_batch_items=5, max_queue_items=10_000)

    def client(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            work = Asked(images(*random.integers(0, 200, random.integers(1, 9)).tolist()), done)
            batcher.submit(work)
            batcher.hand_over()
            if random.random() < 0.3:
                batcher.cancel(work)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    done.wait_for(400)
    time.sleep(0.05)
    assert len(done.works) == len(set(done.works)) == 400
    for work in done.works:
        if work.error is None:
            assert work.outputs[0][:, 0].tolist() == work.images.ravel().tolist()


def test_instances_run_batches_side_by_side_and_put_one_large_request_together(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW, max_batch_items=4, instances=2)
    gate.held = True
    large = Asked(images(*range(8)), done)
    batcher.submit(large)
    assert batcher.pump() == -math.inf
    assert batcher.pump() == math.inf
    for _ in range(2):
        assert gate.entered.acquire(timeout=10), "both halves are in the model at the same time"
    gate.held = False
    for _ in range(2):
        gate.go_on.release()
    done.wait_for(1)
    assert large.outputs[0][:, 0].tolist() == list(range(8))
    assert sorted(gate.threads) == ["batcher-m-1", "batcher-m-2"]


def test_with_a_delay_a_batch_waits_for_company_and_no_longer(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(FAST, max_batch_items=4, max_delay_seconds=0.5, clock=clock)
    batcher.submit(Asked(images(1), done))
    assert batcher.pump() == clock.now + 0.5
    clock.now += 0.3
    batcher.submit(Asked(images(2), done))
    assert batcher.pump() == pytest.approx(clock.now + 0.2)
    assert gate.batches == []
    clock.now += 0.2
    assert batcher.pump() == math.inf
    assert gate.batches == [2]
    for value in range(5):
        assert batcher.submit(Asked(images(value), done)) == (value >= 3), "a full batch does not wait"
    assert batcher.pump() == clock.now + 0.5, "the one that is left over does"
    assert gate.batches == [2, 4]


def test_with_a_delay_the_rest_of_a_full_batch_that_was_cut_does_not_wait(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make({1: 3e-4, 2: 5e-4, 4: 9e-4, 8: 1.7e-3}, max_delay_seconds=60)
    for value in range(8):
        batcher.submit(Asked(images(value), done))
    assert batcher.pump() == -math.inf, "four of eight that were due are left"
    assert batcher.pump() == math.inf
    assert gate.batches == [4, 4]
    batcher.submit(Asked(images(9), done))
    assert 50 < batcher.pump() - time.monotonic() <= 60, "the next waits"
    batcher.hurry()


def test_a_deadline_ends_the_wait_for_company(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make({1: 0.01, 8: 0.02}, max_delay_seconds=0.5, clock=clock)
    batcher.submit(Asked(images(1), done))
    assert batcher.pump() == clock.now + 0.5
    batcher.submit(Asked(images(2), done, deadline=clock.now + 0.3))
    assert batcher.pump() == pytest.approx(clock.now + 0.15), "half of the time that it has"
    clock.now += 0.151
    batcher.pump()
    done.wait_for(2)
    assert [work.error for work in done.works] == [None, None]


def test_a_deadline_ends_the_wait_of_what_other_threads_submitted_too(make: Make, done: Outcomes) -> None:
    batcher = make(FAST, max_delay_seconds=60)
    for deadline in (math.inf, time.monotonic() + 4.0):
        batcher.submit(Asked(images(1), done, deadline=deadline))
        batcher.hand_over()
    done.wait_for(2)
    assert [work.error for work in done.works] == [None, None]


def test_in_a_hurry_nothing_waits_for_company(make: Make, done: Outcomes) -> None:
    batcher = make(FAST, max_delay_seconds=60)
    batcher.submit(Asked(images(1), done))
    batcher.hand_over()
    batcher.hurry()
    done.wait_for(1)
    batcher.submit(Asked(images(1), done))
    assert batcher.pump() == math.inf
    done.wait_for(2)


def test_a_request_without_a_deadline_lets_others_pass_only_for_so_long(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make({1: 1e-4}, max_batch_items=1, clock=clock)
    late = Asked(images(2), done, deadline=clock.now + 60)
    for work in (Asked(images(1), done), late, Asked(images(3), done, deadline=clock.now + PATIENCE_SECONDS / 2)):
        batcher.submit(work)
    clock.now += PATIENCE_SECONDS / 4
    batcher.submit(Asked(images(4), done, deadline=clock.now + PATIENCE_SECONDS))
    while batcher.queued_items:
        batcher.pump()
    assert [work.images.ravel().tolist() for work in done.works] == [[3], [1], [2], [4]]


def test_after_a_long_batch_those_who_had_their_answers_are_waited_for_a_moment(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make({1: 1.0, 2: 2.0, 4: 4.0}, max_batch_items=8, clock=clock)
    gate.held = True
    batcher.submit(Asked(images(1, 2, 3), done))
    batcher.pump()
    assert gate.entered.acquire(timeout=10)
    clock.now += 4.0
    gate.held = False
    gate.go_on.release()
    done.wait_for(1)
    while not batcher._idle:
        time.sleep(0.001)
    batcher.submit(Asked(images(1), done))
    assert batcher.pump() == pytest.approx(clock.now + 4.0 * LINGER)
    batcher.submit(Asked(images(2), done))
    assert batcher.pump() > clock.now
    batcher.submit(Asked(images(3), done))
    batcher.pump()
    done.wait_for(4)
    assert gate.batches == [3, 3], "as many are back as there were"
    batcher.submit(Asked(images(4), done))
    clock.now += 1.0
    batcher.pump()
    done.wait_for(5)
    assert gate.batches == [3, 3, 1], "nobody is waited for longer"


def test_what_other_threads_submit_waits_for_company_too(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(FAST, max_batch_items=4, max_delay_seconds=0.1)
    for value in (1, 2, 3):
        batcher.submit(Asked(images(value), done))
        batcher.hand_over()
    assert gate.batches == []
    done.wait_for(3)
    assert gate.batches == [3]
    assert gate.threads == ["batcher-m-1"]


def test_a_deadline_that_cannot_be_met_is_refused_at_once(make: Make, done: Outcomes) -> None:
    clock = Clock()
    batcher = make({1: 1.0, 2: 1.1, 4: 1.2}, max_batch_items=4, clock=clock)
    with pytest.raises(
        DeadlineExceeded, match=r"too near: by the measured times the answer would take 1100\.0 ms; .* 500\.0 ms at most"
    ):
        batcher.submit(Asked(images(1), done, deadline=clock.now + 0.5))
    with pytest.raises(DeadlineExceeded, match="the deadline has passed"):
        batcher.submit(Asked(images(1), done, deadline=clock.now))
    batcher.submit(Asked(images(1, 2, 3, 4), done, deadline=clock.now + 10))  # 1.2 s
    with pytest.raises(DeadlineExceeded):
        batcher.submit(Asked(images(5), done, priority=2, deadline=clock.now + 2))
    batcher.submit(Asked(images(5), done, deadline=clock.now + 2))  # goes ahead: an earlier deadline, the same priority
    assert batcher.queued_items == 5


def test_a_request_that_has_to_queue_leaves_time_for_more_than_the_smallest_batches(make: Make, done: Outcomes) -> None:
    clock = Clock()
    batcher = make({1: 1.0, 2: 1.0}, max_batch_items=2, clock=clock)
    batcher.submit(Asked(images(1), done, deadline=clock.now + 1.2))  # alone, it is in time: 1.1 s
    with pytest.raises(DeadlineExceeded, match=r"for a deadline in 3000\.0 ms at most 2000\.0 ms are accepted"):
        batcher.submit(Asked(images(2, 3), done, deadline=clock.now + 3))  # behind it, it would take 2.2 s
    batcher.submit(Asked(images(2, 3), done, deadline=clock.now + 4))


def test_the_deadline_of_a_request_that_is_not_in_it_does_not_shorten_a_batch(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make({1: 1.0, 2: 2.0, 4: 4.0}, max_batch_items=4, clock=clock)
    clock.now += TRUST_SECONDS + 1  # nobody is refused
    for value in range(4):
        batcher.submit(Asked(images(value), done))
    batcher.submit(Asked(images(9), done, priority=2, deadline=clock.now + 2.5))
    batcher._measured_at = clock.now
    batcher.pump()
    done.wait_for(5)
    assert gate.batches[0] == 4


def test_times_that_are_old_refuse_nobody(make: Make, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(SLOW, clock=clock)
    clock.now += TRUST_SECONDS + 1
    batcher.submit(Asked(images(1), done, deadline=clock.now + 0.5))
    batcher.pump()
    done.wait_for(1)
    assert done.works[0].error is None
    with pytest.raises(DeadlineExceeded):
        batcher.submit(Asked(images(1), done, deadline=clock.now))


def test_a_request_that_has_waited_too_long_to_be_in_time_costs_no_inference(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(SLOW, clock=clock)
    hopeless = Asked(images(1), done, deadline=clock.now + 1.5)
    batcher.submit(hopeless)
    clock.now += 0.6
    batcher.pump()
    assert isinstance(hopeless.error, DeadlineExceeded)
    assert gate.batches == []


def test_a_batch_is_no_longer_than_the_earliest_deadline_allows(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, clock=clock)
    for value in range(6):
        batcher.submit(Asked(images(value), done, deadline=clock.now + 100))
    batcher.submit(Asked(images(9), done, deadline=clock.now + 3))
    batcher.pump()
    done.wait_for(7)
    assert gate.batches[0] == 2
    assert done.works[0].images.ravel().tolist() == [9]
