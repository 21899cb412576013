"""One request's way: checked, decoded, queued, computed by the batcher, answered."""

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.answer import Answer, at_fault
from service.engine.decoding import DecodingPool, decode, decode_quickly, raw_images
from service.engine.entry import DECODING, DONE, QUEUED, RUNNING, Entry, HiddenEntry
from service.engine.query import Query
from service.engine.quotas import Quotas
from service.engine.served_version import ServedVersion
from service.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    PermissionDenied,
    RequestError,
    Unavailable,
    forget_traceback,
)
from service.policy import MAX_TIMEOUT_SECONDS, Policy
from service.requests.phases import Phases

log = logging.getLogger(__name__)

Respond = Callable[[Answer | RequestError], None]
"""Takes the one outcome of a request, from any thread."""

_NO_IMAGES: NDArray[Any] = np.empty(0, np.uint8)
"""In place of the images of a request that is done."""


def _answered(outcome: Answer | RequestError) -> None:
    """In place of the `respond` of a request that is done."""


class RequestContext(Protocol):
    """What a request needs of the classifier that accepted it."""

    pool: DecodingPool
    quotas: Quotas | None
    release: Callable[[ServedVersion], None]

    def record_failure(self, served: ServedVersion, error: RequestError, seconds: float = 0.0) -> None:
        """Counts a request that failed so many seconds after it was queued."""


