"""The threads round the batch queue: who runs a batch, and where its answers go.

A model has one or more instances: sessions of ONNX Runtime, each with a thread of its own and each running one batch at a time.

Who runs a batch. The transport calls `pump` when it has no more events waiting, and when `submit` says that a batch is full. If
an instance is idle, `pump` takes a batch. A batch that is expected to take at most `INLINE_SECONDS` runs at once on the
transport's own thread: handing it over would change the GIL twice, which costs more than it gains. A longer one is cut to that
time where that costs little, unless the request that is first is long by itself. Otherwise it goes to the instance's thread,
which then takes the next batch by itself for as long as there is one. Threads other than the transport's submit and then call
`hand_over`, which never runs a batch on the caller.

When. At once, unless `max_delay_seconds` lets requests wait for company: then a batch is due when it is full, when the oldest
request has waited so long, or when one has waited for half of the time until its deadline. One thing is always waited for: after a
batch too long for the transport's thread, clients that send their next request when they have their answer are about to be back.
Until as many items wait as that batch had, the next is not formed for LINGER of its time; else the first to be back would be
computed alone while all others wait, over and over. The transport's poll is the clock for all this; what other threads submitted is
not known there, and gets a timer.

In which order. By priority, then by deadline; but a deadline further away than PATIENCE_SECONDS counts as one so far away, and so
does none at all: among requests with time to spare who came first is first, and nobody waits for ever behind those in a hurry.

Who is refused. A request whose deadline, by the measured times, cannot well be met behind what is ahead of it is refused when it
comes; one that has waited until it cannot be met any more is dropped before it costs inference; and a batch is made no longer
than its earliest deadline allows. So under overload what is answered is answered in time.

What is promised to whoever submits: `done()` is called exactly once for each work that `submit` took in, from any thread,
with either `outputs` or `error` set. Cancelling or failing one work touches no other work of its batch: a batch on which
the model raises is run again request by request, so that the poisonous one fails alone.

One lock guards the queue and the works' progress. Nothing is computed and no callback is made while it is held.
"""

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.batch_latencies import BatchLatencies
from service.engine.queue import BatchQueue, Entry, Part
from service.errors import Cancelled, DeadlineExceeded, ModelFailed, QueueFull, RequestError, first_line
from service.observability.trace_context import TraceContext

log = logging.getLogger(__name__)

Predict = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]
"""One array [n,...] of n items to one array [n,...] an output; called by one thread at a time."""

TraceBatch = Callable[[int, list[TraceContext], float, float], None]
"""Takes a batch's items, the traces of its requests that have one, and its start and end by the clock."""

INLINE_SECONDS = 0.001
MANY_SECONDS = 0.0003
"""As INLINE_SECONDS, for one request of several items: to take the next such request in and to decode it is work enough to do
meanwhile that handing the batch over pays."""

SPLIT_COST = 1.25
"""How much more an item may cost in short batches on the transport's thread than in one long batch on an instance's."""

STALL_SECONDS = 0.1
REPRIEVE_SECONDS = 60.0
"""A batch that took so long on the transport's thread held up all other calls for that time: how long a model takes can depend on
what it is asked. For a while, that model then computes on its instance's thread."""

LINGER = 0.02
"""The share of a batch's time that the next may be waited for."""

QUEUE_SHARE = 2 / 3
"""A request that has to queue is taken in if it should be answered within this share of the time that it has. Requests that wait
until their deadlines are near leave no time for any but the smallest batches, which cost the most an item."""

PATIENCE_SECONDS = 5.0
"""So long a request lets others pass whose deadlines are nearer."""

TRUST_SECONDS = 10.0
"""For so long after a batch the measured times are believed, and requests refused by them."""


class Work(Entry, ABC):
    """The items of one request on their way through a model. Times are `time.monotonic` seconds, 0 until they happen.

    `images` is [n,...], one row an item, to be set before it is submitted; `outputs` becomes one array [n,...] for each of the
    model's.
    """

    __slots__ = ("ended", "error", "finished", "images", "outputs", "remaining", "started", "submitted", "trace")
    images: NDArray[Any]

    def __init__(self, items: int, priority: int = 1, deadline: float = math.inf, trace: TraceContext | None = None) -> None:
        super().__init__(items, priority, deadline)
        self.trace = trace
        self.outputs: Sequence[NDArray[Any]] = ()
        self.error: RequestError | None = None
        self.remaining = items
        self.ended = False
        self.submitted = self.started = self.finished = 0.0

    @abstractmethod
    def done(self) -> None:
        """Called once, from any thread, when there are `outputs`, or an `error`."""


@dataclass(eq=False, slots=True)
class _Batch:
    """What an instance is to run, and the clock's time at which it should be done."""

    predict: Predict
    parts: list[Part[Work]]
    until: float


