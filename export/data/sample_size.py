"""What few pictures can tell: from how many on something is chosen by them, and how many say an accuracy to a few points."""

import math

ENOUGH_TO_CHOOSE = 50
"""Validation pictures from which on they choose an epoch and a temperature. On fewer, chance chooses: of 50 pictures, an accuracy
of 80 % still has a 95 % interval of 22 points."""

MARGIN = 0.05
"""How exactly an accuracy should be known: to plus or minus so much, with 95 % confidence."""

_Z = 1.959963984540054
"""The normal distribution is within plus or minus so many standard deviations with 95 % probability."""


def enough_to_choose(validation_items: int) -> bool:
    """Whether so many validation pictures may choose an epoch and a temperature."""
    return validation_items >= ENOUGH_TO_CHOOSE


def accuracy_interval(correct: float, items: int) -> tuple[float, float]:
    """The 95 % confidence interval of the fraction `correct / items` (Wilson's score interval)."""
    share, weight = correct / items, _Z**2 / items
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return 0.0 if correct == 0 else middle - half, 1.0 if correct == items else middle + half


def items_to_know(correct: int, items: int, margin: float = MARGIN) -> int:
    """How many pictures say to within `margin` how many are right: Wilson's 95 % interval is then at most twice as wide.

    Args:
        correct: pictures that were right so far. How many will be is not known better than by the middle of their interval.
        items: of so many.
        margin: a fraction below 1/2.
    """
    share = (correct + _Z**2 / 2) / (items + _Z**2)
    # w is half the width of the interval of a share p on n pictures if, with m = z^2 / n,
    # (w^2 - 1/4) m^2 + (2 w^2 - p (1 - p)) m + w^2 = 0.
    a, b, c = margin**2 - 0.25, 2 * margin**2 - share * (1 - share), margin**2
    return math.ceil(_Z**2 * 2 * a / (-b - math.sqrt(b * b - 4 * a * c)))
