"""Printed equations are true: a calculator that is given the left side shows the right side."""

import math

import numpy as np
import pytest

from export.walkthrough import equations
from tests.unit.walkthrough.models import equations as found_in
from tests.unit.walkthrough.models import is_true


@pytest.mark.parametrize("power", [-300, -12, -6, -5, -3, -1])
def test_the_loss_is_the_logarithm_of_what_is_printed(power: int) -> None:
    random = np.random.default_rng(-power)
    for rest in 10.0**power * random.uniform(1, 9.99, 50):
        for probability, others in ((1 - rest, rest), (rest, 1 - rest)):
            text = equations.negative_logarithm(probability, others)
            assert text.startswith("-ln") == (others >= 1e-12), text
            assert not text.startswith("-ln") or is_true(text), text


def test_a_certain_answer_has_no_equation_that_says_ln_1() -> None:
    assert equations.negative_logarithm(1 - 1.43e-6, 1.43e-6) == "-ln(1 - 1.43e-06) = 1.43e-06"
    assert equations.negative_logarithm(1.0, 0.0) == "which is 1 but for less than 1e-12, so next to 0"
    assert "=" not in equations.negative_logarithm(0.0, 1.0)
    assert equations.negative_logarithm(math.nan, math.nan).endswith("nan")


@pytest.mark.parametrize("seed", range(5))
def test_estimates_and_sigmoids_are_those_of_what_is_printed(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(100):
        loss, rate, norm, z = (float(value) for value in 10.0 ** random.uniform((-6, -5, -3, -2), (2, 1, 3, 2)))
        near = math.sqrt(loss / rate) * (1 + 1e-5 * random.normal())  # where next to nothing is left
        for length in (norm, near):
            assert is_true(equations.linear_estimate(loss, rate, length)), (loss, rate, length)
        for power in (z, -z):
            assert is_true(equations.sigmoid(power)), power


def test_the_check_of_these_tests_finds_what_is_false() -> None:
    assert found_in("The loss is -log 1 = 1.43e-06, or -ln 0.5 = 0.6931; so 1 - 0.1 x 2² = 0.6.") == [
        "1 = 1.43e-06", "-ln 0.5 = 0.6931", "1 - 0.1 x 2² = 0.6",
    ]  # fmt: skip
    assert not is_true("-ln 1 = 1.43e-06")
    assert not is_true("-ln 0.955 = 0.04594")
    assert is_true("-ln 0.955123 = 0.04592")
