import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.batcher import Batcher
from service.engine.entry import Entry, HiddenEntry
from service.engine.scheduling import INLINE_BACKOFF_SECONDS, STALL_SECONDS
from service.errors import Cancelled, DeadlineExceeded, ModelFailed, RequestError
from tests.lack_of_threads import no_more_threads

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
        self.gives: Any = None  # in place of the sums
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
        if self.gives is not None:
            return [self.gives]
        total = images.reshape(len(images), -1).sum(axis=1).astype(np.float32)
        return [np.stack([total, -total], axis=1)]


class Asked:
    """An entry with its images, which tells a function when it is done."""

    def __init__(
        self, images: NDArray[np.uint8], tell: "Callable[[Asked], None]", priority: int = 1, deadline: float = math.inf
    ) -> None:
        self.entry = Entry(len(images), priority, deadline)
        self.images = images
        self.error: RequestError | None = None
        self._tell = tell

    @property
    def outputs(self) -> Sequence[NDArray[np.float32]]:
        entry = self.entry
        return [] if entry.outputs is None else entry.outputs.part(entry.row, entry.row + entry.items)

    def done(self, error: RequestError | None) -> None:
        self.error = error
        self._tell(self)


def submit(batcher: Batcher, asked: Asked, *, reserved: bool = False) -> bool:
    return batcher.submit(asked.entry, asked.images, asked.done, reserved=reserved)


class Outcomes:
    """Collects the works that are done."""

    def __init__(self) -> None:
        self.works: list[Asked] = []
        self._more = threading.Condition()

    def __call__(self, work: Asked) -> None:
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
            *[gate] * instances, name="m", version=3, max_batch_items=max_batch_items, max_queue_items=max_queue_items,
            measured=measured, **more,  # type: ignore[arg-type]
        )  # fmt: skip
        made.append(batcher)
        return batcher

    yield build
    for batcher in made:
        batcher.close()


def images(*values: int) -> NDArray[np.uint8]:
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def test_a_short_batch_runs_on_the_callers_thread_and_a_long_one_on_the_models(make: Make, gate: Gate, done: Outcomes) -> None:
    fast, slow = make(FAST), make(SLOW)
    submit(fast, Asked(images(1, 2), done))
    fast.pump()
    assert len(done.works) == 1
    submit(slow, Asked(images(3), done))
    slow.pump()
    done.wait_for(2)
    assert gate.threads == [threading.current_thread().name, "batcher-m-1"]
    assert fast.inline
    assert not slow.inline


