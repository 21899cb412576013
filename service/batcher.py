"""The threads round the batch queue: who runs a batch, and where its answers go.

Who runs a batch. The transport calls `pump` when it has no more events waiting, and when `submit` says that a batch is full. If
the model is idle, `pump` takes a batch. A batch that is expected to take at most `INLINE_SECONDS` runs at once on the
transport's own thread: handing it over would change the GIL twice, which costs more than it gains. A longer one is cut to that
time where that costs little, and otherwise goes to the model's thread, which then takes the next batch by itself for as long as
there is one. Threads other than the transport's submit and then call `hand_over`, which never runs a batch on the caller.

What is promised to whoever submits: `done(work)` is called exactly once for each work that `submit` took in, from any thread,
with either `work.scores` or `work.error` set. Cancelling or failing one work touches no other work of its batch: a batch on which
the model raises is run again request by request, so that the poisonous one fails alone.

One lock guards the queue and the works' progress. Nothing is computed and no callback is made while it is held.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from service.batch_queue import BatchQueue, Entry, Part
from service.errors import ClientGone, DeadlinePassed, ModelFailed, QueueFull, RequestError
from service.trace_context import TraceContext

log = logging.getLogger(__name__)

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8[N,H,W,C] to float32[N,K]; called by one thread at a time."""

TraceBatch = Callable[[int, list[TraceContext], float, float], None]
"""Takes a batch's items, the traces of its requests that have one, and its start and end by the clock."""

INLINE_SECONDS = 0.001
SPLIT_COST = 1.25
"""How much more an item may cost in short batches on the transport's thread than in one long batch on the model's."""


class Work(Entry):
    """The items of one request on their way through a model. Times are `time.monotonic` seconds, 0 until they happen."""

    __slots__ = ("done", "ended", "error", "finished", "images", "remaining", "scores", "started", "submitted", "trace")

    def __init__(
        self,
        images: NDArray[np.uint8],
        done: "Callable[[Work], None]",
        priority: int = 1,
        deadline: float = math.inf,
        trace: TraceContext | None = None,
    ) -> None:
        """`images` is uint8[n,H,W,C]; `scores` becomes float32[n,K]."""
        super().__init__(len(images), priority, deadline)
        self.images = images
        self.done = done
        self.trace = trace
        self.scores: NDArray[np.float32] | None = None
        self.error: RequestError | None = None
        self.remaining = len(images)
        self.ended = False
        self.submitted = self.started = self.finished = 0.0


class BatchTimes:
    """What a batch of so many items takes when nothing gets in its way, for each power of two; begun with what warm-up measured.

    What is measured while serving includes waiting for the GIL and for cores that are busy with something else. Learning fast
    from short times and slowly from long ones keeps close to the time of the batch itself.
    """

    _DOWN = 0.5
    _UP = 0.02

    def __init__(self, measured: dict[int, float]) -> None:
        """`measured` holds seconds a batch by items; empty means that nothing is known and every batch counts as slow."""
        self._seconds = [math.inf] * (_bucket(max(measured, default=1)) + 1)
        for items, seconds in sorted(measured.items(), reverse=True):
            # What was not measured counts as the next larger batch that was.
            self._seconds[: _bucket(items) + 1] = [seconds] * (_bucket(items) + 1)

    def expected(self, items: int) -> float:
        """Seconds that a batch of `items` should take."""
        return self._seconds[min(_bucket(items), len(self._seconds) - 1)]

    def observe(self, items: int, seconds: float) -> None:
        """Learns from a batch that ran."""
        bucket = min(_bucket(items), len(self._seconds) - 1)
        known = self._seconds[bucket]
        weight = self._DOWN if seconds < known else self._UP
        self._seconds[bucket] = seconds if known == math.inf else known + weight * (seconds - known)

    def largest_within(self, seconds: float) -> int:
        """The most items, a power of two, whose batch should take at most `seconds`; 0 if not even one item's does."""
        fitting = [1 << bucket for bucket, expected in enumerate(self._seconds) if expected <= seconds]
        return max(fitting, default=0)


