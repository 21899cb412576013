"""Runs batches, short ones inline on the gRPC thread and others on a thread of an instance, and delivers their outcomes.

A model has one or more instances, each of which runs one batch at a time, in an ONNX Runtime session.

The transport's thread calls `pump` when it has no more events waiting, and when `submit` says that a batch is full. `pump` runs a
batch itself or wakes an instance's thread. An instance's thread takes the next batch by itself for as long as one is due. All other
threads submit and then call `dispatch`, which never runs a batch on the caller. The poll of the transport is the clock for batches
that are due later; what other threads submitted is not known there, and gets a timer.

The promise to the submitter: `on_done` is called exactly once for each entry that `submit` accepted, from any thread. Cancelling
or failing one entry touches no other entry of its batch: a batch on which the model raises is run again request by request, so that
the failing request fails alone.

One lock guards the scheduler and the entries' progress. Nothing is computed and no callback is called while it is held.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.entry import DONE, Entry, OnDone
from service.engine.instance_threads import InstanceThreads
from service.engine.outputs import BatchOutputs
from service.engine.queue import Part
from service.engine.scheduling import Batch, Scheduler
from service.errors import Cancelled, DeadlineExceeded, ModelFailed, RequestError, first_line
from service.observability.trace_context import TraceContext

log = logging.getLogger(__name__)

Predict = Callable[..., Sequence[NDArray[Any]]]
"""One array [n, *shape] of n items to one array [n, *shape] an output; called by one thread at a time.

A second argument, True, is given if an entry wants the hidden outputs, too: they come after the others. It may raise RequestError
for items that it does not take.
"""

TraceBatch = Callable[[int, list[TraceContext], float, float], None]
"""Takes a batch's items, the traces of its requests that have one, and its start and end on the clock."""


def _ignore(items: int, seconds: float) -> None:
    """In place of `on_batch`."""


def _delivered(error: RequestError | None) -> None:
    """In place of an `on_done` that has been called."""


