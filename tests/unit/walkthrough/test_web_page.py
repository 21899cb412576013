"""Worked examples: the printed numbers add up."""

import numpy as np
import pytest

from export.walkthrough import (
    web_page,
)
from tests.unit.walkthrough.models import added_up


@pytest.mark.parametrize("seed", range(20))
def test_worked_examples_add_up_as_printed(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = 10.0 ** random.integers(-3, 3)
    factors = [(colour, size * random.normal(size=(3, 3)), random.normal(size=(3, 3))) for colour in ("red", "green", "blue")]
    example = web_page.Example.sum_of_products("", factors, float(random.normal()) if seed % 2 else 0.0)
    assert added_up(example) == example.result
