"""Types of parameters that click does not have."""

import math
from typing import Any

import click


class FiniteFloat(click.FloatRange):
    """A number in a range; click's own range lets NaN through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads a number, or says what is accepted."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