class Batcher:
    """Runs the requests of one model in batches. In the end, `close` it."""

    def __init__(
        self,
        *instances: Predict,
        name: str,
        version: int,
        max_batch_items: int,
        max_queue_items: int,
        measured: dict[int, float],
        max_delay_seconds: float = 0.0,
        on_batch: Callable[[int, float], None] = _ignore,
        trace_batch: TraceBatch | None = None,
        clock: Callable[[], float] = time.monotonic,
        may_run_inline: bool = True,
    ) -> None:
        """`name` and `version` are the model's; `measured` is seconds a batch by items, from warm-up.

        `may_run_inline` is as in `Scheduler`.
        `on_batch` is called with items and seconds of each batch that ran, `trace_batch` likewise, before any outcome is delivered.
        """
        self._name = name
        self._logged = f"model {name} version {version}"
        self._instances = instances
        self._on_batch = on_batch
        self._trace_batch = trace_batch
        self._clock = clock
        self._lock = threading.Lock()
        self._scheduler = Scheduler(
            name, len(instances), max_batch_items, max_queue_items, measured, max_delay_seconds, clock(), may_run_inline
        )  # fmt: skip
        self.max_batch_items = self._scheduler.max_batch_items
        self._inline_since = math.inf  # while the transport's thread runs a batch
        self._timer_at = math.inf
        self._threads: InstanceThreads[Batch] = InstanceThreads(f"batcher-{name}", self._run_instance)

    def close(self) -> None:
        """Ends the instances' threads and lets go of the model and the metrics. Only when every entry is done."""
        self._threads.close()
        while self._scheduler.running:  # on the transport's thread, a batch whose requests have all been cancelled
            time.sleep(0.01)
        self._instances = ()
        self._on_batch = _ignore  # the metrics refer back to the batcher
        self._trace_batch = None

    @property
    def queued_items(self) -> int:
        """Items in the queue."""
        return self._scheduler.queue.items

    @property
    def inline(self) -> bool:
        """Whether a batch of one item would run on the transport's thread."""
        return self._scheduler.runs_inline(self._clock())

    @property
    def inline_seconds(self) -> float:
        """For how long the transport's thread has been running its current batch; 0 if it runs none."""
        return max(0.0, self._clock() - self._inline_since)

    @property
    def running_seconds(self) -> float:
        """For how long the longest running batch has been running; 0 if none runs."""
        return max(0.0, self._clock() - self._scheduler.running_since)

    def measured(self) -> dict[int, float]:
        """Seconds a batch by items: measured at warm-up, corrected while serving."""
        return self._scheduler.latencies.measured()

    def reserve(self, entry: Entry) -> None:
        """Reserves room in the queue for an entry that will be submitted later. Raises QueueFull if there is none."""
        with self._lock:
            self._scheduler.reserve(entry)
        if self._scheduler.displaced:
            self._end_displaced()

    def release(self, entry: Entry) -> None:
        """Gives back the room reserved for an entry."""
        with self._lock:
            self._scheduler.queue.release(entry)

    def check_reserved(self, entry: Entry) -> None:
        """Raises QueueFull if the room that was reserved for an entry has been taken away."""
        with self._lock:
            self._scheduler.check_reserved(entry)

    def submit(self, entry: Entry, images: NDArray[Any], on_done: OnDone, *, reserved: bool = False) -> bool:
        """Queues an entry with its images, [n, *shape]; True if a batch is full now, so that waiting for more gains nothing.

        `reserved` says that room was reserved for it; it has been given back when this returns or raises.

        Raises:
            QueueFull: it does not fit, or others needed the room more that was reserved for it.
            DeadlineExceeded: by the measured times it cannot be answered before its deadline.
                In either case `on_done` will not be called.
        """
        now = self._clock()
        with self._lock:
            full = self._scheduler.add(entry, now, reserved=reserved)
            entry.images = images
            entry.on_done = on_done
        if self._scheduler.displaced:
            self._end_displaced()
        return full

    def cancel(self, entry: Entry) -> None:
        """Ends a queued or running entry, unless it is done. Parts of it in a running batch are computed and dropped."""
        with self._lock:
            self._scheduler.queue.cancel(entry)
        late = self._clock() >= entry.deadline
        self._end([entry], DeadlineExceeded("the deadline passed") if late else Cancelled("the client cancelled the call"))

    def pump(self) -> float:
        """For the transport's thread: runs or hands over one batch, if one is due and an instance is idle.

        Returns the time on the clock at which to call it again: -inf for at once, inf if no time makes a difference.
        """
        batch = self._take(on_transport=True)
        if batch is not None:
            if batch.inline:
                self._inline_since = batch.taken_at
                self._run(batch)
                self._inline_since = math.inf
            else:
                self._hand_over(batch)
        with self._lock:
            return self._scheduler.wake_at(self._clock())

    def dispatch(self) -> None:
        """For any other thread, after `submit`: wakes an instance's thread for each batch, now or when it is due."""
        while (batch := self._take(on_transport=False)) is not None:
            self._hand_over(batch)
        self._set_timer()

    def flush(self) -> None:
        """Lets no request wait for others to fill its batch any more, for a server that drains."""
        with self._lock:
            self._scheduler.flush()
        self.dispatch()

    def _set_timer(self) -> None:
        """Has the next batch formed when it is due; at once if the system has no thread that could wait for that."""
        while (due := self._start_timer()) is not None:
            batch = self._take(on_transport=False, now=due)
            if batch is not None:
                self._hand_over(batch)

    def _start_timer(self) -> float | None:
        """Starts a timer if one is needed. Returns the time on the clock at which the next batch is due, if that fails."""
        with self._lock:
            now, due = self._clock(), self._scheduler.due_at()  # infinite while all instances are busy: each looks again by itself
            if due >= self._timer_at:
                return None
            self._timer_at = due
        try:
            timer = threading.Timer(max(0.0, due - now), self._on_timer)
            timer.daemon = True
            timer.start()
        except (RuntimeError, MemoryError) as error:
            log.error("%s: no thread for a timer can be started: %s", self._logged, error)
            self._timer_at = math.inf
            return max(due, now)
        return None

    def _on_timer(self) -> None:
        self._timer_at = math.inf
        self.dispatch()

    def _hand_over(self, batch: Batch) -> None:
        if not self._threads.hand_over(batch):
            self._run(batch)  # late answers are better than none

    def _run_instance(self) -> None:
        while (batch := self._threads.next()) is not None:
            while batch is not None:  # leaves nothing here that would keep images alive
                self._run(batch)
                batch = self._take(on_transport=False)
            self._set_timer()
            self._threads.rest()

    def _take(self, *, on_transport: bool, now: float | None = None) -> Batch | None:
        """The next batch, if one is due now, or at the time given, and an instance is idle. Ends the entries that expired."""
        with self._lock:
            expired, batch = self._scheduler.take(self._clock() if now is None else now, on_transport=on_transport)
        if expired:
            self._end(expired, DeadlineExceeded("the deadline passed, or could no longer be met, in the queue"))
        return batch

    def _run(self, batch: Batch) -> None:
        """Runs a batch, ends the entries that are complete with it, and gives its instance back to the scheduler."""
        try:
            start = self._clock()
            for entry, _, _ in batch.parts:
                if not entry.started:
                    entry.started = start
            self._compute(self._instances[batch.instance], batch.parts)
        except Exception:
            # Nothing here should raise. If it does, as for lack of memory, every request gets an outcome, and the thread goes on.
            log.exception("%s: a batch of %d requests could not be answered", self._logged, len(batch.parts))
            self._drop([part.entry for part in batch.parts], ModelFailed("the request failed inside the server"))
        finally:
            with self._lock:
                self._scheduler.finish(batch, self._clock())

    def _compute(self, predict: Predict, parts: list[Part]) -> None:
        parts = [part for part in parts if part.entry.state is not DONE]
        if not parts:
            return
        start = self._clock()
        refusal: RequestError | None = None
        try:
            outputs = _predict(predict, parts)
        except RequestError as error:
            outputs, refusal = None, error
        except Exception as error:
            # A client may send such requests for hours: a line for each, the traceback for debugging.
            debug = log.isEnabledFor(logging.DEBUG)
            log.error("%s failed on a batch of %d requests: %s", self._logged, len(parts), first_line(error), exc_info=debug)
            outputs = None
        if outputs is None:
            self._isolate(predict, parts, refusal)
            return
        end = self._clock()
        self._observe(parts, len(outputs[0]), start, end)
        batch = BatchOutputs(outputs)
        row = 0
        complete = []
        for part in parts:
            entry, first, last = part
            items = last - first
            if items == entry.items:
                entry.outputs = batch
                entry.row = row
                entry.finished = end
                complete.append(entry)
            elif self._add_part(part, batch.part(row, row + items), end):
                complete.append(entry)
            row += items
        self._end(complete, None)

    def _observe(self, parts: list[Part], items: int, start: float, end: float) -> None:
        with self._lock:
            self._scheduler.observe(items, start, end)
        try:
            self._on_batch(items, end - start)
            if self._trace_batch is not None:
                self._trace_batch(items, [part.entry.trace for part in parts if part.entry.trace is not None], start, end)
        except Exception:
            log.exception("%s: a batch could not be counted or traced", self._logged)

    def _isolate(self, predict: Predict, parts: list[Part], refusal: RequestError | None) -> None:
        """After a batch that raised: runs its requests one by one, and fails a request that is alone in its batch.

        With `refusal`, if the model raised that: an item is not what it takes.
        """
        if len(parts) > 1:
            for part in parts:
                self._compute(predict, [part])
        else:
            self._drop([parts[0].entry], refusal or ModelFailed(f"model {self._name!r} failed on this request"))

    def _add_part(self, part: Part, rows: Sequence[NDArray[Any]], end: float) -> bool:
        """Copies the outputs for a part of an entry; True if the entry is complete. Other instances may run other parts of it."""
        entry, first, last = part
        with self._lock:
            if entry.outputs is None:
                entry.outputs = BatchOutputs([np.empty((entry.items, *output.shape[1:]), output.dtype) for output in rows])
            for output, values in zip(
                entry.outputs.arrays, rows, strict=False
            ):  # hidden ones, in a batch with others that want them
                output[first:last] = values
            entry.remaining -= last - first
            entry.finished = max(entry.finished, end)
            return entry.remaining == 0

    def _drop(self, entries: list[Entry], error: RequestError) -> None:
        """Fails entries of a batch, and takes what is left of them out of the queue."""
        with self._lock:
            for entry in entries:
                self._scheduler.queue.cancel(entry)
        self._end(entries, error)

    def _end_displaced(self) -> None:
        """Fails the entries that had to make room for a client that holds less of the queue."""
        with self._lock:
            displaced, self._scheduler.displaced = self._scheduler.displaced, []
            errors = [self._scheduler.queue_full(entry) for entry in displaced]
        for entry, error in zip(displaced, errors, strict=True):
            self._end([entry], error)

    def _end(self, entries: list[Entry], error: RequestError | None) -> None:
        """Delivers the outcome of each entry that is not done yet."""
        with self._lock:
            ending = [entry for entry in entries if entry.state is not DONE]
            for entry in ending:
                entry.state = DONE
        for entry in ending:
            on_done = entry.on_done
            entry.on_done = _delivered  # the other refers back to the entry
            try:
                on_done(error)
            except Exception:
                # A reply that cannot be sent must not harm other requests of the batch.
                log.exception("%s: the outcome of a request could not be delivered", self._logged)


def _predict(predict: Predict, parts: list[Part]) -> Sequence[NDArray[Any]]:
    """The model's outputs for the items of all parts, one array [items, *shape] an output."""
    if len(parts) == 1:
        entry, start, stop = parts[0]
        images = entry.images[start:stop]
        hidden = entry.hidden
    else:
        images = np.concatenate([entry.images[start:stop] for entry, start, stop in parts])
        hidden = any(part.entry.hidden for part in parts)
    outputs = predict(images, True) if hidden else predict(images)
    for output in outputs:
        if len(output) != len(images):
            raise ValueError(f"the model gave {output.shape} for {len(images)} items")
    return outputs
