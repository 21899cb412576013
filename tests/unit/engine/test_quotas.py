from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.engine.entry import Entry
from service.engine.quotas import MAX_PRINCIPALS, Quotas
from service.engine.scheduling import Scheduler
from service.errors import QuotaExceeded
from service.requests.principal import Principal

A, B = (Principal("token", name, "group") for name in "ab")


@dataclass
class Limits:
    requests_per_second: float = 0.0
    bytes_per_second: float = 0.0
    burst_seconds: float = 1.0
    queue_items: int = 0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def accepted(quotas: Quotas, size_bytes: int, principal: Principal = A) -> bool:
    try:
        quotas.take(principal, size_bytes)
    except QuotaExceeded:
        return False
    return True


def test_without_quotas_everything_is_let_in_and_nothing_is_kept() -> None:
    for quotas in (Quotas(lambda _: None), Quotas(lambda _: Limits())):
        assert all(accepted(quotas, 10**12) for _ in range(100))
        assert not quotas._buckets


def test_each_principal_has_its_own_burst_and_then_its_rate() -> None:
    clock = Clock()
    quotas = Quotas(lambda _: Limits(requests_per_second=10, burst_seconds=0.5), clock)
    assert [accepted(quotas, 1) for _ in range(7)] == [True] * 5 + [False] * 2
    assert accepted(quotas, 1, B)
    clock.now += 0.11
    assert [accepted(quotas, 1) for _ in range(2)] == [True, False]


def test_a_rate_below_one_burst_gives_one_request_at_a_time() -> None:
    clock = Clock()
    quotas = Quotas(lambda _: Limits(requests_per_second=0.1, burst_seconds=1), clock)
    assert [accepted(quotas, 1) for _ in range(2)] == [True, False]
    with pytest.raises(QuotaExceeded, match=r"the quota is used up: 0\.1 requests a second") as refused:
        quotas.take(A, 1)
    assert refused.value.retry_after_seconds == pytest.approx(10)


def test_a_request_larger_than_a_burst_is_let_in_and_paid_for_afterwards() -> None:
    clock = Clock()
    quotas = Quotas(lambda _: Limits(bytes_per_second=100), clock)
    assert accepted(quotas, 1000)
    with pytest.raises(QuotaExceeded, match="100 bytes a second") as refused:
        quotas.take(A, 10)
    assert refused.value.retry_after_seconds == pytest.approx(9.1)


def test_a_change_of_the_quotas_holds_at_once() -> None:
    clock, limits = Clock(), Limits(requests_per_second=1)
    quotas = Quotas(lambda _: limits, clock)
    assert [accepted(quotas, 1) for _ in range(2)] == [True, False]
    limits.requests_per_second = 0
    assert accepted(quotas, 1)


@pytest.mark.parametrize("size_bytes", [0, 10**12])
def test_what_was_sent_without_a_limit_is_not_owed_when_there_is_one(size_bytes: int) -> None:
    clock, limits = Clock(), Limits(requests_per_second=1000, bytes_per_second=100)
    quotas = Quotas(lambda _: limits, clock)
    assert accepted(quotas, 1000), "and owes bytes"
    for requests, of_bytes in ((1000, 0), (0, 100), (1000, 0), (5, 100)):
        limits.requests_per_second, limits.bytes_per_second = requests, of_bytes
        assert accepted(quotas, 10 if of_bytes else size_bytes)
    assert [accepted(quotas, 10) for _ in range(5)] == [True] * 4 + [False], "one burst of requests, the first above"


def test_what_is_kept_is_bounded() -> None:
    quotas = Quotas(lambda _: Limits(requests_per_second=1))
    for number in range(MAX_PRINCIPALS + 100):
        quotas.take(Principal("jwt", str(number), "group"), 1)
    assert len(quotas._buckets) == MAX_PRINCIPALS


@given(
    rate=st.floats(0.1, 100), bytes_rate=st.just(0.0) | st.floats(1, 1000), burst=st.floats(0.1, 5),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 500)), max_size=40),
)  # fmt: skip
@example(rate=1.0, bytes_rate=1.0, burst=1.4359682065705073, steps=[(0.0, 2), (0.0, 0)])  # a request of 0 bytes after a debt
@settings(deadline=None)
def test_nobody_gets_more_than_the_rate_and_one_burst_and_the_time_to_retry_is_true(
    rate: float, bytes_rate: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    quotas = Quotas(lambda _: Limits(rate, bytes_rate, burst), clock)
    start, size = clock.now, 0
    for requests, (seconds, size_bytes) in enumerate(steps, 1):
        clock.now += seconds
        wait = _wait(quotas, size_bytes)
        if wait:
            clock.now += wait / 2
            assert not accepted(quotas, size_bytes), "not earlier"
            clock.now += wait / 2
            quotas.take(A, size_bytes)
        size += size_bytes
        passed = clock.now - start
        assert requests <= max(1.0, rate * burst) + rate * passed + 1e-3
        if bytes_rate:
            assert size - size_bytes <= bytes_rate * burst + bytes_rate * passed + 1e-2, "but for the debt of the last"


def _wait(quotas: Quotas, size_bytes: int) -> float:
    """Sends a request; the time to retry that it was told, 0 if it was let in."""
    try:
        quotas.take(A, size_bytes)
    except QuotaExceeded as error:
        return error.retry_after_seconds
    return 0.0


def test_of_one_principal_only_so_many_items_wait() -> None:
    scheduler = Scheduler("m", 1, 8, 64, {1: 1.0, 8: 1.0}, 0.0, 100.0)

    def entry(items: int, principal: Principal = A) -> Entry:
        made = Entry(items, principal=principal)
        made.most_held = 4
        return made

    scheduler.add(entry(2), 100.0, reserved=False)
    decoding = entry(2)
    scheduler.reserve(decoding)
    with pytest.raises(QuotaExceeded, match="4 of 4 items wait, the request has 1") as refused:
        scheduler.add(entry(1), 100.0, reserved=False)
    assert refused.value.retry_after_seconds == pytest.approx(1.0)
    with pytest.raises(QuotaExceeded):
        scheduler.reserve(entry(1))
    scheduler.add(entry(4, B), 100.0, reserved=False)
    scheduler.add(decoding, 100.0, reserved=True)
    scheduler.take(100.0, on_transport=False)
    scheduler.add(entry(4), 100.0, reserved=False)
