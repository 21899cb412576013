from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from service.requests.principal import Principal
from service.rpc.turns import SHARED_SECONDS, Turns

A, B, C = (Principal("address", name) for name in "abc")


def test_turns_are_taken_for_a_while_after_another_principal_has_called() -> None:
    now = 100.0
    turns: Turns[str] = Turns(lambda: now)
    for _ in range(3):
        turns.saw(A)
    turns.saw(Principal("address", "a"))
    assert not turns.shared, "one principal, by value"
    turns.saw(B)
    now += SHARED_SECONDS / 2
    turns.saw(B)
    turns.look()
    assert turns.shared
    now += SHARED_SECONDS / 2
    turns.look()
    assert not turns.shared


def test_a_short_line_does_not_wait_behind_a_long_one() -> None:
    turns: Turns[str] = Turns()
    for number in range(100):
        turns.add(A, f"a{number}")
    assert turns.take() == "a0"
    turns.add(B, "b0")
    turns.add(B, "b1")
    assert [turns.take() for _ in range(5)] == ["a1", "b0", "a2", "b1", "a3"]


@given(st.lists(st.sampled_from([A, B, C, None]), max_size=60))
@settings(deadline=None)
def test_each_message_comes_once_in_the_order_of_its_principal_and_nobody_is_passed_twice(steps: list[Principal | None]) -> None:
    turns: Turns[tuple[Principal, int]] = Turns()
    added: Counter[Principal] = Counter()
    taken: Counter[Principal] = Counter()
    passed: Counter[tuple[Principal, Principal]] = Counter()
    for step in [*steps, *[None] * len(steps)]:
        if step is not None:
            turns.add(step, (step, added[step]))
            added[step] += 1
        elif turns:
            principal, number = turns.take()
            assert number == taken[principal]
            taken[principal] += 1
            for other in added:
                waits = added[other] > taken[other] and other != principal
                passed[other, principal] = passed[other, principal] + 1 if waits else 0
                passed[principal, other] = 0
            assert max(passed.values()) <= 1
    assert taken == added
    assert not turns
    assert not turns._waiting
