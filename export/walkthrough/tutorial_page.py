"""The tutorials' steps as a page: each step with its shape, its first values, its image and, for two, a value worked out."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from export.walkthrough import feature_maps
from export.walkthrough.feature_maps import Scale
from export.walkthrough.number_format import matrix_rows
from export.walkthrough.tutorial_steps import LAPLACIAN, SIDE, UNITS, TutorialSteps
from export.walkthrough.web_page import Example, Figure, Page, Step


def build_page(steps: TutorialSteps, image_name: str) -> Page:
    """The page of the image `image_name`."""
    shown = [*_picture_steps(steps, image_name), *_convolution_steps(steps), *_dense_steps(steps)]
    return Page(
        title=f"A convolutional layer, step by step: {image_name}",
        lead="What the first layers of a convolutional network compute from a picture, before any training.",
        picture=None,
        steps=[_with_numbered_figures(number, step) for number, step in enumerate(shown, start=1)],
        notes=[
            "Shapes are (pictures, rows, columns, channels). Computed by Convoy with NumPy and SciPy; the pictures are also beside "
            "this page as PNG files. For a trained network: convoy walkthrough IMAGE --model MODEL.onnx."
        ],
    )


def _picture_steps(steps: TutorialSteps, image_name: str) -> list[Step]:
    height, width, _ = steps.loaded.shape
    is_gray = (steps.loaded == steps.loaded[:, :, :1]).all()
    gray = " The three are equal: the picture is gray." if is_gray else ""
    stretched = "" if height == width else " The picture is stretched to a square."
    return [
        _pixels(
            "Load", steps.loaded,
            f"{image_name}: {height} rows of {width} pixels, of red, green and blue, each from 0 to 255.{gray}",
        ),
        _pixels("Gray", steps.gray, "One number for each pixel: 0.299 red + 0.587 green + 0.114 blue, its perceived brightness."),
        _pixels("Resize", steps.resized, f"To {SIDE}x{SIDE}: the input of a network has a fixed size.{stretched}"),
        _normalised(steps.normalised),
    ]  # fmt: skip


def _convolution_steps(steps: TutorialSteps) -> list[Step]:
    place = _largest(steps.convolved)
    negative = float((steps.convolved < 0).mean())
    return [
        _map(
            "Convolution", steps.convolved,
            "A kernel of 3x3 slides over the picture. This one, a Laplacian, takes eight times a pixel less its eight neighbours: "
            "0 where the picture is flat, large where it changes. The border is padded with zeros, so that the size stays.",
            _convolved_example(steps, *place),
        ),
        _map(
            "ReLU", steps.rectified,
            f"Negative values become 0, positive ones stay: one side of each edge is left. Here {negative:.0%} were negative.",
        ),
        _map(
            "Max pooling", steps.pooled,
            "The largest value of every 2x2 window stays: a quarter of the values, which hardly change if things move by a pixel.",
            _pooled_example(steps, *place),
        ),
    ]  # fmt: skip


def _dense_steps(steps: TutorialSteps) -> list[Step]:
    return [
        _vector(
            "Flatten", steps.flat, f"The {steps.pooled.shape[1]} rows one after another, as a dense layer takes them.",
            _scale_inside(steps.pooled),
        ),
        _vector(
            "Dense layer", steps.dense,
            f"Each of {UNITS} values weighs all {steps.flat.size:,}. The weights are random, as before any training, so the result "
            "means nothing yet. Training gives it a meaning.",
            Scale.of(steps.dense), parameters=steps.flat.size * UNITS,
        ),
    ]  # fmt: skip


def _with_numbered_figures(number: int, step: Step) -> Step:
    return replace(step, figures=[replace(figure, name=f"{number:02} {figure.name}") for figure in step.figures])


def _pixels(title: str, pixels: NDArray[np.uint8], text: str) -> Step:
    squeezed: NDArray[np.uint8] = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    return Step(title, "", title, text, squeezed, [Figure(title.lower(), feature_maps.picture(pixels), "")])


def _normalised(values: NDArray[np.float32]) -> Step:
    title = "Normalise"
    pixels = np.rint(255 * values[0]).astype(np.uint8)
    figure = Figure(title.lower(), feature_maps.picture(pixels), "Black is 0, white is 1.")
    text = "Divided by 255: floats from 0 to 1. The first of the dimensions counts pictures."
    return Step(title, "", title, text, values, [figure])


def _map(title: str, values: NDArray[np.float32], text: str, example: Example | None = None) -> Step:
    scale = _scale_inside(values)
    content = feature_maps.maps(values[0].transpose(2, 0, 1), scale)
    return Step(title, "", title, text, values, [Figure(title.lower(), content, "", scale)], example=example)


def _vector(title: str, values: NDArray[np.float32], text: str, scale: Scale, parameters: int = 0) -> Step:
    if values.size <= feature_maps.SHOWN_BARS:
        figure = Figure(title.lower(), feature_maps.bars(values[0]), "A bar for each value; below the line is negative.")
    else:
        figure = Figure(title.lower(), feature_maps.strip(values[0], scale), f"All {values.size:,} values, line by line.", scale)
    return Step(title, "", title, text, values, [figure], parameters)


def _scale_inside(values: NDArray[np.float32]) -> Scale:
    # The zeros around the image make edges at its border that are far stronger than those inside.
    return Scale.of(values[:, 1:-1, 1:-1], values)


def _convolved_example(steps: TutorialSteps, row: int, column: int) -> Example:
    patch = steps.normalised[0, row - 1 : row + 2, column - 1 : column + 2, 0]
    return Example.sum_of_products(
        f"Row {row}, column {column}, both counted from 0, the highest value away from the border: the pixels there, times the "
        "kernel, added up.",
        [("", patch, LAPLACIAN)], 0.0,
    )  # fmt: skip


def _pooled_example(steps: TutorialSteps, row: int, column: int) -> Example:
    top, left = row - row % 2, column - column % 2
    window = steps.rectified[0, top : top + 2, left : left + 2, 0]
    [[largest]] = matrix_rows(steps.pooled[0, top // 2, [left // 2]])
    return Example(
        f"The same place: the largest value of rows {top} and {top + 1}, columns {left} and {left + 1}.",
        [[("", matrix_rows(window))]], f"gives {largest}",
    )  # fmt: skip


def _largest(values: NDArray[np.float32]) -> tuple[int, int]:
    """Row and column of the largest value of float32[1,H,W,1] that is not at the border."""
    inner = values[0, 1:-1, 1:-1, 0]
    row, column = np.unravel_index(inner.argmax(), inner.shape)
    return int(row) + 1, int(column) + 1
