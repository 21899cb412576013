"""One request's way: checked, decoded, queued, computed by the batcher, answered."""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from service.engine.answer import Answer
from service.engine.batcher import Work
from service.engine.decoding import DecodingPool, decode, decode_quickly, raw_images
from service.engine.query import Query
from service.engine.repository import ServedModel
from service.errors import Cancelled, DeadlineExceeded, InvalidRequest, ModelFailed, QueueFull, RequestError, Unavailable
from service.phases import Phases
from service.policy import MAX_TIMEOUT_SECONDS

log = logging.getLogger(__name__)

Respond = Callable[[Answer | RequestError], None]
"""Takes the one outcome of a request, from any thread."""


class Owner(Protocol):
    """What a request needs of the classifier that accepted it."""

    pool: DecodingPool
    release: Callable[[ServedModel], None]

    def record_failure(self, served: ServedModel, error: RequestError, seconds: float = 0.0) -> None:
        """Counts a request that failed so many seconds after it was queued."""


class Request(Work):
    """One query on its way. It drops its images when it is done, because what it refers to may refer to it."""

    __slots__ = ("_cancelled", "_decode_seconds", "_items", "_owner", "_respond", "_served", "_tensor", "_top_k")

    def __init__(self, owner: Owner, served: ServedModel, query: Query, respond: Respond) -> None:
        """Raises InvalidRequest for a query that the model's policy does not allow."""
        policy = served.policy
        count = len(query.items) if query.tensor is None else len(query.tensor)
        if not 0 < count <= policy.max_request_items:
            raise wrong_count(count, policy.max_request_items)
        if query.priority > policy.priority_levels:
            raise InvalidRequest(
                f"priority {query.priority} is above the lowest level of this model, {policy.priority_levels}", "priority"
            )
        timeout = query.timeout_seconds or policy.default_timeout_seconds
        deadline = _deadline(query.deadline, timeout) if timeout else query.deadline
        super().__init__(count, query.priority or policy.default_priority, deadline, query.trace)
        self._owner = owner
        self._served = served
        self._items = query.items
        self._tensor = query.tensor
        self._top_k = query.top_k
        self._respond = respond
        self._decode_seconds: float | None = None
        self._cancelled = False

    def begin(self) -> None:
        """Queues the request from the transport's thread, or has its images decoded first. Raises RequestError if it is refused."""
        images = raw_images(self._served, self._items, self._tensor)
        if images is None and self._served.batcher.inline:
            start = time.monotonic()
            images = decode_quickly(self._served, self._items)
            if images is not None:
                self._decode_seconds = time.monotonic() - start
        if images is None:
            self._decode_in_pool()
        else:
            self._submit(images, pool=False)

    def begin_off_transport(self) -> None:
        """As `begin`, from any other thread."""
        images = raw_images(self._served, self._items, self._tensor)
        if images is None:
            self._decode_in_pool()
        else:
            self._served.batcher.reserve(self.items)
            self._submit(images, pool=True)

    def cancel(self) -> None:
        """Ends the request unless it has ended. From any thread, any number of times."""
        self._cancelled = True
        if self.submitted:
            self._served.batcher.cancel(self)

    def _decode_in_pool(self) -> None:
        batcher = self._served.batcher
        batcher.reserve(self.items)
        try:
            self._owner.pool.submit(self._decode_then_submit, sum(len(item.data) for item in self._items))
        except QueueFull:
            batcher.release(self.items)
            raise

    def _decode_then_submit(self) -> None:
        try:
            start = time.monotonic()
            images = decode(self._served, self._items, self._check_wanted)
            self._decode_seconds = time.monotonic() - start
            self._items = ()
        except Exception as error:
            self._served.batcher.release(self.items)
            if not isinstance(error, RequestError):
                log.exception("model %s: a request failed while it was decoded", self._served.name)
                error = ModelFailed("the request failed inside the server")
            self._served.batcher.fail(self, error)
            return
        try:
            self._submit(images, pool=True)
        except RequestError as error:
            self._served.batcher.fail(self, error)

    def _check_wanted(self) -> None:
        """Raises RequestError if no answer is needed any more."""
        if time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the deadline passed before the request was decoded")
        if self._cancelled:
            raise Cancelled("the client cancelled the call")
        if self._owner.pool.closed:
            raise Unavailable("the server has stopped")

    def _submit(self, images: NDArray[Any], *, pool: bool) -> None:
        batcher = self._served.batcher
        self.images = images
        full = batcher.submit(self, reserved=pool)
        if self._cancelled:  # during decoding
            batcher.cancel(self)
        elif pool:
            batcher.hand_over()
        elif full:
            batcher.pump()

    def done(self) -> None:
        """See Work."""
        error, served, respond = self.error, self._served, self._respond
        del self._respond
        self._items = ()
        self._tensor = None
        try:
            if error is None:
                phases = Phases(self._decode_seconds, self.started - self.submitted, self.finished - self.started)
                del self.images
                respond(Answer(served, self.outputs, self._top_k, phases, self.finished, self.trace))
            else:
                # The traceback's frames hold images, and the error is kept here: they would wait for the garbage collector.
                error.__traceback__ = error.__context__ = None
                respond(error)
        finally:
            if error is not None:
                self._owner.record_failure(served, error, time.monotonic() - self.submitted if self.submitted else 0.0)
            self._owner.release(served)


def wrong_count(items: int, limit: int) -> InvalidRequest:
    """The error for a request of no items or of more than `limit`."""
    if not items:
        return InvalidRequest("the request has no items; send 1 or more images", "items")
    return InvalidRequest(f"the request has {items} items; at most {limit} are accepted", "items")


def _deadline(deadline: float, timeout: float) -> float:
    """The earlier of the call's deadline and now plus the timeout, in seconds."""
    if not 0 <= timeout <= MAX_TIMEOUT_SECONDS:  # refuses NaN too
        raise InvalidRequest(f"timeout_seconds {timeout} is not between 0 and {MAX_TIMEOUT_SECONDS:.0e}", "timeout_seconds")
    return min(deadline, time.monotonic() + timeout)
