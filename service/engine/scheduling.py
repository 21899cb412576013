"""When a batch is formed, of what, on which thread, and which requests are refused. Pure: no threads, no locks, no clock.

Where. The transport's thread asks for a batch at the end of a round of events, or when a batch is full. A batch that is expected to
take at most INLINE_SECONDS runs inline, on that thread: a hand-over changes the GIL twice, which costs more than it gains. A longer
batch is cut to that time if that costs little. If the first request is long by itself (over INLINE_SECONDS, or for several items
over INLINE_SECONDS_MULTI_ITEM), or an inline batch has stalled that thread lately, the batch runs on an instance's thread, as do
all batches that other threads ask for.

When. At once, unless `max_delay_seconds` lets requests wait for more: then a batch is due when it is full, when the oldest request
has waited so long, or when a request has waited half of the time until its deadline. There is one more delay: after a batch too
long to run inline, clients that send their next request when they have an answer are about to return. Until as many items wait as
that batch had, the next one lingers for LINGER_SHARE of its time. Otherwise the first client to return would be computed alone
while all others wait, over and over.

In which order. By priority; then clients in turn, as queue.py says; of one client, by deadline. A deadline further away than
DEADLINE_HORIZON_SECONDS counts as one that far away, and so does none: requests with time to spare are served in order of arrival,
and no request starves behind those with near deadlines.

For how long. A request that comes while a batch runs waits for its end. So while several clients send requests, a batch that takes
longer than INLINE_SECONDS is no larger than is worth while: the smallest that costs at most SPLIT_COST of the best size an item.
One client alone has large batches.

For whom there is room. For a request that finds the queue full, `make_room` of queue.py may remove requests of a client that holds
more of it. They are in `displaced` until the caller has failed them.

Which are refused. A request whose deadline can hardly be met, by the measured times and behind the requests before it, is refused
when it comes. A queued request that cannot meet its deadline any more is dropped before it costs inference. A batch is no longer
than its earliest deadline allows. So under overload the answers that are given are in time.

Times are seconds on the caller's clock, passed in as `now`.
"""

import math
from dataclasses import dataclass

from service.engine.batch_latencies import BatchLatencies
from service.engine.entry import QUEUED, Entry
from service.engine.queue import Part, RequestQueue
from service.errors import DeadlineExceeded, QueueFull, QuotaExceeded
from service.requests.principal import Principal

INLINE_SECONDS = 0.001
INLINE_SECONDS_MULTI_ITEM = 0.0003
"""In place of INLINE_SECONDS for one request of several items: parsing and decoding the next such request takes long enough that
handing the batch over, to run meanwhile, pays."""

SPLIT_COST = 1.25
"""How much more an item may cost in short inline batches than in one long batch on an instance's thread."""

SHARED_SECONDS = 1.0
"""For how long after a request of another client the model counts as shared between several."""

STALL_SECONDS = 0.1
INLINE_BACKOFF_SECONDS = 60.0
"""An inline batch that took STALL_SECONDS held up all other calls: how long a model takes can depend on the request. For the next
INLINE_BACKOFF_SECONDS none of the model's batches runs inline."""

LINGER_SHARE = 0.02
"""The share of a batch's time for which the next one may linger."""

QUEUE_SHARE = 2 / 3
"""A request that has to queue is accepted if it should be answered within this share of the time that it has. Requests that wait
until their deadlines are near leave time for small batches only, which cost the most an item."""

DEADLINE_HORIZON_SECONDS = 5.0
"""A request lets others with nearer deadlines pass for at most this long."""

LATENCY_MAX_AGE_SECONDS = 10.0
"""The measured times are used to refuse requests for this long after a batch."""


@dataclass(eq=False, slots=True)
class Batch:
    """Parts of requests for one idle instance to run.

    Attributes:
        instance: the number of the instance.
        inline: whether it runs on the transport's thread.
        taken_at: when it was formed.
        until: when it should be finished.
    """

    instance: int
    parts: list[Part]
    inline: bool
    taken_at: float
    until: float


