"""How many pictures say how much."""

import pytest

from export.data.sample_size import accuracy_interval, items_to_know


@pytest.mark.parametrize(("correct", "items"), [(2, 3), (3, 3), (0, 5), (40, 60), (95, 100)])
@pytest.mark.parametrize("margin", [0.05, 0.02])
def test_so_many_pictures_have_an_interval_of_that_width_and_fewer_have_not(correct: int, items: int, margin: float) -> None:
    low, high = accuracy_interval(correct, items)
    found = items_to_know(correct, items, margin)
    middle = (low + high) / 2
    for count, narrow in ((found + 2, True), (found - 2, False)):
        low, high = accuracy_interval(middle * count, count)
        assert (high - low <= 2 * margin) is narrow


def test_more_pictures_are_needed_where_chance_decides_more() -> None:
    assert items_to_know(1, 3) > items_to_know(28, 30)
    assert 370 < items_to_know(500, 1000) <= 385, "as in every textbook: 385 for a half, plus or minus 5 points"