class Batcher:
    """Batches the works of one model. Construct, `start`, and in the end `close`."""

    def __init__(
        self,
        *instances: Predict,
        name: str,
        max_batch_items: int,
        max_queue_items: int,
        measured: dict[int, float],
        max_delay_seconds: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda items, seconds: None,
        trace_batch: TraceBatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`measured` is seconds a batch by items, from warm-up; `on_batch` is told items and seconds of each batch that ran.

        `trace_batch` is told of each batch that ran before any of its works is done.
        """
        self._name = name
        self._times = BatchLatencies(measured)
        self.max_batch_items = self._times.most_worthwhile(max_batch_items)
        self._max_delay_seconds = max_delay_seconds
        self._on_batch = on_batch
        self._trace_batch = trace_batch
        self._clock = clock
        self._measured_at = clock()
        self._inline_from = -math.inf
        self._inline_since = math.inf  # while the transport's thread computes
        self._lock = threading.Lock()
        self._queue: BatchQueue[Work] = BatchQueue(max_queue_items)
        self._instances = len(instances)
        self._idle = list(instances)
        self._running: list[_Batch] = []
        self._timer_at = math.inf
        self._owed = 0  # items that were due, and that a batch had no room for
        self._company = 0  # items that may be about to be back, and until when that is waited for
        self._company_until = -math.inf
        self._inbox: SimpleQueue[_Batch | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{name}-{number}", daemon=True)
            for number in range(1, len(instances) + 1)
        ]

    def start(self) -> None:
        """Starts the instances' threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the instances' threads. Only when every work has ended."""
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def queued_items(self) -> int:
        """Items that wait."""
        return self._queue.items

    @property
    def inline(self) -> bool:
        """Whether a batch of one item would run on the transport's thread."""
        return self._times.expected(1) <= INLINE_SECONDS and self._inline_from <= self._clock()

    @property
    def inline_seconds(self) -> float:
        """For how long the transport's thread has been computing the batch that it is at, if it is at one."""
        return max(0.0, self._clock() - self._inline_since)

    def measured(self) -> dict[int, float]:
        """Seconds that a batch takes by items in it: what warm-up measured, kept up while serving."""
        return self._times.measured()

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

        `reserved` says that room was reserved for it: that has been given back when this returns or raises.

        Raises:
            QueueFull: it does not fit.
            DeadlineExceeded: by the measured times it cannot be answered before its deadline.
                In either case the work has not been taken in.
        """
        now = work.submitted = self._clock()
        work.turn = min(work.deadline, now + PATIENCE_SECONDS)
        with self._lock:
            if reserved:
                self._queue.release(work.items)
            too_late = self._too_late(work, now) if work.deadline != math.inf else ""
            pushed = not too_late and self._queue.push(work)
            full = self._queue.items >= self.max_batch_items
        if too_late:
            raise DeadlineExceeded(too_late)
        if not pushed:
            raise self._full(work.items)
        return full

    def cancel(self, work: Work) -> None:
        """Ends a work, unless it has ended: the client is gone. What of it is in a running batch is computed and dropped."""
        with self._lock:
            self._queue.cancel(work)
        late = self._clock() >= work.deadline
        self.fail(work, DeadlineExceeded("the deadline passed") if late else Cancelled("the client cancelled the call"))

    def fail(self, work: Work, error: RequestError) -> None:
        """Ends a work that does not wait, unless it has ended."""
        self._end([work], error)

    def pump(self) -> float:
        """For the transport's thread: runs or hands over one batch, if an instance is idle and a batch is due.

        Returns the clock's time at which it wants to be called again: at once if more is due for an idle instance, when the next
        batch is due or the earliest deadline passes otherwise, infinity if nothing would change by calling.
        """
        most, inline = self._plan()
        batch = self._take(most)
        if batch is not None:
            if inline:
                self._inline_since = self._clock()
                self._run(batch)
                if self.inline_seconds > STALL_SECONDS:
                    self._inline_from = self._clock() + REPRIEVE_SECONDS
                self._inline_since = math.inf
            else:
                self._inbox.put(batch)
        with self._lock:
            expiry = self._queue.next_expiry()
            due = self._due() if self._queue.items and self._idle else math.inf
        return -math.inf if due <= self._clock() else min(due, expiry)

    def hand_over(self) -> None:
        """For any other thread, after `submit`: wakes as many instances' threads as there are batches, now or when one is due."""
        while (batch := self._take(self.max_batch_items)) is not None:
            self._inbox.put(batch)
        self._hand_over_when_due()

    def hurry(self) -> None:
        """Lets nothing wait for company any more, for a server that drains."""
        with self._lock:
            self._max_delay_seconds, self._owed = 0.0, 0
        self.hand_over()

    def _hand_over_when_due(self) -> None:
        with self._lock:
            if not self._queue.items or not self._idle:
                return  # an instance that is busy looks again by itself
            due = self._due()
            if due >= self._timer_at:
                return
            self._timer_at = due
            timer = threading.Timer(max(0.0, due - self._clock()), self._on_timer)
        timer.daemon = True
        timer.start()

    def _on_timer(self) -> None:
        self._timer_at = math.inf
        self.hand_over()

    def _work(self) -> None:
        while (batch := self._inbox.get()) is not None:
            while batch is not None:  # in the end nothing here holds a batch, and so its pictures
                self._run(batch)
                batch = self._take(self.max_batch_items)
            self._hand_over_when_due()

    def _plan(self) -> tuple[int, bool]:
        """How many items the next batch may have, and whether it runs on the transport's thread.

        Looks at the queue without the lock: `_take` sees to what has changed meanwhile.
        """
        times = self._times
        first = next(iter(self._queue), None)
        left = first.items - first.taken if first is not None else 0
        longest = MANY_SECONDS if left > 1 else INLINE_SECONDS
        if left > self.max_batch_items or times.expected(left) > longest or self._inline_from > self._clock():
            return self.max_batch_items, False  # it is long whatever it is cut into, and the next can be read meanwhile
        items = min(max(self._queue.items, 1), self.max_batch_items)
        seconds = times.expected(items)
        if seconds <= INLINE_SECONDS:
            return items, True
        # Several batches that each run inline are better than one that does not, unless the model gains much from large ones.
        short = min(times.largest_within(INLINE_SECONDS), items)
        if short and times.expected(short) / short <= SPLIT_COST * seconds / items:
            return short, True
        return self.max_batch_items, False

    def _due(self) -> float:
        """When the next batch is to be formed of what waits."""
        waiting = self._queue.items
        if waiting >= self.max_batch_items or self._owed:
            return -math.inf
        due = self._company_until if waiting < self._company else -math.inf
        if self._max_delay_seconds:
            delay = self._max_delay_seconds
            latest = (min(work.submitted + delay, (work.submitted + work.deadline) / 2) for work in self._queue)
            due = max(due, min(latest, default=math.inf))
        return due

    def _trusted(self, now: float) -> bool:
        """Whether the measured times are fresh. Old ones refuse nobody: if they were wrong, nothing would ever correct them."""
        return now - self._measured_at <= TRUST_SECONDS and self._times.expected(1) != math.inf

    def _too_late(self, work: Work, now: float) -> str:
        """Why a work that comes now is not to be taken in, if it should not be in time; else empty."""
        left = work.deadline - now
        if left <= 0:
            return "the deadline has passed"
        if not self._trusted(now):
            return ""
        wait = 0.0 if self._idle else max(0.0, min(batch.until for batch in self._running) - now)
        most = QUEUE_SHARE * left if self._queue.items else left
        takes = wait + self._seconds(self._queue.items + work.items)
        if takes > most:  # now it is worth looking who is really ahead of it
            takes = wait + self._seconds(self._queue.ahead(work) + work.items)
        if takes <= most:
            return ""
        return (
            f"the deadline is too near: by the measured times the answer would take {1000 * takes:.1f} ms; "
            f"for a deadline in {1000 * left:.1f} ms at most {1000 * most:.1f} ms are accepted"
        )

    def _seconds(self, items: int) -> float:
        """What so many items should take, in batches on all instances."""
        whole, rest = divmod(items, self.max_batch_items)
        likely = self._times.likely
        return (whole * likely(self.max_batch_items) if whole else 0.0) / self._instances + (likely(rest) if rest else 0.0)

    def _take(self, most: int) -> _Batch | None:
        """The next batch of at most `most` items, for an idle instance; None if none is idle or nothing is due.

        Ends what has expired, or cannot be answered in time any more. The batch is no longer than the earliest deadline allows.
        """
        expired: list[Work] = []
        batch = None
        with self._lock:
            now = self._clock()
            if self._queue.next_expiry() != math.inf:
                trusted = self._trusted(now)
                expired = self._queue.expire(now + self._times.likely(1) if trusted else now)
                if trusted:
                    most = min(most, max(1, self._times.largest_likely_within(self._queue.next_expiry_of(most) - now)))
            if self._idle and self._queue.items and self._due() <= now:
                until = now + self._times.likely(min(most, self._queue.items))
                due_items = self._owed or min(self._queue.items, self.max_batch_items)
                batch = _Batch(self._idle.pop(), self._queue.take(most), until)
                self._running.append(batch)
                if self._max_delay_seconds:
                    self._owed = max(0, min(due_items - most, self._queue.items))
        if expired:
            self._end(expired, DeadlineExceeded("while the request waited for inference, its deadline passed or came too near"))
        return batch

    def _run(self, batch: _Batch) -> None:
        """Runs a batch that `_take` gave, ends the works that are complete with it, and marks its instance idle."""
        try:
            now = self._clock()
            for work, _, _ in batch.parts:
                if not work.started:
                    work.started = now
            self._compute(batch.predict, batch.parts)
        except Exception:
            # Nothing here is meant to raise. If it does, as for want of memory, nobody waits for ever, and the thread goes on.
            log.exception("model %s: a batch of %d requests could not be answered", self._name, len(batch.parts))
            with self._lock:
                for part in batch.parts:
                    self._queue.cancel(part.entry)
            self._end([part.entry for part in batch.parts], ModelFailed("the request failed inside the server"))
        finally:
            with self._lock:
                self._running.remove(batch)
                self._idle.append(batch.predict)

    def _compute(self, predict: Predict, parts: list[Part[Work]]) -> None:
        parts = [part for part in parts if not part.entry.ended]
        if not parts:
            return
        start = self._clock()
        try:
            outputs = self._outputs(predict, parts)
        except Exception as error:
            # Whoever sends what a model cannot take may send it for hours: a line each, the traceback for who looks closer.
            debug = log.isEnabledFor(logging.DEBUG)
            log.error("model %s failed on a batch of %d requests: %s", self._name, len(parts), first_line(error), exc_info=debug)
            outputs = None
        if outputs is None:
            self._isolate(predict, parts)
            return
        end = self._clock()
        items = len(outputs[0])
        self._times.observe(items, end - start)
        self._measured_at = end
        if end - start > INLINE_SECONDS:
            self._company, self._company_until = items, end + LINGER * (end - start)
        try:
            self._on_batch(items, end - start)
            if self._trace_batch is not None:
                self._trace_batch(items, [part.entry.trace for part in parts if part.entry.trace is not None], start, end)
        except Exception:
            log.exception("model %s: a batch could not be counted or traced", self._name)
        offset = 0
        complete = []
        for part in parts:
            work, first, last = part
            answers = outputs if len(parts) == 1 else [output[offset : offset + last - first] for output in outputs]
            offset += last - first
            if last - first == work.items:
                work.outputs = answers
                work.finished = end
                complete.append(work)
            elif self._put_together(part, answers, end):
                complete.append(work)
        self._end(complete, None)

    def _put_together(self, part: Part[Work], answers: Sequence[NDArray[Any]], end: float) -> bool:
        """Takes in the answers to a part of a work; whether they are its last. Other instances may be at other parts of it."""
        work, first, last = part
        with self._lock:
            if not work.outputs:
                work.outputs = [np.empty((work.items, *answer.shape[1:]), answer.dtype) for answer in answers]
            for output, answer in zip(work.outputs, answers, strict=True):
                output[first:last] = answer
            work.remaining -= last - first
            work.finished = max(work.finished, end)
            return work.remaining == 0

    def _isolate(self, predict: Predict, parts: list[Part[Work]]) -> None:
        """After a batch that raised: runs its requests one by one, and fails the one that is alone in it."""
        if len(parts) > 1:
            for part in parts:
                self._compute(predict, [part])
            return
        work = parts[0].entry
        with self._lock:
            self._queue.cancel(work)
        self.fail(work, ModelFailed(f"model {self._name!r} failed on this request"))

    def _outputs(self, predict: Predict, parts: list[Part[Work]]) -> Sequence[NDArray[Any]]:
        """The model's answers, one array [items,...] an output."""
        if len(parts) == 1:
            images = parts[0].entry.images[parts[0].start : parts[0].stop]
        else:
            images = np.concatenate([work.images[start:stop] for work, start, stop in parts])
        outputs = predict(images)
        for output in outputs:
            if len(output) != len(images):
                raise ValueError(f"the model gave {output.shape} for {len(images)} items")
        return outputs

    def _end(self, works: Sequence[Work], error: RequestError | None) -> None:
        with self._lock:
            ending = [work for work in works if not work.ended]
            for work in ending:
                work.ended = True
        for work in ending:
            work.error = error
            try:
                work.done()
            except Exception:
                # A reply that cannot be sent is that request's trouble, never its batch mates'.
                log.exception("model %s: the answer of a request could not be delivered", self._name)

    def _full(self, items: int) -> QueueFull:
        waiting = self._queue.items + self._queue.reserved
        batches = -(-waiting // self.max_batch_items)
        seconds = batches * self._times.expected(self.max_batch_items) / self._instances
        return QueueFull(
            f"the queue of model {self._name!r} is full: {waiting} of {self._queue.max_items} items wait, {items} more came",
            retry_after_seconds=min(max(seconds, 0.01), 30.0),
        )