def test_a_model_that_held_up_the_callers_thread_computes_on_its_own_for_a_while(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(FAST, clock=clock)

    def ask(value: int) -> None:
        submit(batcher, Asked(images(value), done))
        batcher.pump()
        done.wait_for(value)

    gate.takes = lambda: setattr(clock, "now", clock.now + 2 * STALL_SECONDS)
    ask(1)
    gate.takes = lambda: None
    ask(2)
    assert not batcher.inline
    clock.now += INLINE_BACKOFF_SECONDS
    ask(3)
    here = threading.current_thread().name
    assert gate.threads == [here, "batcher-m-1", here]
    assert batcher.inline


def test_a_batch_that_no_timer_can_wait_for_does_not_wait(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(FAST, max_batch_items=4, max_delay_seconds=60)
    with no_more_threads("timer") as refused:
        for value in range(1, 4):
            submit(batcher, Asked(images(value), done))
            batcher.dispatch()
            done.wait_for(value)
    assert refused == ["timer"] * 3
    assert set(gate.threads) == {"batcher-m-1"}
    assert all(asked.error is None for asked in done.works)
    submit(batcher, Asked(images(4), done))
    batcher.dispatch()
    assert batcher._timer_at < math.inf, "the next batch waits again"
    submit(batcher, Asked(images(5, 6, 7), done))
    batcher.dispatch()
    done.wait_for(5)


def test_without_any_thread_the_caller_runs_every_batch(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW, max_batch_items=1, max_queue_items=2000, max_delay_seconds=60)
    with no_more_threads():
        for value in range(1500):
            submit(batcher, Asked(images(value % 200), done))
        batcher.dispatch()
    assert len(done.works) == 1500
    assert set(gate.threads) == {threading.current_thread().name}


def test_dispatch_never_runs_a_batch_on_the_caller(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(FAST)
    submit(batcher, Asked(images(1), done))
    batcher.dispatch()
    done.wait_for(1)
    assert gate.threads == ["batcher-m-1"]


def test_what_is_more_than_one_batch_wakes_as_many_instances(make: Make, gate: Gate, done: Outcomes) -> None:
    gate.held = True
    batcher = make(FAST, max_batch_items=2, instances=3)
    submit(batcher, Asked(images(*range(5)), done))
    batcher.dispatch()
    for _ in range(3):
        assert gate.entered.acquire(timeout=10)
    gate.go_on.release(3)
    done.wait_for(1)
    assert sorted(gate.batches) == [1, 2, 2]


def test_an_idle_instance_holds_no_images(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW)
    poison = images(255)
    held = weakref.ref(poison)
    submit(batcher, Asked(poison, done))
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
        submit(batcher, Asked(pixels, done))
    while batcher.pump() == -math.inf:
        pass
    done.wait_for(3)
    assert gate.batches == [4, 4, 4, 1]
    by_size = {len(work.images): work for work in done.works}
    for pixels in sent:
        outputs = by_size[len(pixels)].outputs
        assert outputs[0][:, 0].tolist() == pixels.ravel().tolist()


def test_one_of_four_cancelled_while_the_model_runs_leaves_three_answered(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(SLOW)
    gate.held = True
    works = [Asked(images(value), done) for value in (1, 2, 3, 4)]
    for work in works:
        submit(batcher, work)
    batcher.pump()
    assert gate.entered.acquire(timeout=10)
    batcher.cancel(works[1].entry)
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
    submit(batcher, Asked(images(1), done))
    batcher.pump()
    assert gate.entered.acquire(timeout=10)
    waiting = Asked(images(2, 3), done)
    submit(batcher, waiting)
    batcher.cancel(waiting.entry)
    batcher.cancel(waiting.entry)
    assert batcher.queued_items == 0
    gate.go_on.release()
    done.wait_for(2)
    assert gate.batches == [1]
    assert [work is waiting for work in done.works] == [True, False]


def test_a_request_that_expires_in_the_queue_costs_no_inference(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(FAST, clock=clock)
    late, alive = Asked(images(1), done, deadline=clock.now + 1), Asked(images(2), done, deadline=clock.now + 3)
    submit(batcher, late)
    submit(batcher, alive)
    clock.now += 1
    batcher.pump()
    assert isinstance(late.error, DeadlineExceeded)
    assert gate.batches == [1]


def test_pump_asks_to_be_called_at_the_earliest_deadline_while_the_model_is_busy(make: Make, gate: Gate, done: Outcomes) -> None:
    clock = Clock()
    batcher = make(SLOW, clock=clock)
    gate.held = True
    submit(batcher, Asked(images(1), done))
    assert batcher.pump() == math.inf
    assert gate.entered.acquire(timeout=10)
    expiring = Asked(images(2), done, deadline=clock.now + 5)
    submit(batcher, expiring)
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
        submit(batcher, work)
    while batcher.pump() == -math.inf:
        pass
    assert [type(work.error) for work in works] == [type(None), ModelFailed, type(None), type(None), type(None)]
    assert "secret" not in str(works[1].error)
    assert [work.outputs[0][0, 0] for work in works if work.outputs] == [1, 2, 3, 4]
    assert gate.batches == [4, 1, 1, 1, 1, 1]


def test_a_model_that_gives_too_few_answers_fails_the_request_and_goes_on(done: Outcomes) -> None:
    batcher = Batcher(
        lambda images: [np.zeros((1, 2), np.float32)], name="m", version=3, max_batch_items=8, max_queue_items=8, measured=FAST
    )
    wrong, right = Asked(images(1, 2), done), Asked(images(3), done)
    for work in (wrong, right):
        submit(batcher, work)
        batcher.pump()
    assert isinstance(wrong.error, ModelFailed)


def test_whatever_fails_round_a_batch_everybody_is_told_and_the_next_is_answered(gate: Gate, make: Make, done: Outcomes) -> None:
    class NoMemoryForIt:
        """Outputs for the two items of a batch, which the place for those of the whole request cannot be made from."""

        def __len__(self) -> int:
            return 2

        @property
        def shape(self) -> tuple[int, ...]:
            raise MemoryError

    batcher = make(SLOW, max_batch_items=2)
    split, small = Asked(images(1, 2, 3), done), Asked(images(4), done)
    gate.gives = NoMemoryForIt()
    submit(batcher, split)
    batcher.dispatch()
    done.wait_for(1)
    gate.gives = None
    assert isinstance(split.error, ModelFailed)
    assert batcher.queued_items == 0, "nor does what was left of it wait"
    submit(batcher, small)
    batcher.dispatch()
    done.wait_for(2)
    assert small.outputs[0][:, 0].tolist() == [4.0]


def test_a_batch_that_cannot_be_counted_is_answered_all_the_same(done: Outcomes, caplog: pytest.LogCaptureFixture) -> None:
    def cannot_count(items: int, seconds: float) -> None:
        raise RuntimeError("no room for more figures")

    batcher = Batcher(Gate(), name="m", version=3, max_batch_items=8, max_queue_items=8, measured=FAST, on_batch=cannot_count)
    submit(batcher, Asked(np.ones((2, 1, 1, 1), np.uint8), done))
    batcher.pump()
    batcher.close()
    [work] = done.works
    assert work.error is None
    assert work.outputs[0][:, 0].tolist() == [1.0, 1.0]
    assert [record.message for record in caplog.records] == ["model m version 3: a batch could not be counted or traced"]


def test_an_answer_that_cannot_be_delivered_harms_no_other_request(make: Make, done: Outcomes) -> None:
    def broken(work: Asked) -> None:
        raise RuntimeError("no way to send this")

    batcher = make(FAST)
    submit(batcher, Asked(images(1), broken))
    submit(batcher, Asked(images(2), done))
    batcher.pump()


def test_every_entry_ends_once_under_submissions_and_cancellations_from_many_threads(make: Make, done: Outcomes) -> None:
    batcher = make(SLOW, max_batch_items=5, max_queue_items=10_000)

    def client(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            work = Asked(images(*random.integers(0, 200, random.integers(1, 9)).tolist()), done)
            submit(batcher, work)
            batcher.dispatch()
            if random.random() < 0.3:
                batcher.cancel(work.entry)

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
    submit(batcher, large)
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


def test_a_deadline_ends_the_wait_of_what_other_threads_submitted(make: Make, done: Outcomes) -> None:
    batcher = make(FAST, max_delay_seconds=60)
    for deadline in (math.inf, time.monotonic() + 4.0):
        submit(batcher, Asked(images(1), done, deadline=deadline))
        batcher.dispatch()
    done.wait_for(2)
    assert [work.error for work in done.works] == [None, None]


def test_after_a_flush_nothing_waits_for_others(make: Make, done: Outcomes) -> None:
    batcher = make(FAST, max_delay_seconds=60)
    submit(batcher, Asked(images(1), done))
    batcher.dispatch()
    batcher.flush()
    done.wait_for(1)
    submit(batcher, Asked(images(1), done))
    assert batcher.pump() == math.inf
    done.wait_for(2)


def test_what_other_threads_submit_waits_for_others_too(make: Make, gate: Gate, done: Outcomes) -> None:
    batcher = make(FAST, max_batch_items=4, max_delay_seconds=0.1)
    for value in (1, 2, 3):
        submit(batcher, Asked(images(value), done))
        batcher.dispatch()
    assert gate.batches == []
    done.wait_for(3)
    assert gate.batches == [3]
    assert gate.threads == ["batcher-m-1"]


def test_hidden_outputs_are_for_those_who_ask_also_in_one_batch_with_others(done: Outcomes) -> None:
    """Batches of four for three requests, of which the second asks, and shares both batches with the others."""
    asked: list[bool] = []

    def predict(images: NDArray[np.uint8], with_hidden: bool = False) -> list[NDArray[np.uint8]]:
        asked.append(with_hidden)
        return [images, images + 100, *([images + 200] if with_hidden else [])]

    batcher = Batcher(predict, name="m", version=3, max_batch_items=4, max_queue_items=64, measured=FAST)
    works = [Asked(images(*values), done) for values in ((1, 2, 3), (4, 5, 6), (7, 8, 9, 10))]
    works[1].entry = HiddenEntry(3)
    for work in works:
        submit(batcher, work)
    while batcher.queued_items:
        batcher.pump()
    done.wait_for(3)
    batcher.close()
    assert asked == [True, True, False]
    for work in works:
        np.testing.assert_array_equal(work.outputs[0], work.images)
        np.testing.assert_array_equal(work.outputs[1], work.images + 100)
    np.testing.assert_array_equal(works[1].outputs[2], works[1].images + 200)
