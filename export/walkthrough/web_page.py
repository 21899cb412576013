"""A walkthrough as data, and its rendering as one self-contained HTML file and the images beside it. Knows nothing of models."""

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
from export.walkthrough.number_format import matrix_rows, number
from service.errors import UserError

PAGE = "index.html"

_SHOWN_VALUES = 8
_MOST_DECIMALS = 8
_GRADIENT_STOPS = 9


@dataclass(frozen=True)
class Figure:
    """An image: a name, the bytes of its PNG, a caption and, if its colours stand for values, their scale."""

    name: str
    content: bytes
    caption: str
    scale: Scale | None = None

    @property
    def file(self) -> str:
        """The name of its file, valid on every file system."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")[:80] + ".png"

    @property
    def uri(self) -> str:
        """The image as a data URI, for the page."""
        return "data:image/png;base64," + base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class Example:
    """The computation of one value, worked out.

    Attributes:
        words: what is computed.
        lines: tables of numbers, each with the text before it.
        result: the text after the last line.
    """

    words: str
    lines: list[list[tuple[str, list[list[str]]]]]
    result: str

    @classmethod
    def sum_of_products(
        cls, words: str, factors: Sequence[tuple[str, NDArray[np.floating], NDArray[np.floating]]], bias: float
    ) -> "Example":
        """A sum of products and a bias, with so many decimals that the printed numbers add up to the printed result.

        Args:
            words: what is computed.
            factors: pairs of matrices of one shape, each with the text before it.
            bias: added; not printed if it is 0.
        """
        exact = sum(float((one.astype(np.float64) * other.astype(np.float64)).sum()) for _, one, other in factors) + bias
        places = min(max(0, 2 - math.floor(math.log10(abs(exact)))), _MOST_DECIMALS) if exact else 0
        for decimals in range(2, _MOST_DECIMALS + 1):
            tables = [(matrix_rows(one, decimals), matrix_rows(other, decimals)) for _, one, other in factors]
            added = f"{bias:.{decimals + 2}g}"  # four significant digits and more
            printed = sum(float((np.array(one, float) * np.array(other, float)).sum()) for one, other in tables) + float(added)
            result = f"{printed:.{places}f}"  # of what is printed, even where no number of decimals gives the exact one
            if result == f"{exact:.{places}f}":
                break
        lines = [[(before, one), ("times", other)] for (before, *_), (one, other) in zip(factors, tables, strict=True)]
        return cls(words, lines, (f"+ bias {added} " if bias else "") + f"= {result}")


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: a name, a length from -1 to 1, and the text after it."""

    name: str
    share: float
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Step:
    """One step of the walkthrough, such as a layer: its texts, its output, and how that is shown."""

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
        """The shape of the output as a Python tuple."""
        return str(tuple(self.value.shape))

    @property
    def first_values(self) -> list[str]:
        """The first few values, in memory order."""
        return [number(value) for value in self.value.ravel()[:_SHOWN_VALUES]] + ["…"] * (self.value.size > _SHOWN_VALUES)

    @property
    def span(self) -> str:
        """The lowest and the highest value."""
        return f"{number(self.value.min())} to {number(self.value.max())}"


@dataclass(frozen=True)
class Curve:
    """The loss after a step by learning rate, in a box of 100x100.

    Attributes:
        points: of the line, as SVG takes them.
        before: height of the loss before the step.
        mark: place of the step that was taken.
        ticks_x: places and texts on the axis of the learning rate.
        ticks_y: places and texts on the axis of the loss.
    """

    points: str
    before: float
    mark: tuple[float, float]
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]

    @classmethod
    def of_losses(
        cls, rates: NDArray[np.float64], losses: NDArray[np.float64], rate: float, before: float, after: float
    ) -> "Curve":
        """The curve of `losses` after steps with `rates`, and the step with `rate` from the loss `before` to the loss `after`.

        The axis of the rates is logarithmic. Losses far above `before` are outside the box.
        """
        top = max(2 * before, 1.1 * after if math.isfinite(after) and after < 6 * before else 0.0, 1e-9)
        low, high = math.log10(rates[0]), math.log10(rates[-1])

        def across(value: float) -> float:
            return round(100 * (math.log10(value) - low) / (high - low), 2)

        def down(loss: float) -> float:
            return round(100 * (1 - min(loss if math.isfinite(loss) else 3 * top, 3 * top) / top), 2)

        points = " ".join(f"{across(each)},{down(loss)}" for each, loss in zip(rates.tolist(), losses.tolist(), strict=True))
        ticks_x = [(across(10.0**power), f"{10.0**power:g}") for power in range(round(low), round(high) + 1)]
        ticks_y = [(down(share * top), number(float(f"{share * top:.2g}"))) for share in (0.0, 0.5, 1.0)]
        return cls(points, down(before), (across(min(max(rate, rates[0]), rates[-1])), down(after)), ticks_x, ticks_y)


@dataclass(frozen=True)
class Section:
    """A part of the page after the steps: paragraphs, figures, a curve and bars, in this order."""

    anchor: str
    title: str
    paragraphs: list[str]
    figures: list[Figure] = field(default_factory=list)
    curve: Curve | None = None
    bars_title: str = ""
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: str
    picture: Figure | None
    steps: list[Step]
    facts: dict[str, str] = field(default_factory=dict)
    answers: list[Bar] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figures(self) -> list[Figure]:
        """All images, in order."""
        of_steps = [figure for step in self.steps for figure in step.figures]
        return [
            *([self.picture] if self.picture else ()),
            *of_steps,
            *(figure for section in self.sections for figure in section.figures),
        ]


def write(page: Page, folder: Path) -> list[str]:
    """Writes the page and its images into a folder and returns the names of the files, the page first.

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


def _gradient(scale: Scale) -> str:
    """The colours of a scale as a CSS gradient."""
    palette = scale.palette()[:-1]
    chosen: Sequence[int] = np.linspace(0, len(palette) - 1, _GRADIENT_STOPS).astype(int).tolist()
    return f"linear-gradient(90deg, {', '.join(colors.to_hex(palette[index] / 255) for index in chosen)})"
