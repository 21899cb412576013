"""The window of a stream: it grows until the server pushes back, and shrinks once a round trip."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client.congestion import INCREASE_IMAGES, MAX_REQUEST_IMAGES, START_IMAGES, CongestionWindow


def round_trip(window: CongestionWindow) -> None:
    """All that fits is sent, and answered."""
    left = unanswered = window.images
    while left:
        images = min(left, window.request_images)
        window.answered(images, unanswered)
        left -= images


def test_it_doubles_until_the_server_pushes_back_and_then_grows_by_a_few_images() -> None:
    window = CongestionWindow(512)
    assert window.images == START_IMAGES
    sizes = []
    for _ in range(7):
        round_trip(window)
        sizes.append(window.images)
    assert all(later >= 1.5 * earlier for earlier, later in itertools.pairwise(sizes) if later < 512)
    assert sizes[-1] == 512
    window.pushed_back(window.sent())
    assert window.images == 256
    round_trip(window)
    assert 256 < window.images <= 256 + INCREASE_IMAGES


def test_refusals_of_one_round_trip_halve_it_once() -> None:
    window = CongestionWindow(64)
    sent = [window.sent() for _ in range(4)]
    for number in sent:
        window.pushed_back(number)
    assert window.images == START_IMAGES // 2
    window.pushed_back(window.sent())
    assert window.images == START_IMAGES // 4


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = CongestionWindow(512)
    for _ in range(100):
        window.answered(1, 1)
    assert window.images == START_IMAGES


@given(st.integers(-1, 5000), st.lists(st.booleans(), max_size=60))
def test_it_stays_between_one_image_and_what_it_may_be(largest: int, answers: list[bool]) -> None:
    window = CongestionWindow(largest)
    for answered in answers:
        if answered:
            round_trip(window)
        else:
            window.pushed_back(window.sent())
        assert 1 <= window.images <= max(1, largest)
        assert 1 <= window.request_images <= min(MAX_REQUEST_IMAGES, window.images)


@pytest.mark.parametrize("largest", [1, 2, 3, 7])
def test_a_small_window_still_sends(largest: int) -> None:
    window = CongestionWindow(largest)
    for _ in range(5):
        window.pushed_back(window.sent())
    assert (window.images, window.request_images) == (1, 1)
    for _ in range(5):
        round_trip(window)
    assert window.images >= min(2, largest)
