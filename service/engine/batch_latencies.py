"""What a batch of so many items takes: begun with what warm-up measured, kept up while serving. Pure, like `engine/queue.py`.

How sizes of batch compare is a matter of the model, and was measured at warm-up; how fast the machine is now, one factor for all
of them, is learnt. Learnt size by size, one that was disturbed would seem slow, not be run any more, and so seem slow for good.

What is measured while serving includes waiting for the GIL and for cores that are busy with something else. Learning fast from
short times and slowly from long ones keeps close to the time of the batch itself, `expected`, which decides where it runs and how
large it is worth being. What is promised to a request with a deadline must hold on the machine as it is: `likely` is that time and
how much longer batches have taken of late, learnt the other way round, and a little more.
"""

import math
from bisect import bisect_left, bisect_right
from itertools import accumulate

_DOWN = 0.5
_UP = 0.02
_WARY = 0.25
_RELAXED = 0.05
"""How much of a batch that was later, or less late, than those before is believed of the ones to come."""

_MOST_RATIO = 4.0
"""What took even longer says no more: a guest that was paused for a minute is not a busy machine."""

_HEADROOM = 1.1
"""Without it, under overload every request would be answered at the very moment of its deadline: late, for whoever asked."""

_WORSE = 1.05
"""A batch whose items cost at most so much more than those of the best size is as good: larger ones leave shorter queues."""


class BatchLatencies:
    """Seconds a batch, for each size that was measured; in between, straight lines."""

    def __init__(self, measured: dict[int, float]) -> None:
        """`measured` holds seconds a batch by items; empty means that nothing is known and every batch counts as slow."""
        self._factor = 1.0
        self._delay = 1.0
        self._sizes = sorted(measured)
        # No batch counts as slower than a larger one: if it was, something had disturbed it.
        self._seconds = list(accumulate((measured[items] for items in reversed(self._sizes)), min))[::-1]

    def expected(self, items: int) -> float:
        """Seconds that a batch of `items`, at most the largest size, should take; infinite if nothing is known."""
        if not self._sizes:
            return math.inf
        at = min(bisect_left(self._sizes, items), len(self._sizes) - 1)
        seconds = self._seconds[at]
        if at and items < self._sizes[at]:
            fewer, shorter = self._sizes[at - 1], self._seconds[at - 1]
            seconds = shorter + (seconds - shorter) * (items - fewer) / (self._sizes[at] - fewer)
        return self._factor * seconds

    def likely(self, items: int) -> float:
        """Seconds within which a batch of `items` should be over, the machine being as busy as it is."""
        return self.expected(items) * self._delay * _HEADROOM

    def largest_likely_within(self, seconds: float) -> int:
        """As `largest_within`, of the `likely` times."""
        return self.largest_within(seconds / (self._delay * _HEADROOM))

    def measured(self) -> dict[int, float]:
        """Seconds a batch by items, as known by now."""
        return {items: self._factor * seconds for items, seconds in zip(self._sizes, self._seconds, strict=True)}

    def observe(self, items: int, seconds: float) -> None:
        """Learns from a batch that ran."""
        if not self._sizes:
            self._sizes, self._seconds = [items], [seconds]
            return
        ratio = min(seconds / self.expected(items), _MOST_RATIO)
        self._factor *= 1 + (_DOWN if ratio < 1 else _UP) * (ratio - 1)
        self._delay += (_WARY if ratio > self._delay else _RELAXED) * (ratio - self._delay)
        self._delay = max(self._delay, 1.0)

    def largest_within(self, seconds: float) -> int:
        """The largest size measured whose batch should take at most `seconds`; 0 if not even the smallest's does.

        Not what lies between two sizes: a model that fills its batches up takes as long for that as for the larger one.
        """
        at = bisect_right(self._seconds, seconds / self._factor)
        return self._sizes[at - 1] if at else 0

    def most_worthwhile(self, max_items: int) -> int:
        """The most items, up to `max_items`, that a batch should have: above it, items cost more each than in smaller batches."""
        sizes = sorted({*(items for items in self._sizes if items <= max_items), max_items})
        costs = [self.expected(size) / size for size in sizes]
        return max(size for size, cost in zip(sizes, costs, strict=True) if cost <= _WORSE * min(costs))
