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
    size = 10.0 ** random.integers(-3, 5)
    factors = [(colour, size * random.normal(size=(3, 3)), random.normal(size=(3, 3))) for colour in ("red", "green", "blue")]
    example = web_page.Example.sum_of_products("", factors, size * float(random.normal()) if seed % 2 else 0.0)
    assert added_up(example) == example.result


def test_a_bias_that_nearly_undoes_the_sum_has_the_digits_that_it_takes() -> None:
    factors = [("", np.full((3, 3), 100.123), np.full((3, 3), 1.1))]
    example = web_page.Example.sum_of_products("", factors, -9 * 100.123 * 1.1 + 0.004321)
    assert added_up(example) == example.result == f"{example.result.partition('=')[0]}= 0.00432"


def test_nothing_overhangs_or_is_cut() -> None:
    """Names wrap, since two that are cut can be the same text; the axis of the loss has the room that its longest number takes."""
    names = [f"stage4_block1.shortcut.{name}" for name in ("conv", "norm")]
    curve = web_page.Curve.of_losses(np.array([1e-5, 1.0]), np.array([1e-6, 1e-7]), 0.1, 1.43e-6, 1e-7)
    longest = max(len(text) for _, text in curve.ticks_y)
    section = web_page.Section("s", "s", [], curve=curve, bars=[web_page.Bar(name, 0.5, "0.5") for name in names])
    html = web_page.render(web_page.Page("t", "l", None, [], sections=[section]))
    assert longest > 6
    left = float(html.partition('<svg viewBox="')[2].partition(" ")[0])
    assert -left >= 2 + 2.4 * longest, "digits are 0.6 of a letter of 4 high"
    assert all(f">{name}</th>" in html for name in names)
    assert "ellipsis" not in html


def test_the_tables_of_a_colour_stay_beside_each_other() -> None:
    factors = [(colour, np.ones((3, 3)), np.ones((3, 3))) for colour in ("red", "+ green", "+ blue")]
    step = web_page.Step("t", "", "", "", np.zeros(1), [], example=web_page.Example.sum_of_products("", factors, 0.5))
    html = web_page.render(web_page.Page("t", "l", None, [step]))
    assert html.count('<div class="sum">') == 3
    assert html.index('<div class="example">') > html.index('<div class="two">')
    assert "flex-wrap" not in html.partition(".example .sum {")[2].partition("}")[0]
    assert '<p class="result">+ bias 0.5 = 27.5</p>' in html
