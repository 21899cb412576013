"""Types of parameters that click does not have, for all commands of `export/`."""

import math
from collections.abc import Mapping
from typing import Any

import click

from service.cli.parameters import FiniteFloat


class MinimumAccuracy(FiniteFloat):
    """A percentage, 0 or above 1: below that a fraction is meant, with which next to nothing would be refused."""

    def __init__(self) -> None:
        super().__init__(0, 100)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads a percentage, or says what is accepted."""
        percent = super().convert(value, param, ctx)
        if 0 < percent <= 1:
            self.fail(
                f"{value} would be {percent:g} %: a percentage is accepted, 0 or above 1, such as {100 * percent:g}.", param, ctx
            )
        return percent


class ChannelValues(click.ParamType[tuple[float, ...]]):
    """`R,G,B`, or one number for gray, or the name of known values."""

    name = "values by channel"

    def __init__(self, known: Mapping[str, tuple[float, ...]], low: float = 0.0, high: float = 1.0, low_open: bool = False) -> None:
        self.known, self.low, self.high, self.low_open = known, low, high, low_open

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Reads the numbers, or says what is accepted."""
        text = str(value).strip()
        if text in self.known:
            return self.known[text]
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        fits = all(math.isfinite(number) and self.low <= number <= self.high for number in numbers)
        if len(numbers) not in (1, 3) or not fits or (self.low_open and self.low in numbers):
            self.fail(
                f"{value!r} is neither {', '.join(self.known)} nor R,G,B (one number for gray), each from {self.low:g} "
                f"{'(not itself) ' if self.low_open else ''}to {self.high:g}, for pixels of 0 to 1.",
                param, ctx,
            )  # fmt: skip
        return numbers
