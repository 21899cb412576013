"""Which version answers requests that name none."""

from collections import Counter
from typing import Any

import pytest

from service.engine.query import Query
from service.engine.routing import Routing, Split, make_routing
from service.policy import Policy

CANARY: dict[str, Any] = {"aliases": {"stable": 1, "canary": 2}}


def routing(policy: dict[str, Any], served: list[int], asked_for: list[int], before: int = 0) -> Routing:
    return make_routing(Policy(**policy), served, asked_for, before)


@pytest.mark.parametrize(
    ("policy", "default"),
    [
        ({"versions": "1"}, 1),
        ({"versions": "1", "default": "latest"}, 1),
        ({"versions": "1", "default": "canary"}, 2),
        ({"versions": "1", "default": 2}, 2),
        ({"versions": "1", "default": "2"}, 2),
        ({"versions": "1", "default": "stable", "traffic": {"canary": 1}}, 1),
    ],
)
def test_an_alias_alone_changes_neither_the_default_nor_latest(policy: dict[str, Any], default: int) -> None:
    found = routing(CANARY | policy, [2, 1], [1])
    assert found.names() == {"stable": 1, "canary": 2, "latest": 1, "": default}


def test_latest_stays_while_nothing_that_is_asked_for_is_served() -> None:
    assert routing(CANARY | {"versions": "3"}, [2, 1], [], before=1).latest == 1
    assert routing(CANARY | {"versions": "3"}, [2, 1], [], before=0).latest == 0
    assert routing(CANARY | {"versions": "3"}, [2], [], before=1).latest == 0


def test_what_is_not_served_gets_no_share() -> None:
    policy = CANARY | {"traffic": {"stable": 90, "canary": 5, "3": 5, "latest": 0}}
    assert routing(policy, [3, 2, 1], [3]).shares() == {1: 0.9, 2: 0.05, 3: 0.05}
    assert routing(policy, [3, 1], [3]).shares() == {1: 90 / 95, 3: 5 / 95}
    assert routing(policy, [4], [4]).shares() == {4: 1.0}, "of those none: the default"
    assert routing(policy | {"default": 9}, [2, 1], []).default == 1, "while it is not served"
    assert routing({"traffic": {"1": 1, "latest": 3}}, [1], [1]).shares() == {1: 1.0}, "two names of one version"


def test_requests_are_shared_out_by_weight() -> None:
    split = Split(((1, 95.0), (2, 5.0)), "x-user")
    counts = Counter(split.version_for(Query("m", ())) for _ in range(20_000))
    assert 700 < counts[2] < 1300, "1000 and 10 standard deviations"
    counts = Counter(split.version_for(of_user(number)) for number in range(20_000))
    assert 700 < counts[2] < 1300


def test_a_key_stays_at_its_version_and_few_move_when_weights_change() -> None:
    queries = [of_user(number) for number in range(2000)]
    before, after = (Split(((1, stable), (2, 100 - stable)), "x-user") for stable in (95.0, 80.0))
    assert [before.version_for(query) for query in queries] == [before.version_for(query) for query in queries]
    assert {(before.version_for(query), after.version_for(query)) for query in queries} == {(1, 1), (1, 2), (2, 2)}, (
        "none goes back"
    )


def test_the_key_is_the_id_of_a_request_or_what_came_beside_it() -> None:
    by_id, by_metadata = (Split(((1, 1.0), (2, 1.0)), key) for key in ("request-id", "x-user"))
    for key in ("", "one", "\udc80"):
        versions = {by_id.version_for(Query("m", (), id=key)) for _ in range(100)}
        assert len(versions) == (1 if key else 2), "at random without a key"
    assert len({by_id.version_for(of_user(1)) for _ in range(100)}) == 2
    binary, text = (Query("m", (), metadata=(("x", "y"), ("x-user", value))) for value in (b"user 1", "user 1"))
    assert {by_metadata.version_for(query) for query in [binary, text, of_user(1)] * 30} == {by_metadata.version_for(text)}


def of_user(number: int) -> Query:
    return Query("m", (), metadata=[("x-user", f"user {number}")])
