"""A walkthrough as a web page: one file with everything inside, for a screen, a phone and paper, by day and by night.

Knows nothing of models: it is told what to show.
"""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from matplotlib import colors
from numpy.typing import NDArray

from export.walkthrough.feature_maps import Scale
from service.errors import UserError

PAGE = "index.html"

_VALUES = 8
_DECIMALS, _MOST_DECIMALS = 4, 8
_GRADIENT_STOPS = 9


@dataclass(frozen=True)
class Figure:
    """A picture: the bytes of its PNG, the `name` of the file that it gets, and what is said of it."""

    name: str
    content: bytes
    caption: str
    scale: Scale | None = None

    @property
    def file(self) -> str:
        """The name as one that every file system takes."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")[:80] + ".png"

    @property
    def uri(self) -> str:
        """The picture as the page has it inside."""
        return "data:image/png;base64," + base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class Example:
    """One value worked out: `words`, lines of tables of numbers, each with what stands before it, and the result."""

    words: str
    lines: list[list[tuple[str, list[list[str]]]]]
    result: str


@dataclass(frozen=True)
class Bar:
    """A named share of the whole, from 0 to 1, or less than 0 of what is negative."""

    name: str
    share: float
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Step:
    """One stop: what happens, and what came of it."""

    title: str
    name: str
    operator: str
    text: str
    value: NDArray[np.generic]
    figures: list[Figure]
    parameters: int = 0
    example: Example | None = None
    bars: list[Bar] = field(default_factory=list)

    @property
    def shape(self) -> str:
        """As Python writes it."""
        return str(tuple(self.value.shape))

    @property
    def first_values(self) -> list[str]:
        """The first few, in the order in which they lie in memory."""
        return [number(value) for value in self.value.ravel()[:_VALUES]] + ["…"] * (self.value.size > _VALUES)

    @property
    def span(self) -> str:
        """The lowest and the highest value."""
        return f"{number(self.value.min())} to {number(self.value.max())}"


@dataclass(frozen=True)
class Curve:
    """The loss by learning rate: points of a line in a box of 100x100, and what is marked on it."""

    points: str
    before: float
    mark: tuple[float, float]
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page that is no step: paragraphs, figures, bars, a curve, in this order."""

    anchor: str
    title: str
    paragraphs: list[str]
    figures: list[Figure] = field(default_factory=list)
    curve: Curve | None = None
    bars_title: str = ""
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """All that a page shows."""

    title: str
    lead: str
    picture: Figure | None
    steps: list[Step]
    facts: dict[str, str] = field(default_factory=dict)
    answers: list[Bar] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        """All pictures, in order."""
        of_steps = [figure for step in self.steps for figure in step.figures]
        return [
            *([self.picture] if self.picture else ()),
            *of_steps,
            *(figure for section in self.sections for figure in section.figures),
        ]


def write(page: Page, folder: Path) -> list[str]:
    """Writes the page and its pictures into a folder; returns the names of the files, the page first.

    Raises:
        UserError: the folder cannot be written.
    """
    content = render(page)
    names = [PAGE]
    try:
        for figure in page.figures():
            (folder / figure.file).write_bytes(figure.content)
            names.append(figure.file)
        (folder / PAGE).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    return names


def render(page: Page) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export.walkthrough"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=number, gradient=_gradient)
    return environment.get_template("walkthrough.html").render(page=page)


def number(value: object) -> str:
    """A number in four digits, without an exponent where it can do without; whole ones of integers as they are."""
    if isinstance(value, int | np.integer):
        return f"{value:d}"
    real = float(value)  # type: ignore[arg-type]
    if real == 0 or not math.isfinite(real):
        return "0" if real == 0 else str(real)
    return f"{real:.4g}" if 1e-4 <= abs(real) < 1e6 else f"{real:.2e}"


def percent(share: float) -> str:
    """A probability, with more digits where it is close to certain or to nothing."""
    if 0.001 <= share <= 0.999:
        return f"{share:.1%}"
    if share > 0.5:
        return f"{share:.2%}" if share < 0.9999 else "> 99.99%"
    return f"{share:.2%}" if share >= 0.0001 else "< 0.01%"


def rows(values: NDArray[np.generic], decimals: int = _DECIMALS) -> list[list[str]]:
    """A small matrix as text."""
    return [
        [f"{round(value, decimals) + 0.0:.{decimals}f}" if value % 1 else f"{value:.0f}" for value in row]
        for row in values.tolist()
    ]


def sum_of_products(words: str, factors: Sequence[tuple[str, NDArray[np.floating], NDArray[np.floating]]], bias: float) -> Example:
    """A sum of products and a bias, worked out: in so many decimals that who adds up what is printed gets what is printed.

    Args:
        words: what is worked out.
        factors: pairs of matrices of one shape, each after what stands before it.
        bias: is added; nothing is said of 0.
    """
    exact = sum(float((one.astype(np.float64) * other.astype(np.float64)).sum()) for _, one, other in factors) + bias
    places = min(max(0, 2 - math.floor(math.log10(abs(exact)))), _MOST_DECIMALS) if exact else 0
    result = f"{exact:.{places}f}"
    for decimals in range(2, _MOST_DECIMALS + 1):
        tables = [(rows(one, decimals), rows(other, decimals)) for _, one, other in factors]
        printed = sum(float((np.array(one, float) * np.array(other, float)).sum()) for one, other in tables) + float(number(bias))
        if f"{printed:.{places}f}" == result:
            break
    lines = [[(before, one), ("times", other)] for (before, *_), (one, other) in zip(factors, tables, strict=True)]
    return Example(words, lines, (f"+ bias {number(bias)} " if bias else "") + f"= {result}")


def curve(rates: NDArray[np.float64], losses: NDArray[np.float64], rate: float, before: float, after: float) -> Curve:
    """The loss after a step, by learning rate on a logarithmic axis. Losses far above the first one leave the picture."""
    top = max(2 * before, 1.1 * after if math.isfinite(after) and after < 6 * before else 0.0, 1e-9)
    low, high = math.log10(rates[0]), math.log10(rates[-1])

    def across(value: float) -> float:
        return round(100 * (math.log10(value) - low) / (high - low), 2)

    def down(loss: float) -> float:
        return round(100 * (1 - min(loss if math.isfinite(loss) else 3 * top, 3 * top) / top), 2)

    points = " ".join(f"{across(each)},{down(loss)}" for each, loss in zip(rates.tolist(), losses.tolist(), strict=True))
    ticks_x = [(across(10.0**power), f"{10.0**power:g}") for power in range(round(low), round(high) + 1)]
    ticks_y = [(down(share * top), number(float(f"{share * top:.2g}"))) for share in (0.0, 0.5, 1.0)]
    return Curve(points, down(before), (across(min(max(rate, rates[0]), rates[-1])), down(after)), ticks_x, ticks_y)


def _gradient(scale: Scale) -> str:
    """The colours of a scale as a CSS gradient."""
    palette = scale.palette()[:-1]
    chosen: Sequence[int] = np.linspace(0, len(palette) - 1, _GRADIENT_STOPS).astype(int).tolist()
    return f"linear-gradient(90deg, {', '.join(colors.to_hex(palette[index] / 255) for index in chosen)})"
