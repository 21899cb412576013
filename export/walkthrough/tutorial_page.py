"""The articles' tour as a page: each step with its shape, its first values, its picture and, for two, a value worked out."""

import numpy as np
from numpy.typing import NDArray

from export.walkthrough import feature_maps
from export.walkthrough.feature_maps import Scale
from export.walkthrough.tutorial_steps import LAPLACIAN, SIDE, UNITS, Tour
from export.walkthrough.web_page import Example, Figure, Page, Step, rows, sum_of_products


def page(tour: Tour, image_name: str) -> Page:
    """What to show of a tour of the picture `image_name`."""
    height, width, _ = tour.loaded.shape
    place = _strongest(tour.convolved)
    negative = float((tour.convolved < 0).mean())
    alike = " The three are alike: the picture is gray." if (tour.loaded == tour.loaded[:, :, :1]).all() else ""
    stretched = "" if height == width else " The picture is stretched to a square."
    steps = [
        _pixels(
            "Load", tour.loaded,
            f"{image_name}: {height} rows of {width} pixels, of red, green and blue, each from 0 to 255.{alike}",
        ),
        _pixels("Gray", tour.gray, "One number a pixel: 0.299 red + 0.587 green + 0.114 blue, as bright as an eye would find it."),
        _pixels("Resize", tour.resized, f"To {SIDE}x{SIDE}, for a network's first layer has a fixed size.{stretched}"),
        _map("Normalise", tour.normalised, "Divided by 255: floats from 0 to 1. The first of the dimensions counts pictures."),
        _map(
            "Convolution", tour.convolved,
            "A kernel of 3x3 slides over the picture. This one, a Laplacian, takes eight times a pixel less its eight neighbours: "
            "0 where the picture is flat, large where it changes. Outside the picture are zeros, so that the size stays.",
            _convolved(tour, *place),
        ),
        _map(
            "ReLU", tour.rectified,
            f"Negative values become 0, positive ones stay: of an edge one side is left. Here {negative:.0%} were negative.",
        ),
        _map(
            "Max pooling", tour.pooled,
            "Of every 2x2 the largest value stays: a quarter of the values, and what moves by a pixel hardly changes them.",
            _pooled(tour, *place),
        ),
        _vector(
            "Flatten", tour.flat, f"The {tour.pooled.shape[1]} rows one after another, as a dense layer takes them.",
            _scale(tour.pooled),
        ),
        _vector(
            "Dense layer", tour.dense,
            f"Each of {UNITS} values weighs all {tour.flat.size:,}. The weights are drawn at random, as before any training: what "
            "comes out means nothing yet. To give it a meaning is what a training does.",
            Scale.of(tour.dense), parameters=tour.flat.size * UNITS,
        ),
    ]  # fmt: skip
    named = [
        Step(
            step.title, "", step.operator, step.text, step.value,
            [Figure(f"{at:02} {figure.name}", figure.content, figure.caption, figure.scale) for figure in step.figures],
            step.parameters, step.example,
        )
        for at, step in enumerate(steps, start=1)
    ]  # fmt: skip
    return Page(
        title=f"A convolutional layer, step by step: {image_name}",
        lead="What the first layers of a convolutional network make of a picture, with nothing learned yet.",
        picture=None,
        steps=named,
        notes=[
            "Shapes are (pictures, rows, columns, channels). Computed by Convoy with NumPy and SciPy; the pictures lie beside this "
            "page as PNG files. A trained network: convoy walkthrough IMAGE --model MODEL.onnx."
        ],
    )


def _pixels(title: str, pixels: NDArray[np.uint8], text: str) -> Step:
    return Step(title, "", title, text, _squeezed(pixels), [Figure(title.lower(), feature_maps.picture(pixels), "")])


def _map(title: str, values: NDArray[np.float32], text: str, example: Example | None = None) -> Step:
    if title == "Normalise":
        pixels = np.rint(255 * values[0]).astype(np.uint8)
        return Step(
            title, "", title, text, values, [Figure(title.lower(), feature_maps.picture(pixels), "Black is 0, white is 1.")]
        )
    scale = _scale(values)
    content = feature_maps.maps(values[0].transpose(2, 0, 1), scale)
    return Step(title, "", title, text, values, [Figure(title.lower(), content, "", scale)], example=example)


def _scale(values: NDArray[np.float32]) -> Scale:
    # Without the rim: next to a border of zeros everything is an edge, of a kind that would leave no colour for those inside.
    return Scale.of(values[:, 1:-1, 1:-1], values)


def _vector(title: str, values: NDArray[np.float32], text: str, scale: Scale, parameters: int = 0) -> Step:
    if values.size <= feature_maps.SHOWN_BARS:
        figure = Figure(title.lower(), feature_maps.bars(values[0]), "A bar a value; below the line is negative.")
    else:
        figure = Figure(title.lower(), feature_maps.strip(values[0], scale), f"All {values.size:,} values, line by line.", scale)
    return Step(title, "", title, text, values, [figure], parameters)


def _convolved(tour: Tour, row: int, column: int) -> Example:
    patch = tour.normalised[0, row - 1 : row + 2, column - 1 : column + 2, 0]
    return sum_of_products(
        f"Row {row}, column {column}, both counted from 0, the strongest value away from the border: the pixels there, times the "
        "kernel, added up.",
        [("", patch, LAPLACIAN)], 0.0,
    )  # fmt: skip


def _pooled(tour: Tour, row: int, column: int) -> Example:
    top, left = row - row % 2, column - column % 2
    window = tour.rectified[0, top : top + 2, left : left + 2, 0]
    [[largest]] = rows(tour.pooled[0, top // 2, [left // 2]])
    return Example(
        f"The same place: of rows {top} and {top + 1}, columns {left} and {left + 1}, the largest.",
        [[("", rows(window))]], f"gives {largest}",
    )  # fmt: skip


def _strongest(values: NDArray[np.float32]) -> tuple[int, int]:
    """Row and column of the largest value of float32[1,H,W,1] that is not at the border."""
    inner = values[0, 1:-1, 1:-1, 0]
    row, column = np.unravel_index(inner.argmax(), inner.shape)
    return int(row) + 1, int(column) + 1


def _squeezed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
