"""A request as queue and batcher see it: its items, its state, and the callback for its outcome.

    RECEIVED ──────────> QUEUED ──> RUNNING ──> DONE
        │                   ^ └────────────────> ^
        └──> DECODING ──────┘                    │
                │                                │
                └────────────────────────────────┘

RECEIVED: the request is being checked, and small images are decoded, on the thread that it came on.
DECODING: its images wait for the decoding pool or are being decoded there.
QUEUED: all of its items wait in the queue.
RUNNING: at least one of its items has been taken for a batch.
DONE: it has its outcome.

A request that is refused at once is dropped and the error raised to the caller: in RECEIVED, or in DECODING if the pool is full. A
request that fails on a thread of the pool, or is refused by the queue there, goes from DECODING to DONE and gets the error as its
outcome. Until it is queued, only the thread that is working on the request changes its state; from then on, only the holder of the
batcher's lock. So exactly one thread brings it to DONE, and that thread delivers the outcome.
"""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

from numpy.typing import NDArray

from service.engine.outputs import BatchOutputs
from service.errors import RequestError
from service.observability.trace_context import TraceContext
from service.requests.principal import UNKNOWN, Principal


class State(Enum):
    """Where a request is on its way."""

    RECEIVED = "received"
    DECODING = "decoding"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


RECEIVED, DECODING, QUEUED, RUNNING, DONE = State  # in Python 3.11 reading State.DONE takes ten times as long

NEXT_STATES = {
    RECEIVED: {DECODING, QUEUED},
    DECODING: {QUEUED, DONE},
    QUEUED: {RUNNING, DONE},
    RUNNING: {DONE},
    DONE: set[State](),
}
"""The legal transitions. Tests check every assignment against them."""

OnDone = Callable[[RequestError | None], None]
"""Called once with the outcome of an entry: an error, or None when its `outputs` are complete. From any thread."""


class Entry:
    """A request of n items. All times are seconds on the batcher's clock, `time.monotonic` outside of tests.

    Attributes:
        priority: 1 is served first.
        deadline: infinite if there is none.
        turn: its place among entries of the same priority and principal: the deadline, or an earlier time.
        taken: items that batches have taken so far.
        arrival: a number that is unique in its queue and grows.
        images: [n, *shape], one row an item; set when it is queued.
        outputs: those of its batch, of which its own are the rows from `row` on; complete when it is done without an error.
        remaining: items whose outputs are missing.
        queued_at, started, finished: when it was queued, its first batch began, its last batch ended; 0 before that.
        trace: the client's trace, if it sent one.
        principal: who sent it.
        most_held: items that its principal may have in the queue; 0 is no limit.
        hidden: whether its outputs are to have the model's hidden ones at their end. They may have them if not.
    """

    __slots__ = (
        "arrival", "deadline", "finished", "images", "items", "most_held", "on_done", "outputs", "principal", "priority",
        "queued_at", "remaining", "row", "started", "state", "taken", "trace", "turn",
    )  # fmt: skip
    hidden = False
    arrival: int
    images: NDArray[Any]
    on_done: OnDone

    def __init__(
        self,
        items: int,
        priority: int = 1,
        deadline: float = math.inf,
        trace: TraceContext | None = None,
        principal: Principal = UNKNOWN,
    ) -> None:
        self.state = RECEIVED
        self.items = self.remaining = items
        self.priority = priority
        self.deadline = self.turn = deadline
        self.trace = trace
        self.principal = principal
        self.most_held = 0
        self.taken = 0
        self.outputs: BatchOutputs | None = None
        self.row = 0
        self.queued_at = self.started = self.finished = 0.0


class HiddenEntry(Entry):
    """A request for hidden outputs, too. A class of its own, so that others have no field for it."""

    __slots__ = ()
    hidden = True
