"""What is in flight on one stream of `classify_many`, and how much may be. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from service.client.congestion import MAX_REQUEST_IMAGES, CongestionWindow
from service.client.packing import Input

STREAM_BYTES, STREAM_REQUESTS = 16 * 1024 * 1024, 64
"""What a server reads of a stream before it has answered any of it."""

QUEUE_IMAGES = 1024
"""The room of a model's queue, of a server that does not say."""


class Limits(NamedTuple):
    """What a server accepts of a model."""

    max_request_items: int
    max_queue_items: int


class Pack(NamedTuple):
    """The images of one request, and its number in its stream's CongestionWindow."""

    inputs: Sequence[Input]
    sent: int


class Stream:
    """One connection's stream, which outlives its RPCs."""

    def __init__(self) -> None:
        self.rpc = 0  # number of the current one
        self.in_flight: dict[int, Pack] = {}  # by their place in the RPC
        self.images = 0
        self.bytes = 0
        self.placed = 0
        self.answers = 0  # since a token was refused
        self.expired = False  # the token of the current RPC
        self.paused_until = 0.0
        self.failures = 0  # since the last answer, of RPCs without any
        self.answered = False  # something on the current RPC, if there is one
        self.max_items = MAX_REQUEST_IMAGES
        self.largest_request = MAX_REQUEST_IMAGES
        self.largest_window = 1
        self.window = CongestionWindow(1)

    def limit(self, limits: Limits) -> None:
        """Keeps to what the server accepts: half of its queue is left to other callers."""
        self.max_items = max(1, min(MAX_REQUEST_IMAGES, limits.max_request_items or MAX_REQUEST_IMAGES))
        largest = min((limits.max_queue_items or QUEUE_IMAGES) // 2, STREAM_REQUESTS * self.max_items)
        if largest != self.largest_window:
            self.largest_window = largest
            self.window = CongestionWindow(largest)
        self.largest_request = self.max_items

    def request_images(self) -> int:
        """How many images the next request may have."""
        return min(self.window.request_images, self.max_items)

    def place(self, inputs: Sequence[Input]) -> None:
        """Counts a request that is sent."""
        self.in_flight[self.placed] = Pack(inputs, self.window.sent())
        self.placed += 1
        self.images += len(inputs)
        self.bytes += sum(each.size_bytes for each in inputs)

    def remove(self, place: int) -> Pack | None:
        """Takes a request out that has an answer; None if it has had one."""
        pack = self.in_flight.pop(place, None)
        if pack is not None:
            self.images -= len(pack.inputs)
            self.bytes -= sum(each.size_bytes for each in pack.inputs)
        return pack
