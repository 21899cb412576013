"""How many images of one stream may be unanswered: additive increase, multiplicative decrease. Pure.

It is TCP's congestion control with images for segments and RESOURCE_EXHAUSTED for lost packets. The window starts small and doubles
with each round trip until the server pushes back for the first time; then it grows by a few images a round trip. A refusal halves
it, once a round trip: what was sent before the last decrease says nothing of the window since.
"""

START_IMAGES = 16
"""The window of a new stream."""

INCREASE_IMAGES = 8
"""By so much it grows in a round trip, once it has been decreased."""

MAX_REQUEST_IMAGES = 64
"""Of one request. Larger ones cost the server no less an image, and are late."""

REQUESTS_A_WINDOW = 4
"""A window holds at least so many requests, so that the server computes one while others are on their way."""


class CongestionWindow:
    """The window of one stream, in images."""

    def __init__(self, largest: int) -> None:
        """`largest`: what the window never exceeds."""
        self._largest = max(1, largest)
        self._slow_start = True
        self._decreased_at = 0
        self._sent = 0
        self._window = float(min(START_IMAGES, self._largest))

    @property
    def images(self) -> int:
        """How many images may be unanswered, at least 1."""
        return int(self._window)

    @property
    def request_images(self) -> int:
        """How many images a request should have, at least 1."""
        return min(MAX_REQUEST_IMAGES, max(1, int(self._window) // REQUESTS_A_WINDOW))

    def sent(self) -> int:
        """Counts a request; returns the number by which `pushed_back` knows it."""
        self._sent += 1
        return self._sent

    def answered(self, images: int, unanswered: int) -> None:
        """A request of so many images was answered, of `unanswered` until then: grows a window that is used."""
        if 2 * unanswered >= self._window:
            self._window += images if self._slow_start else INCREASE_IMAGES * images / self._window
            self._window = min(self._window, float(self._largest))

    def pushed_back(self, sent: int) -> None:
        """The server had no room for the request with this number."""
        if sent > self._decreased_at:
            self._slow_start = False
            self._window = max(1.0, self._window / 2)
            self._decreased_at = self._sent
