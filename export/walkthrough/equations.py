"""Equations that are true as they are printed: a reader with a calculator gets the number after the equals sign.

A probability that is rounded to four digits has another logarithm: -ln 1 is 0, not 1.43e-06. So numbers get as many digits as
their equation needs.
"""

import math
from collections.abc import Callable, Sequence

from export.walkthrough.number_format import number

_FEWEST_DIGITS, _MOST_DIGITS = 4, 17  # with 17 significant digits a float64 is printed exactly
_NEARLY_SURE = 1e-3
_BELOW_CALCULATORS = 1e-12
_LARGEST_POWER = 500.0


def printed(values: Sequence[float], formula: Callable[..., float]) -> tuple[list[str], str]:
    """The texts of the values, with few digits, and of the result that `formula` has for the numbers in these texts."""
    exact = number(formula(*values))
    for digits in range(_FEWEST_DIGITS, _MOST_DIGITS + 1):
        texts = [f"{value:.{digits}g}" for value in values]
        if number(formula(*map(float, texts))) == exact:
            break
    return texts, exact


def negative_logarithm(probability: float, others: float) -> str:
    """-ln of a probability in words or as an equation; `others`, the rest to 1, is exact where the probability is next to 1."""
    if others < _BELOW_CALCULATORS:
        return f"which is 1 but for less than {_BELOW_CALCULATORS:g}, so next to 0"
    if probability == 0:
        return "which is 0 to all digits of a computer's numbers"
    if others < _NEARLY_SURE:
        [rest], result = printed([others], lambda rest: -math.log1p(-rest))
        return f"-ln(1 - {rest}) = {result}"
    [text], result = printed([probability], lambda value: -math.log(value))
    return f"-ln {text} = {result}"


def linear_estimate(loss: float, rate: float, norm: float) -> str:
    """The loss after a step if it fell along a straight line: loss - rate x norm^2."""
    (before, step, length), result = printed([loss, rate, norm], lambda loss, rate, norm: loss - rate * norm**2)
    return f"{before} - {step} x {length}² = {result}"


def sigmoid(z: float) -> str:
    """1 / (1 + exp(-z)); with z limited to a range outside of which it is 0 or 1 in print."""
    [text], result = printed([min(max(-z, -_LARGEST_POWER), _LARGEST_POWER)], lambda power: 1 / (1 + math.exp(power)))
    return f"1 / (1 + exp({text})) = {result}"
