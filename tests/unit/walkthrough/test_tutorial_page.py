"""The page of the tutorials' steps."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.walkthrough import (
    tutorial_page,
    tutorial_steps,
)
from tests.unit.walkthrough.models import MAX_PIXELS, added_up


def test_the_worked_examples_of_the_steps_add_up(flower: Path) -> None:
    page = tutorial_page.build_page(tutorial_steps.compute_steps(flower.read_bytes(), MAX_PIXELS), "flower.png")
    convolution, pooling = (step.example for step in page.steps if step.example)
    assert convolution is not None
    assert pooling is not None
    assert added_up(convolution) == convolution.result
    window = np.array(pooling.lines[0][0][1], float)
    assert window.max() == float(pooling.result.split()[-1])
    assert window.max() == pytest.approx(float(convolution.result.split()[-1]), abs=0.005)  # the same place


def test_a_picture_of_one_colour_has_no_edges_but_its_border(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (90, 70), 171).save(buffer, "PNG")
    steps = tutorial_steps.compute_steps(buffer.getvalue(), MAX_PIXELS)
    assert not steps.convolved[:, 1:-1, 1:-1].any()
    assert steps.convolved[:, 0].all()
    load, *_ = tutorial_page.build_page(steps, "gray.png").steps
    assert load.text.endswith("The three are equal: the picture is gray.")


def test_the_flat_vector_has_the_colours_of_its_map(flower: Path) -> None:
    *_, pooled, flat, _ = tutorial_page.build_page(
        tutorial_steps.compute_steps(flower.read_bytes(), MAX_PIXELS), "flower.png"
    ).steps
    assert flat.title == "Flatten"
    assert flat.figures[0].scale == pooled.figures[0].scale
