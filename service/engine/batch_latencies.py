"""How long a batch of n items takes: measured at warm-up, corrected while serving. Pure.

How batch sizes compare is a property of the model, and is measured at warm-up. How fast the machine is now is one factor for all
sizes, which is learned while serving. Learned size by size, a size that was disturbed once would look slow, not be used any more,
and so look slow for good.

Times measured while serving include waiting for the GIL and for busy cores. `expected` learns fast from short times and slowly
from long ones, so it stays close to the time of the batch itself; it decides where a batch runs and how large it should be.
`likely` must hold on the machine as it is, because requests are refused by it: it adds the delay of recent batches, learned fast
from long times, and some headroom.
"""

import math
from bisect import bisect_left, bisect_right
from itertools import accumulate

_FASTER_WEIGHT = 0.5
_SLOWER_WEIGHT = 0.02
_DELAY_RISE_WEIGHT = 0.25
_DELAY_FALL_WEIGHT = 0.05
"""The weights of a batch: on the factor if it was faster or slower than expected, on the delay if that rises or falls."""

_MAX_RATIO = 4.0
"""A longer time counts as this: a virtual machine that was paused for a minute is not a busy machine."""

_HEADROOM = 1.1
"""Without it, under overload every request would be answered at the moment of its deadline, too late for its client."""

_MAX_COST_RATIO = 1.05
"""A size whose items cost at most this much more than those of the best size is as good: larger batches leave shorter queues."""


class BatchLatencies:
    """Seconds a batch by its items: for each measured size, and interpolated between them."""

    def __init__(self, measured: dict[int, float]) -> None:
        """`measured` is seconds a batch by items; if it is empty, every batch counts as slow."""
        self._factor = 1.0
        self._delay = 1.0
        self._sizes = sorted(measured)
        # A size that took longer than a larger one was disturbed: it counts as fast as that.
        self._seconds = list(accumulate((measured[items] for items in reversed(self._sizes)), min))[::-1]

    def expected(self, items: int) -> float:
        """Seconds that a batch of `items`, at most the largest size, takes when undisturbed; infinite if nothing is known."""
        if not self._sizes:
            return math.inf
        at = min(bisect_left(self._sizes, items), len(self._sizes) - 1)
        seconds = self._seconds[at]
        if at and items < self._sizes[at]:
            fewer, shorter = self._sizes[at - 1], self._seconds[at - 1]
            seconds = shorter + (seconds - shorter) * (items - fewer) / (self._sizes[at] - fewer)
        return self._factor * seconds

    def likely(self, items: int) -> float:
        """Seconds within which a batch of `items` should end on the machine as busy as it is."""
        return self.expected(items) * self._delay * _HEADROOM

    def largest_likely_within(self, seconds: float) -> int:
        """As `largest_within`, by the `likely` times."""
        return self.largest_within(seconds / (self._delay * _HEADROOM))

    def measured(self) -> dict[int, float]:
        """Seconds a batch by items, as corrected so far."""
        return {items: self._factor * seconds for items, seconds in zip(self._sizes, self._seconds, strict=True)}

    def observe(self, items: int, seconds: float) -> None:
        """Learns from a batch that ran."""
        if not self._sizes:
            self._sizes, self._seconds = [items], [seconds]
            return
        ratio = min(seconds / self.expected(items), _MAX_RATIO)
        self._factor *= 1 + (_FASTER_WEIGHT if ratio < 1 else _SLOWER_WEIGHT) * (ratio - 1)
        self._delay += (_DELAY_RISE_WEIGHT if ratio > self._delay else _DELAY_FALL_WEIGHT) * (ratio - self._delay)
        self._delay = max(self._delay, 1.0)

    def largest_within(self, seconds: float) -> int:
        """The largest measured size whose batch should take at most `seconds`; 0 if there is none.

        Sizes between two measured ones are not considered: a model that pads its batches takes as long for them as for the larger.
        """
        at = bisect_right(self._seconds, seconds / self._factor)
        return self._sizes[at - 1] if at else 0

    def most_worthwhile(self, max_items: int) -> int:
        """The most items, up to `max_items`, that a batch should have: in larger batches each item costs more."""
        sizes = sorted({*(items for items in self._sizes if items <= max_items), max_items})
        costs = [self.expected(size) / size for size in sizes]
        return max(size for size, cost in zip(sizes, costs, strict=True) if cost <= _MAX_COST_RATIO * min(costs))

    def smallest_worthwhile(self, max_items: int, max_cost_ratio: float) -> int:
        """The fewest items, a measured size up to `max_items`, whose cost an item is within that ratio of the best."""
        sizes = [items for items in self._sizes if items < max_items] + [max_items]
        costs = [self.expected(size) / size for size in sizes]
        return next(size for size, cost in zip(sizes, costs, strict=True) if cost <= max_cost_ratio * min(costs))