class Scheduler:
    """Schedules the requests of one model. Not thread-safe: the caller holds a lock."""

    def __init__(
        self,
        name: str,
        instances: int,
        max_batch_items: int,
        max_queue_items: int,
        measured: dict[int, float],
        max_delay_seconds: float,
        now: float,
        may_run_inline: bool = True,
    ) -> None:
        """`name` is the model's, for errors; `measured` is seconds a batch by items, from warm-up, empty if nothing is known.

        `may_run_inline` is False if the measured times say nothing of how long the next item takes.
        """
        self._name = name
        self.latencies = BatchLatencies(measured)
        self.max_batch_items = self.latencies.most_worthwhile(max_batch_items)
        self.queue = RequestQueue(max_queue_items)
        self.displaced: list[Entry] = []
        self._max_delay_seconds = max_delay_seconds
        self._instances = instances
        self._idle = list(range(instances))
        self._running: list[Batch] = []
        self._measured_at = now
        self._inline_from = -math.inf if may_run_inline else math.inf
        self._last_principal: Principal | None = None
        self._shared_until = -math.inf
        self._overdue_items = 0  # due for the last batch, which had no room for them
        self._returning_items = 0  # their clients may be about to return; batches linger for them until _linger_until
        self._linger_until = -math.inf

    def add(self, entry: Entry, now: float, *, reserved: bool) -> bool:
        """Queues an entry; True if a batch is full now. `reserved` says that room was reserved for it, which is given back.

        Raises:
            QueueFull: it does not fit, or its room has been taken away.
            DeadlineExceeded: by the measured times it cannot be answered in time.
        """
        queue = self.queue
        if reserved and not queue.release(entry):
            raise self.queue_full(entry)
        entry.queued_at = now
        principal = entry.principal
        if principal is not self._last_principal:
            if principal != self._last_principal and self._last_principal is not None:
                self._shared_until = now + SHARED_SECONDS
            self._last_principal = principal
        latest_turn = now + DEADLINE_HORIZON_SECONDS
        entry.turn = entry.deadline if entry.deadline < latest_turn else latest_turn
        if entry.most_held:
            self._check_quota(entry)
        if entry.deadline != math.inf:
            self._check_deadline(entry, now)
        if not queue.push(entry):
            self._make_room(entry)
            queue.push(entry)
        return queue.items >= self.max_batch_items

    def reserve(self, entry: Entry) -> None:
        """Reserves room in the queue. Raises QueueFull if there is none."""
        if entry.most_held:
            self._check_quota(entry)
        if not self.queue.reserve(entry):
            self._make_room(entry)
            self.queue.reserve(entry)

    def check_reserved(self, entry: Entry) -> None:
        """Raises QueueFull if the room that was reserved for an entry has been taken away."""
        if not self.queue.is_reserved(entry):
            raise self.queue_full(entry)

    @property
    def running_since(self) -> float:
        """When the longest running batch was formed; infinite if none runs."""
        return min((batch.taken_at for batch in tuple(self._running)), default=math.inf)

    @property
    def running(self) -> bool:
        """Whether an instance has a batch."""
        return bool(self._running)

    def runs_inline(self, now: float) -> bool:
        """Whether a batch of one item would run inline."""
        return self.latencies.expected(1) <= INLINE_SECONDS and self._inline_from <= now

    def take(self, now: float, *, on_transport: bool) -> tuple[list[Entry], Batch | None]:
        """The entries that expired, removed from the queue, and the next batch; None if none is due or no instance is idle.

        `on_transport` says that it may be a batch to run inline. Call `finish` when the batch has ended.
        """
        queue, latencies = self.queue, self.latencies
        expired: list[Entry] = []
        trusted = False
        if queue.next_expiry() != math.inf:
            trusted = self._trusted(now)
            expired = queue.expire(now + latencies.likely(1) if trusted else now)
        if self.due_at() > now:
            return expired, None
        most = self.max_batch_items
        if self._shared_until > now:
            worthwhile = latencies.smallest_worthwhile(most, SPLIT_COST)
            most = min(most, max(worthwhile, latencies.largest_within(INLINE_SECONDS)))
        max_items, inline = self._plan(now, most) if on_transport else (most, False)
        if trusted:
            seconds = queue.next_expiry_within(max_items) - now
            max_items = min(max_items, max(1, latencies.largest_likely_within(seconds)))
        until = now + latencies.likely(min(max_items, queue.items))
        due_items = self._overdue_items or min(queue.items, self.max_batch_items)
        batch = Batch(self._idle.pop(), queue.take(max_items), inline, now, until)
        self._running.append(batch)
        if self._max_delay_seconds:
            self._overdue_items = max(0, min(due_items - max_items, queue.items))
        return expired, batch

    def due_at(self) -> float:
        """When the next batch should be formed; -inf for at once, inf if the queue is empty or no instance is idle."""
        queued = self.queue.items
        if not queued or not self._idle:
            return math.inf
        if queued >= self.max_batch_items or self._overdue_items:
            return -math.inf
        due = self._linger_until if queued < self._returning_items else -math.inf
        if self._max_delay_seconds:
            delay = self._max_delay_seconds
            due = max(due, min(min(entry.queued_at + delay, (entry.queued_at + entry.deadline) / 2) for entry in self.queue))
        return due

    def wake_at(self, now: float) -> float:
        """When `take` should be called next: -inf for at once, inf if no time makes a difference."""
        due = self.due_at()
        return -math.inf if due <= now else min(due, self.queue.next_expiry())

    def observe(self, items: int, start: float, end: float) -> None:
        """Learns from a batch of `items` that ran."""
        seconds = end - start
        self.latencies.observe(items, seconds)
        self._measured_at = end
        if seconds > INLINE_SECONDS:
            self._returning_items = items
            self._linger_until = end + LINGER_SHARE * seconds

    def finish(self, batch: Batch, now: float) -> None:
        """Marks a batch as ended and its instance as idle."""
        self._running.remove(batch)
        self._idle.append(batch.instance)
        if batch.inline and now - batch.taken_at > STALL_SECONDS:
            self._inline_from = now + INLINE_BACKOFF_SECONDS

    def flush(self) -> None:
        """Lets no request wait for others to fill its batch any more, for a server that drains."""
        self._max_delay_seconds = 0.0
        self._overdue_items = 0

    def _plan(self, now: float, most: int) -> tuple[int, bool]:
        """How many items, `most` at most, the next batch may have, and whether it runs inline."""
        latencies = self.latencies
        first = self.queue.first()
        left = first.items - first.taken
        longest = INLINE_SECONDS_MULTI_ITEM if left > 1 else INLINE_SECONDS
        if left > self.max_batch_items or latencies.expected(left) > longest or self._inline_from > now:
            return most, False  # long however it is cut, and the next request can be read meanwhile
        items = min(self.queue.items, most)
        seconds = latencies.expected(items)
        if seconds <= INLINE_SECONDS:
            return items, True
        # Several inline batches are better than one on an instance's thread, unless the model gains much from large batches.
        short = min(latencies.largest_within(INLINE_SECONDS), items)
        if short and latencies.expected(short) / short <= SPLIT_COST * seconds / items:
            return short, True
        return most, False

    def _trusted(self, now: float) -> bool:
        """Whether the measured times are fresh. Old times refuse nothing: if they were wrong, nothing would ever correct them."""
        return now - self._measured_at <= LATENCY_MAX_AGE_SECONDS and self.latencies.expected(1) != math.inf

    def _check_deadline(self, entry: Entry, now: float) -> None:
        """Raises DeadlineExceeded if the entry should not be answered in time."""
        left = entry.deadline - now
        if left <= 0:
            raise DeadlineExceeded("the deadline has passed")
        if not self._trusted(now):
            return
        wait = 0.0 if self._idle else max(0.0, min(batch.until for batch in self._running) - now)
        most = QUEUE_SHARE * left if self.queue.items else left
        takes = wait + self._likely_seconds(self.queue.items + entry.items)
        if takes > most:  # slower to find out: which items are really before it
            takes = wait + self._likely_seconds(self.queue.items_before(entry) + entry.items)
        if takes > most:
            raise DeadlineExceeded(
                f"the deadline cannot be met: estimated {1000 * takes:.1f} ms, "
                f"{1000 * left:.1f} ms left ({1000 * most:.1f} ms allowed)"
            )

    def _likely_seconds(self, items: int) -> float:
        """What so many items should take, in batches on all instances."""
        whole, rest = divmod(items, self.max_batch_items)
        likely = self.latencies.likely
        return (whole * likely(self.max_batch_items) if whole else 0.0) / self._instances + (likely(rest) if rest else 0.0)

    def _check_quota(self, entry: Entry) -> None:
        """Raises QuotaExceeded if its principal would hold more of the queue than it may."""
        held = self.queue.held(entry.principal)
        if held + entry.items > entry.most_held:
            raise QuotaExceeded(
                f"the quota is used up: {held} of {entry.most_held} items wait, the request has {entry.items}",
                self._seconds_for(held),
            )

    def _make_room(self, entry: Entry) -> None:
        """Removes requests of others who hold more of the queue. Raises QueueFull if there are none, or too few."""
        removed = self.queue.make_room(entry)
        if not removed:
            raise self.queue_full(entry)
        self.displaced += [each for each in removed if each.state is QUEUED]

    def queue_full(self, entry: Entry) -> QueueFull:
        """The error for an entry that has no room."""
        waiting = self.queue.items + self.queue.reserved
        return QueueFull(
            f"the queue of model {self._name!r} is full: {waiting} of {self.queue.max_items} items wait, "
            f"the request has {entry.items}",
            self._seconds_for(waiting),
        )

    def _seconds_for(self, items: int) -> float:
        """After what time so many items should be computed, for clients that are to retry then."""
        batches = -(-items // self.max_batch_items)
        seconds = batches * self.latencies.expected(self.max_batch_items) / self._instances
        return min(max(seconds, 0.01), 30.0)
