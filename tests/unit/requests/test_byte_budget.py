"""The budget of bytes in flight, and its limit by the flags."""

import threading
from pathlib import Path

import pytest

from service.config import ServerConfig
from service.engine.message_limits import byte_budget
from service.errors import TooLarge, TooManyBytes
from service.process.memory_limit import memory_limit_bytes
from service.requests.byte_budget import ByteBudget, Holding


def test_what_does_not_fit_is_not_taken() -> None:
    budget = ByteBudget(100)
    assert budget.take(60)
    assert budget.take(40)
    assert not budget.take(1)
    assert budget.in_flight_bytes == 100
    budget.give_back(60)
    assert not budget.take(61)
    assert budget.take(60)


def test_a_refusal_says_what_is_accepted_and_when_to_try_again() -> None:
    error = ByteBudget(123).refusal()
    assert isinstance(error, TooManyBytes)
    assert "at most 123 are accepted (--max-inflight-bytes)" in str(error)
    assert error.retry_after_seconds > 0


def test_what_can_never_be_held_is_not_to_be_asked_for_again() -> None:
    budget = ByteBudget(100)
    assert budget.take(50), "of another"
    with Holding(budget) as holding:
        holding.take(40)
        with pytest.raises(TooManyBytes):
            holding.take(60)
        with pytest.raises(TooLarge, match=r"100 bytes \(--max-inflight-bytes\)"):
            holding.take(61)
    assert budget.in_flight_bytes == 50


def test_threads_never_take_more_than_the_limit_and_nothing_is_lost() -> None:
    budget = ByteBudget(50)
    start = threading.Barrier(4)
    most: list[int] = []

    def take_and_give_back() -> None:
        start.wait()
        for count in range(1, 2000):
            if budget.take(count % 40):
                most.append(budget.in_flight_bytes)
                budget.give_back(count % 40)

    threads = [threading.Thread(target=take_and_give_back) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.in_flight_bytes == 0
    assert max(most) <= 50


@pytest.mark.parametrize(
    ("flags", "limit"),
    [
        ({"max_inflight_bytes": 80 << 20}, 80 << 20),
        ({"max_inflight_bytes": 80 << 20, "workers": 4}, 20 << 20),
        ({"max_inflight_bytes": 2 << 20}, 4 << 20),
        ({}, memory_limit_bytes() // 4),
        ({"workers": 2}, memory_limit_bytes() // 4 // 2),
    ],
)
def test_the_limit_is_a_share_of_the_memory_and_at_least_one_largest_message(flags: dict[str, int], limit: int) -> None:
    config = ServerConfig(repository=Path("models"), **flags)
    assert byte_budget(config, max_message_bytes=4 << 20).limit_bytes == limit
