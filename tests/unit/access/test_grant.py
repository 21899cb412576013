"""What a grant allows, and what it keeps of what a client has asked for."""

import math
import tracemalloc

import pytest

from service.access.grant import Grant
from service.errors import PermissionDenied
from service.requests.principal import Principal


class Counter:
    def refused(self, *_: object) -> None:
        """Counts nothing."""


def grant(*patterns: str) -> Grant:
    return Grant(Principal("token", "a", "group"), [], patterns, math.inf, Counter())


def allowed(of: Grant, model: str) -> bool:
    try:
        of.require_model("infer", model)
    except PermissionDenied:
        return False
    return True


def test_models_are_allowed_by_their_patterns_in_whatever_order_they_are_asked_for() -> None:
    some = grant("digits", "team-?-*")
    for model, expected in {"": False, "digits": True, "digit": False, "team-a-x": True, "x" * 1000: False}.items():
        assert [allowed(some, each) for each in (model, model, "digits", model)] == [expected, expected, True, expected]
    assert [allowed(grant(), each) for each in ("", "digits")] == [False, False]
    assert [allowed(grant("*"), each) for each in ("", "x" * 1000)] == [True, True]


@pytest.mark.parametrize("pattern", ["*", "digits"])
@pytest.mark.parametrize("characters", [256, 1_000_000])
def test_it_keeps_little_of_the_names_that_are_asked_for(pattern: str, characters: int) -> None:
    one = grant(pattern)
    tracemalloc.start()
    try:
        for number in range(200):
            allowed(one, f"{number:0{characters}}")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000
