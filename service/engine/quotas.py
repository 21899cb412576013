"""Quotas of those who send requests: requests and bytes a second, items in a queue. Pure but for a lock; the clock is passed in.

Two buckets a principal: of requests and of bytes. Each fills at the quota's rate up to what it gives in `burst_seconds`, and at
least one request. A request is let in if both hold what it needs, or are full: one that needs more than a bucket can hold leaves it
in debt. So a principal gets at most its rate and one burst, a large request is only slow, and the time to retry that a refusal
names is true: then the buckets hold enough, unless the principal has sent something else meanwhile.

Each process counts by itself. What is kept is bounded: of MAX_PRINCIPALS, those who have sent last.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from service.errors import QuotaExceeded
from service.requests.principal import Principal

MAX_PRINCIPALS = 10_000

_ROUNDING = 1e-6
"""Of the most that a bucket holds, so much may be missing: who comes back at the time that it was told finds as good as enough."""


class Limits(Protocol):
    """The quotas of one group. 0 is no limit."""

    @property
    def requests_per_second(self) -> float:
        """Requests that one principal may send."""

    @property
    def bytes_per_second(self) -> float:
        """Bytes of images and tensors in them."""

    @property
    def burst_seconds(self) -> float:
        """For how long of silence a principal may catch up."""

    @property
    def queue_items(self) -> int:
        """Items of one principal that may wait for one model."""


class _Buckets:
    """What a principal has left. Negative is a debt, infinite is no limit."""

    __slots__ = ("at", "bytes", "requests")

    def __init__(self, at: float, requests: float, size_bytes: float) -> None:
        self.at = at
        self.requests = requests
        self.bytes = size_bytes


class Quotas:
    """Counts what principals send. Thread-safe."""

    def __init__(self, limits_of: Callable[[Principal], Limits | None], clock: Callable[[], float] = time.monotonic) -> None:
        """`limits_of` gives the quotas of a principal, None if it has none; they may change."""
        self._limits_of = limits_of
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[Principal, _Buckets] = {}  # who has sent last is last

    def queue_items(self, principal: Principal) -> int:
        """Items of a principal that may wait for one model; 0 is no limit."""
        limits = self._limits_of(principal)
        return 0 if limits is None else limits.queue_items

    def take(self, principal: Principal, size_bytes: int) -> None:
        """Counts a request of so many bytes. Raises QuotaExceeded, and counts nothing, if it is too early for it."""
        limits = self._limits_of(principal)
        if limits is None or not (limits.requests_per_second or limits.bytes_per_second):
            return
        # A bucket without a limit is never empty: nothing is owed when there is a limit later.
        most_requests = max(1.0, limits.requests_per_second * limits.burst_seconds) if limits.requests_per_second else math.inf
        most_bytes = limits.bytes_per_second * limits.burst_seconds if limits.bytes_per_second else math.inf
        now = self._clock()
        with self._lock:
            buckets = self._buckets.pop(principal, None) or _Buckets(now, most_requests, most_bytes)
            self._buckets[principal] = buckets
            if len(self._buckets) > MAX_PRINCIPALS:
                del self._buckets[next(iter(self._buckets))]
            passed = max(0.0, now - buckets.at)
            buckets.at = now
            buckets.requests = _filled(buckets.requests, passed, limits.requests_per_second, most_requests)
            buckets.bytes = _filled(buckets.bytes, passed, limits.bytes_per_second, most_bytes)
            wait = max(
                _wait(buckets.requests, 1.0, most_requests, limits.requests_per_second),
                _wait(buckets.bytes, min(float(size_bytes), most_bytes), most_bytes, limits.bytes_per_second),
            )
            if wait <= 0:
                buckets.requests -= 1.0
                buckets.bytes -= size_bytes
                return
        raise QuotaExceeded(_described(limits), wait)


def _filled(held: float, passed_seconds: float, per_second: float, most: float) -> float:
    """What a bucket holds after a time."""
    return min(most, held + passed_seconds * per_second) if per_second else most


def _wait(held: float, needed: float, most: float, per_second: float) -> float:
    """Seconds until a bucket, which holds at most so much, holds what is needed."""
    missing = needed - held
    return missing / per_second if per_second and missing > _ROUNDING * most else 0.0


def _described(limits: Limits) -> str:
    quotas = [
        f"{quota:g} {what}"
        for quota, what in ((limits.requests_per_second, "requests"), (limits.bytes_per_second, "bytes"))
        if quota
    ]
    return f"the quota is used up: {' and '.join(quotas)} a second"