class Request:
    """One query on its way. It drops its images when it is done, because what it refers to may refer to it."""

    __slots__ = ("_cancelled", "_context", "_decode_seconds", "_entry", "_items", "_respond", "_served", "_tensor", "_top_k")

    def __init__(
        self, context: RequestContext, served: ServedVersion, query: Query, respond: Respond, *, background: bool = False
    ) -> None:
        """Raises RequestError for a query that the model's policy, or the client's rights, do not allow.

        `background` is for requests of the server's own: they wait at a level below all that clients may ask for.
        """
        policy = served.policy
        count = len(query.items) if query.tensor is None else len(query.tensor)
        if not 0 < count <= policy.max_request_items:
            raise wrong_count(count, policy.max_request_items)
        if query.priority > policy.priority_levels:
            raise InvalidRequest(
                f"priority {query.priority} is above the lowest level of this model, {policy.priority_levels}", "priority"
            )
        priority = query.priority or policy.default_priority
        if query.principal.first_priority > 1:
            priority = _allowed_priority(query.priority, policy, query.principal.first_priority)
        if background:
            priority = policy.priority_levels + 1
        timeout = query.timeout_seconds or policy.default_timeout_seconds
        if served.triton.level_timeouts and not query.timeout_seconds:
            timeout = served.triton.level_timeouts.get(priority, timeout)
        deadline = deadline_after(query.deadline, timeout) if timeout else query.deadline
        kind = HiddenEntry if query.hidden else Entry
        self._entry = kind(count, priority, deadline, query.trace, query.principal)
        if context.quotas is not None:
            most = self._entry.most_held = context.quotas.queue_items(query.principal)
            if 0 < most < count:
                raise InvalidRequest(f"the request has {count} items; of one client at most {most} may wait (queue_items)", "items")
        self._context = context
        self._served = served
        self._items = query.items
        self._tensor = query.tensor
        self._top_k = query.top_k
        self._respond = respond
        self._decode_seconds: float | None = None
        self._cancelled = False

    def begin(self, *, on_transport: bool, may_decode: bool = False) -> None:
        """Queues the request, or has its images decoded first. Raises RequestError if it is refused.

        `may_decode` is as in `Classifier.classify`.
        """
        served = self._served
        images = raw_images(served, self._items, self._tensor)
        if images is None and (served.batcher.inline if on_transport else may_decode):
            start = time.monotonic()
            images = decode_quickly(served, self._items)
            if images is not None:
                self._decode_seconds = time.monotonic() - start
        if images is None:
            self._decode_in_pool()
        elif on_transport:
            if served.batcher.submit(self._entry, images, self._done):
                served.batcher.pump()
        else:
            self._submit_off_transport(images, reserved=False)

    def _decode_in_pool(self) -> None:
        entry, batcher = self._entry, self._served.batcher
        batcher.reserve(entry)
        entry.state = DECODING
        try:
            self._context.pool.submit(self._decode_then_submit, self._items, entry.principal)
        except BaseException:
            batcher.release(entry)
            raise

    def _decode_then_submit(self) -> None:
        """On a thread of the pool."""
        entry, served = self._entry, self._served
        try:
            start = time.monotonic()
            images = decode(served, self._items, self._context.pool.processes, self._check_wanted)
            self._decode_seconds = time.monotonic() - start
            self._items = ()
        except Exception as error:
            served.batcher.release(entry)
            if not isinstance(error, RequestError):
                log.exception("model %s version %d: a request failed while it was decoded", served.name, served.version)
                error = ModelFailed("the request failed inside the server")
            self._fail(error)
            return
        try:
            self._submit_off_transport(images, reserved=True)
        except RequestError as error:
            self._fail(error)

    def _check_wanted(self) -> None:
        """Raises RequestError if no answer is needed any more."""
        if time.monotonic() >= self._entry.deadline:
            raise DeadlineExceeded("the deadline passed before the request was decoded")
        if self._cancelled:
            raise Cancelled("the client cancelled the call")
        if self._context.pool.closed:
            raise Unavailable("the server has stopped")
        self._served.batcher.check_reserved(self._entry)

    def _submit_off_transport(self, images: NDArray[Any], *, reserved: bool) -> None:
        entry, batcher = self._entry, self._served.batcher
        batcher.submit(entry, images, self._done, reserved=reserved)
        if self._cancelled:  # before it was queued
            batcher.cancel(entry)
        else:
            batcher.dispatch()

    def cancel(self) -> None:
        """Ends the request unless it is done. From any thread, any number of times."""
        self._cancelled = True
        if self._entry.state is QUEUED or self._entry.state is RUNNING:
            self._served.batcher.cancel(self._entry)

    def _fail(self, error: RequestError) -> None:
        self._entry.state = DONE
        self._done(error)

    def _done(self, error: RequestError | None) -> None:
        """Responds. Called once, by the thread that brought the request to DONE."""
        entry, served, respond, tensor = self._entry, self._served, self._respond, self._tensor
        self._respond = _answered  # the other refers back to the request
        self._items = ()
        self._tensor = None
        try:
            if error is None:
                outputs, row, finished = entry.outputs, entry.row, entry.finished
                assert outputs is not None, "an entry that is complete has its outputs"  # noqa: S101 - for the type checker
                phases = Phases(self._decode_seconds, entry.started - entry.queued_at, finished - entry.started)
                entry.images = _NO_IMAGES
                respond(Answer(served, outputs, row, row + entry.items, self._top_k, phases, finished, entry.trace, tensor))
            else:
                if isinstance(error, ModelFailed):
                    error = at_fault(error, served, tensor)
                forget_traceback(error)
                respond(error)
        finally:
            if error is not None:
                self._context.record_failure(served, error, time.monotonic() - entry.queued_at if entry.queued_at else 0.0)
            self._context.release(served)


def wrong_count(items: int, limit: int) -> InvalidRequest:
    """The error for a request of no items or of more than `limit`."""
    if not items:
        return InvalidRequest("the request has no items; send 1 or more images", "items")
    return InvalidRequest(f"the request has {items} items; at most {limit} are accepted", "items")


def _allowed_priority(asked: int, policy: Policy, first: int) -> int:
    """The priority level of a request that asks for `asked` (0: the default) and may have `first` or a later one.

    Raises PermissionDenied for an earlier one. In a model with fewer levels the last is open to all.
    """
    first = min(first, policy.priority_levels)
    if asked and asked < first:
        raise PermissionDenied(f"priority {asked} is not allowed to this client: its first level is {first}")
    return max(asked or policy.default_priority, first)


def deadline_after(deadline: float, timeout: float) -> float:
    """The earlier of the call's deadline and now plus the timeout, in seconds."""
    if not 0 <= timeout <= MAX_TIMEOUT_SECONDS:  # refuses NaN too
        raise InvalidRequest(f"timeout_seconds {timeout} is not between 0 and {MAX_TIMEOUT_SECONDS:.0e}", "timeout_seconds")
    return min(deadline, time.monotonic() + timeout)
