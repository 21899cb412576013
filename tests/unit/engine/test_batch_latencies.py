import math

import pytest

from service.engine.batch_latencies import BatchLatencies


def test_times_start_from_what_was_measured_with_straight_lines_between() -> None:
    times = BatchLatencies({1: 0.001, 2: 0.002, 4: 0.004, 8: 0.006})
    assert [times.expected(items) for items in (1, 2, 4, 8)] == [0.001, 0.002, 0.004, 0.006]
    assert times.expected(3) == pytest.approx(0.003)
    assert times.expected(5) == pytest.approx(0.0045)
    assert times.expected(100) == 0.006
    assert [times.largest_within(seconds) for seconds in (0.0005, 0.001, 0.0035, 1)] == [0, 1, 2, 8]


def test_a_largest_size_of_any_number_has_its_own_time_and_nothing_known_is_endless() -> None:
    times = BatchLatencies({1: 0.001, 32: 0.032, 40: 0.040})
    assert [times.expected(items) for items in (36, 40, 64)] == pytest.approx([0.036, 0.040, 0.040])
    for _ in range(100):
        times.observe(40, 0.040)
    assert times.measured() == pytest.approx({1: 0.001, 32: 0.032, 40: 0.040})
    assert BatchLatencies({}).expected(1) == math.inf
    assert BatchLatencies({}).largest_within(1.0) == 0


def test_a_size_that_took_longer_than_a_larger_one_was_disturbed() -> None:
    times = BatchLatencies({1: 0.0005, 2: 0.002, 4: 0.001})
    assert [times.expected(items) for items in (1, 2, 4)] == [0.0005, 0.001, 0.001]
    assert [times.largest_within(seconds) for seconds in (0.0008, 0.001)] == [1, 4]


def test_one_slow_batch_says_little_and_fast_ones_much() -> None:
    times = BatchLatencies({1: 0.001, 2: 0.002, 4: 0.004})
    times.observe(2, 0.010)
    assert times.expected(2) < 0.0025, "something may have been in its way"
    for _ in range(400):
        times.observe(2, 0.010)
    assert times.expected(2) == pytest.approx(0.010, rel=0.01)
    for _ in range(10):
        times.observe(2, 0.003)
    assert times.expected(2) == pytest.approx(0.003, rel=0.01)
    assert times.expected(1) == pytest.approx(0.003 / 2, rel=0.01), "sizes compare as they did at warm-up, whichever of them ran"
    unknown = BatchLatencies({})
    unknown.observe(1, 0.5)
    assert unknown.expected(1) == 0.5


def test_what_is_promised_follows_a_machine_that_gets_busy_and_is_free_again() -> None:
    times = BatchLatencies({1: 0.001, 8: 0.008})
    assert times.likely(1) == pytest.approx(0.0011)
    for _ in range(8):
        times.observe(8, 0.016)
    assert times.expected(8) < 0.010, "learnt slowly"
    assert 0.0014 < times.likely(1) < 0.0025, "learnt at once, and of one size for all"
    assert times.largest_likely_within(0.008) < 8 == times.largest_within(0.010)
    for _ in range(100):
        times.observe(8, 0.008)
    assert times.likely(8) == pytest.approx(0.0088, rel=0.02)
    times.observe(8, 100.0)
    assert times.likely(8) < 0.1, "one hour of sleep is not a busy machine"


@pytest.mark.parametrize(
    ("measured", "most", "worthwhile"),
    [
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 2.4}, 8, 8),
        ({1: 1.0, 2: 1.2, 4: 1.6, 8: 4.8}, 8, 4),  # 0.4 an item in fours, 0.6 in eights: caches, perhaps
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 8, 8),  # no better, no worse
        ({1: 1.0, 2: 1.2, 4: 1.6, 6: 2.2, 8: 2.4}, 6, 6),
        ({1: 1.0, 2: 2.5}, 2, 1),
    ],
)
def test_batches_whose_items_cost_more_than_in_smaller_ones_are_not_worthwhile(
    measured: dict[int, float], most: int, worthwhile: int
) -> None:
    assert BatchLatencies(measured).most_worthwhile(most) == worthwhile
