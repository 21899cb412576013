"""Which calls without a message end, and when: pure decisions, driven without a server."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import DeadlineExceeded, TooManyBytes, Unavailable
from service.process.memory_limit import MemoryLimit
from service.rpc.arrivals import SHORT_OF_MEMORY, VERY_SHORT, YOUNG_SECONDS, Arrivals

PLENTY, NOTHING = MemoryLimit(2**62), MemoryLimit(1)


class Filled(MemoryLimit):
    """Memory of which a share is used, and stays so: what this process uses varies with the tests that ran before."""

    def __init__(self, used: float) -> None:
        super().__init__(1)
        self._used = used

    def is_short(self, share: float) -> bool:
        return self._used > share


def call(age_seconds: float, *, reading: bool = True) -> Any:
    since = time.monotonic() - age_seconds
    return _Call(started=since, asked_at=since, reading=reading)


class _Call(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def test_a_call_may_wait_for_its_message_as_long_as_is_set() -> None:
    arrivals = Arrivals(60, PLENTY)
    late, early = call(61), call(59)
    arrivals.waiting |= {late: None, early: None}
    [(ended, error)] = arrivals.overdue()
    assert ended is late
    assert isinstance(error, DeadlineExceeded)
    assert "within 60 s (--message-seconds)" in str(error)
    assert list(arrivals.waiting) == [early]


@pytest.mark.parametrize(
    ("used", "expected"),
    [((SHORT_OF_MEMORY + VERY_SHORT) / 2, [[3, 2], [1], [0]]), (2.0, [[3, 2, 1], [0]])],
)
def test_when_memory_is_short_the_youngest_half_goes_first_then_the_next(used: float, expected: list[list[int]]) -> None:
    arrivals = Arrivals(60, Filled(used))
    calls = [call(10 - number) for number in range(4)]
    arrivals.waiting |= dict.fromkeys(calls)
    rounds = []
    while arrivals.waiting:
        ended = arrivals.overdue()
        assert all(isinstance(error, TooManyBytes) for _, error in ended)
        if ended:
            rounds.append([calls.index(each) for each, _ in ended])
        time.sleep(0.01)
    assert rounds == expected


def test_streams_go_last_and_only_those_that_wait_for_a_message() -> None:
    arrivals = Arrivals(60, NOTHING)
    waiting, reading, busy = call(1), call(5), call(9, reading=False)
    arrivals.waiting[waiting] = None
    arrivals.streams |= {busy: None, reading: None}
    ended: list[Any] = []
    while len(ended) < 2:
        ended += arrivals.overdue()
        time.sleep(0.01)
    assert [each for each, _ in ended] == [waiting, reading]
    assert isinstance(ended[1][1], Unavailable)
    assert list(arrivals.streams) == [busy]


@pytest.mark.parametrize("trickle", [1, 50])
def test_calls_that_come_and_come_do_not_shield_streams_that_hold_the_memory(trickle: int) -> None:
    arrivals = Arrivals(60, NOTHING)
    arrivals.streams |= dict.fromkeys([call(5) for _ in range(8)])
    ended: list[Any] = []
    deadline = time.monotonic() + 30
    while len(arrivals.streams) > 1 and time.monotonic() < deadline:
        arrivals.waiting |= dict.fromkeys([call(YOUNG_SECONDS) for _ in range(trickle)])
        ended += arrivals.overdue()
        time.sleep(0.005)
    assert len(arrivals.streams) <= 1
    first_stream = next(number for number, (_, error) in enumerate(ended) if isinstance(error, Unavailable))
    assert first_stream >= trickle, "they go first"


def test_of_two_streams_the_one_that_has_waited_less_for_its_message_ends_first() -> None:
    arrivals = Arrivals(60, NOTHING)
    old, older = call(5), call(9)
    old.started = older.started - 100  # it was opened first
    arrivals.streams |= {old: None, older: None}
    assert [each for each, _ in arrivals.overdue()] == [old]
    assert list(arrivals.streams) == [older]


def test_a_call_that_has_just_come_is_no_reason_to_look_at_memory() -> None:
    arrivals = Arrivals(60, NOTHING)
    arrivals.waiting[call(-10)] = None
    assert arrivals.overdue() == []
    arrivals.streams[call(-10)] = None
    assert arrivals.overdue() == []
