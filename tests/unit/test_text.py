"""Lists and fractions as text."""

from export.text import first_of, percent_or_dash


def test_a_long_list_is_cut_and_the_others_counted() -> None:
    assert first_of(["a", "b", "c"], 3) == "a, b, c"
    assert first_of(("a", "b", "c"), 2) == "a, b and 1 more"
    assert first_of([], 2) == ""


def test_an_undefined_fraction_is_a_dash() -> None:
    assert (percent_or_dash(0.1249), percent_or_dash(0.0), percent_or_dash(None)) == ("12.5%", "0.0%", "-")
