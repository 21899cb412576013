"""Types of parameters that click does not have, for all commands of the program, those of export/ too."""

import math
import re
from collections.abc import Sequence
from typing import Any

import click


class ImageSize(click.ParamType[tuple[int, int]]):
    """`N` or `HxW` in pixels, as (height, width)."""

    name = "image size"

    def __init__(self, largest_side: int) -> None:
        self.largest_side = largest_side

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Reads a size, or says what is accepted."""
        match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", str(value).lower())
        height, width = (int(match[1]), int(match[2] or match[1])) if match is not None else (0, 0)
        if not (1 <= height <= self.largest_side and 1 <= width <= self.largest_side):
            self.fail(f"{value!r} is neither N nor HxW, of 1 to {self.largest_side} pixels, such as 224 or 224x160.", param, ctx)
        return height, width


class NumberOrWord(click.ParamType[int | str]):
    """An integer in a range, or one of a few words."""

    def __init__(self, number: click.IntRange, words: Sequence[str]) -> None:
        self._number = number
        self._words = words
        self.name = "|".join([*words, number.name])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Reads a number or a word, or says what is accepted."""
        if value in self._words:
            return str(value)
        try:
            number: int = self._number.convert(value, param, ctx)
        except click.BadParameter:
            accepted = f"{', '.join(self._words)} or an integer from {self._number.min} to {self._number.max}"
            self.fail(f"{value!r} is not accepted: give {accepted}.", param, ctx)
        return number


class FiniteFloat(click.FloatRange):
    """A number in a range; click's own range lets NaN through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads a number, or says what is accepted."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
