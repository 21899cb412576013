"""Scores as PNG files: confusion matrix, reliability diagram, and the most confident mistakes.

Uses matplotlib's objects, never its global state, and colours that colour-blind readers can tell apart.
"""

import io
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from export.data.image_files import MAX_PIXELS
from export.data.sample_size import accuracy_interval
from export.evaluation.fonts import Drawn, drawable
from export.evaluation.scores import Scores
from export.files import write_file
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode

CONFUSION = "confusion.png"
RELIABILITY = "reliability.png"
MISTAKES = "mistakes.png"

_BLUE, _ORANGE, _GRAY = "#0072b2", "#d55e00", "#666666"  # blue and orange of Okabe and Ito's palette
_NUMBERED_CLASSES = 25
_NAMED_CLASSES = 120
_MISTAKES = 24


Encoded = Callable[[int], bytes]
"""The bytes of the image of an answer, by its index."""


def draw(scores: Scores, encoded: Encoded, spec: InputSpec, folder: Path) -> list[str]:
    """Draws all figures into a folder and returns the names of the files. Without mistakes there is no figure of them.

    Raises UserError if one cannot be written.
    """
    draw_confusion(scores, folder / CONFUSION)
    draw_reliability(scores, folder / RELIABILITY)
    if scores.correct == scores.items:
        return [CONFUSION, RELIABILITY]
    draw_mistakes(scores, encoded, spec, folder / MISTAKES)
    return [CONFUSION, RELIABILITY, MISTAKES]


def draw_confusion(scores: Scores, path: Path) -> None:
    """The confusion matrix as a PNG: a cell's colour is its share of the true class, its number counts images.

    Only classes that occur are shown. The colour scale is stretched at its lower end, where the mistakes are. With many classes the
    numbers are left out, with very many also the names.
    """
    classes = len(scores.occurring)
    counts = scores.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    drawn = drawable(scores.labels)
    names = _shortened([drawn.names[index] for index in scores.occurring], 20)
    numbered, named = classes <= _NUMBERED_CLASSES, classes <= _NAMED_CLASSES
    side = min(max(4.0, 2.2 + 0.52 * classes), 15.0)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", norm=PowerNorm(0.4, vmin=0, vmax=100))
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{scores.accuracy:.2%} of {scores.items:,} images right", loc="left")
    if named:
        size = 10 if numbered else 5
        upright = all(len(name) <= 3 for name in names) or classes == 2
        axes.set_xticks(
            range(classes), names, fontsize=size, rotation=0 if upright else 90, parse_math=False, family=drawn.families
        )
        axes.set_yticks(range(classes), names, fontsize=size, parse_math=False, family=drawn.families)
    if numbered:
        axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        size = 9 if counts.max() < 10_000 else 7
        for true, answer in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[true, answer] > 0.25 else "black"
            axes.text(answer, true, f"{counts[true, answer]}", ha="center", va="center", color=colour, fontsize=size)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02, ticks=[0, 1, 5, 20, 50, 100], format="%g %%")
    bar.set_label("share of the true class")
    _note(figure, drawn if named else None)
    _save(figure, path)


def draw_reliability(scores: Scores, path: Path) -> None:
    """The reliability diagram (DeGroot and Fienberg, The Statistician 32, 1983) as a PNG: accuracy by confidence, for each bin.

    The whiskers are 95 % confidence intervals.
    """
    figure = Figure(figsize=(5.4, 7.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=_GRAY, linestyle=":", label="perfectly calibrated")
    if scores.temperature != 1.0:
        before = scores.reliability_before
        filled = before.items > 0
        upper.plot(
            before.confidence[filled], before.accuracy[filled], "s", color=_ORANGE, markerfacecolor="white",
            label=f"before the temperature: ECE {before.error:.2%}",
        )  # fmt: skip
    served = scores.reliability
    filled = served.items > 0
    accuracy, items = served.accuracy[filled], served.items[filled]
    intervals = [accuracy_interval(round(share * count), int(count)) for share, count in zip(accuracy, items, strict=True)]
    whiskers = np.abs(np.array(intervals).T - accuracy)  # (2, bins): below and above
    upper.errorbar(
        served.confidence[filled], accuracy, whiskers, fmt="o", color=_BLUE, elinewidth=1, capsize=2,
        label=f"as served: ECE {served.error:.2%}",
    )  # fmt: skip
    edges = np.linspace(0, 1, len(served.items) + 1)
    lower.bar(edges[:-1], served.items, width=np.diff(edges), align="edge", color=_BLUE, edgecolor="white")
    lower.set_yscale("log")
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1), ylim=(0.7, None))
    upper.set(ylabel="accuracy", ylim=(-0.02, 1.02))
    upper.set_title(f"Reliability diagram ({scores.items:,} images)", loc="left", fontsize=11)
    figure.legend(loc="outside lower center")  # inside the axes it could cover points
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    _save(figure, path)


def draw_mistakes(scores: Scores, encoded: Encoded, spec: InputSpec, path: Path) -> None:
    """The most confident mistakes as a PNG: the images as the network sees them, with true label, answer and confidence."""
    chosen = scores.mistakes(_MISTAKES)
    drawn = drawable(scores.labels)
    names = _shortened(drawn.names, 14)
    columns = min(len(chosen), math.ceil(math.sqrt(1.5 * len(chosen))))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(max(1.9 * columns, 2.4), 2.35 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, chosen, strict=False):
        image = decode(encoded(int(index)), spec, MAX_PIXELS)
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        true, answer = names[scores.truth[index]], names[scores.predictions[index]]
        axes.set_title(
            f"{answer} ({scores.confidence[index]:.1%})\ntruth: {true}", fontsize=9, parse_math=False, family=drawn.families
        )
    wrong = scores.items - scores.correct
    if wrong > len(chosen):
        title = f"The {len(chosen)} most confident of {wrong:,} mistakes"
    else:
        title = "The one mistake" if wrong == 1 else f"All {wrong} mistakes"
    figure.suptitle(title, fontsize=11)
    _note(figure, drawn)
    _save(figure, path)


def _note(figure: Figure, drawn: Drawn | None) -> None:
    """Says in the picture what of the names is missing."""
    if drawn is not None and drawn.note:
        figure.supxlabel(drawn.note, fontsize=7, color=_GRAY)


def _shortened(labels: Sequence[str], most: int) -> list[str]:
    """Labels cut in the middle to at most `most` letters; East Asian wide letters count twice.

    Labels that become equal get the numbers of their classes.
    """
    cut = [_cut(label, most) for label in labels]
    return [f"{label} ({index})" if cut.count(label) > 1 else label for index, label in enumerate(cut)]


def _cut(label: str, most: int) -> str:
    if any(unicodedata.east_asian_width(letter) in "WF" for letter in label):
        most //= 2
    return label if len(label) <= most else f"{label[: most // 2]}…{label[-((most - 1) // 2) :]}"


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    write_file(path, content.getvalue())