class Batcher:
    """Batches the works of one model. Construct, `start`, and in the end `close`."""

    def __init__(
        self,
        predict: Predict,
        *,
        name: str,
        max_batch_items: int,
        max_queue_items: int,
        measured: dict[int, float],
        on_batch: Callable[[int], None] = lambda items: None,
        trace_batch: TraceBatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`measured` is seconds a batch by items, from warm-up; `on_batch` is told the items of each batch that ran.

        `trace_batch` is told of each batch that ran before any of its works is done.
        """
        self._predict = predict
        self._name = name
        self._max_batch_items = max_batch_items
        self._times = BatchTimes(measured)
        self._on_batch = on_batch
        self._trace_batch = trace_batch
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: BatchQueue[Work] = BatchQueue(max_queue_items)
        self._idle = True
        self._inbox: SimpleQueue[list[Part[Work]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"batcher-{name}", daemon=True)

    def start(self) -> None:
        """Starts the model's thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the model's thread. Only when every work has ended."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def queued_items(self) -> int:
        """Items that wait."""
        return self._queue.items

    @property
    def inline(self) -> bool:
        """Whether a batch of one item would run on the transport's thread."""
        return self._times.expected(1) <= INLINE_SECONDS

    def reserve(self, items: int) -> None:
        """Keeps room in the queue for items that are to be submitted later. Raises QueueFull if there is none."""
        with self._lock:
            reserved = self._queue.reserve(items)
        if not reserved:
            raise self._full(items)

    def release(self, items: int) -> None:
        """Gives back room that was reserved."""
        with self._lock:
            self._queue.release(items)

    def submit(self, work: Work, *, reserved: bool = False) -> bool:
        """Queues a work; True says that a batch is full now, so that it is not worth waiting for more.

        `reserved` says that room was reserved for it. Raises QueueFull, and the work has not been taken in, if it does not fit.
        """
        work.submitted = self._clock()
        with self._lock:
            if reserved:
                self._queue.release(work.items)
            pushed = self._queue.push(work)
            full = self._queue.items >= self._max_batch_items
        if not pushed:
            raise self._full(work.items)
        return full

    def cancel(self, work: Work) -> None:
        """Ends a work, unless it has ended: the client is gone. What of it is in a running batch is computed and dropped."""
        with self._lock:
            self._queue.cancel(work)
        late = self._clock() >= work.deadline
        self._end(work, DeadlinePassed("the deadline passed") if late else ClientGone("the client cancelled the call"))

    def pump(self) -> float:
        """For the transport's thread: runs or hands over one batch, if the model is idle and something waits.

        Returns the clock's time at which it wants to be called again: at once if more waits for an idle model, the earliest
        deadline if what waits has one, infinity if nothing would change by calling.
        """
        most, inline = self._plan()
        parts = self._take(most)
        if parts and inline:
            self._run(parts)
            if self._queue.items:
                return -math.inf
        elif parts:
            self._inbox.put(parts)
        return self._queue.next_expiry()

    def hand_over(self) -> None:
        """For any other thread, after `submit`: wakes the model's thread if it is idle."""
        parts = self._take(self._max_batch_items)
        if parts:
            self._inbox.put(parts)

    def _work(self) -> None:
        while (parts := self._inbox.get()) is not None:
            while parts:
                self._run(parts)
                parts = self._take(self._max_batch_items)

    def _plan(self) -> tuple[int, bool]:
        """How many items the next batch may have, and whether it runs on the transport's thread."""
        times = self._times
        items = min(max(self._queue.items, 1), self._max_batch_items)
        seconds = times.expected(items)
        if seconds <= INLINE_SECONDS:
            return items, True
        # Several batches that each run inline are better than one that does not, unless the model gains much from large ones.
        short = min(times.largest_within(INLINE_SECONDS), items)
        if short and times.expected(short) / short <= SPLIT_COST * seconds / items:
            return short, True
        return self._max_batch_items, False

    def _take(self, most: int) -> list[Part[Work]]:
        """The next batch of at most `most` items, with the model marked busy; empty if it is busy or nothing waits.

        Ends what has expired.
        """
        with self._lock:
            expired = self._queue.expire(self._clock()) if self._queue.next_expiry() != math.inf else []
            parts = self._queue.take(most) if self._idle else []
            if parts:
                self._idle = False
        for work in expired:
            self._end(work, DeadlinePassed("the deadline passed while the request waited for inference"))
        return parts

    def _run(self, parts: list[Part[Work]]) -> None:
        """Runs a batch that `_take` gave, ends the works that are complete with it, and marks the model idle."""
        try:
            for part in parts:
                if not part.entry.started:
                    part.entry.started = self._clock()
            self._compute(parts)
        finally:
            with self._lock:
                self._idle = True

    def _compute(self, parts: list[Part[Work]]) -> None:
        parts = [part for part in parts if not part.entry.ended]
        if not parts:
            return
        start = self._clock()
        try:
            scores = self._scores(parts)
        except Exception:
            log.exception("model %s failed on a batch of %d requests", self._name, len(parts))
            scores = None
        if scores is None:
            self._isolate(parts)
            return
        end = self._clock()
        self._times.observe(len(scores), end - start)
        self._on_batch(len(scores))
        if self._trace_batch is not None:
            self._trace_batch(len(scores), [part.entry.trace for part in parts if part.entry.trace is not None], start, end)
        offset = 0
        for work, first, last in parts:
            answers = scores[offset : offset + last - first]
            offset += last - first
            if last - first == work.items:
                work.scores = answers
            else:
                if work.scores is None:
                    work.scores = np.empty((work.items, scores.shape[1]), np.float32)
                work.scores[first:last] = answers
            work.remaining -= last - first
            work.finished = end
            if work.remaining == 0:
                self._end(work, None)

    def _isolate(self, parts: list[Part[Work]]) -> None:
        """After a batch that raised: runs its requests one by one, and fails the one that is alone in it."""
        if len(parts) > 1:
            for part in parts:
                self._compute([part])
            return
        work = parts[0].entry
        with self._lock:
            self._queue.cancel(work)
        self._end(work, ModelFailed(f"model {self._name!r} failed on this request"))

    def _scores(self, parts: list[Part[Work]]) -> NDArray[np.float32]:
        """The model's answers, float32[items,K]."""
        if len(parts) == 1:
            images = parts[0].entry.images[parts[0].start : parts[0].stop]
        else:
            images = np.concatenate([part.entry.images[part.start : part.stop] for part in parts])
        scores = self._predict(images)
        if scores.ndim != 2 or len(scores) != len(images):
            raise ValueError(f"the model gave {scores.shape} for {len(images)} items")
        return scores

    def _end(self, work: Work, error: RequestError | None) -> None:
        with self._lock:
            if work.ended:
                return
            work.ended = True
        work.error = error
        try:
            work.done(work)
        except Exception:
            # A reply that cannot be sent is that request's trouble, never its batch mates'.
            log.exception("model %s: the answer of a request could not be delivered", self._name)

    def _full(self, items: int) -> QueueFull:
        waiting = self._queue.items + self._queue.reserved
        batches = -(-waiting // self._max_batch_items)
        seconds = batches * self._times.expected(self._max_batch_items)
        return QueueFull(
            f"the queue of model {self._name!r} is full: {waiting} of {self._queue.max_items} items wait, {items} more came",
            retry_after_seconds=min(max(seconds, 0.01), 30.0),
        )


def _bucket(items: int) -> int:
    """The exponent of the smallest power of two that holds `items`."""
    return (items - 1).bit_length()
