"""The images that wait to be sent, and how they are packed in requests. Pure."""

from collections import deque
from collections.abc import Iterable, Sequence

from service.client.images import Image, held_bytes
from service.client.messages import RequestTooLarge
from service.pb.convoy.v1 import classifier_pb2 as pb

REQUEST_BYTES = 1024 * 1024
"""About what a request of several images has at most."""


ENVELOPE_BYTES = 64
"""At most what protobuf adds to a request of one image, and to its message in a stream."""

MAX_BREAKS = 3
"""So many streams break before an image of those that were in flight is suspected."""


class Input:
    """An image on its way, with its item as it is sent.

    `kept_bytes`: what the caller's own image holds in memory; `own_bytes`: what the item holds besides; `expected_bytes`: what the
    item will hold, if it is known before it is read. `breaks`: of streams that it was on; `breaks_alone`: when nothing else was in
    flight.
    """

    __slots__ = (
        "breaks", "breaks_alone", "expected_bytes", "image", "index", "item", "kept_bytes", "own_bytes", "size_bytes",
    )  # fmt: skip

    def __init__(self, index: int, image: Image) -> None:
        self.index = index
        self.image = image
        self.item: dict[str, bytes] = {}
        self.size_bytes = 0
        self.kept_bytes = held_bytes(image)
        self.own_bytes = 0
        self.expected_bytes = 0
        self.breaks = 0
        self.breaks_alone = 0

    def read(self, item: dict[str, bytes]) -> None:
        """Takes the item."""
        self.item = item
        self.size_bytes = sum(map(len, item.values()))
        if not isinstance(self.image, bytes):  # which are the item
            self.own_bytes = self.size_bytes


class Packing:
    """Images that are to be sent for the first time, and the requests that are to be sent again, which come first."""

    def __init__(self, request: pb.ClassifyRequest) -> None:
        """`request`: what all requests have, without items."""
        self.request = request
        self.waiting_bytes = 0
        self.request_bytes = REQUEST_BYTES
        """About how large a request of several images may be; less once a server has refused one."""
        self._waiting: deque[Input] = deque()
        self._again: deque[Sequence[Input]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._again)

    def add(self, each: Input) -> None:
        """An image is ready to be sent."""
        self.waiting_bytes += each.size_bytes
        self._waiting.append(each)

    def waiting_images(self) -> int:
        """How many images wait to be sent for the first time."""
        return len(self._waiting)

    def send_again(self, inputs: Sequence[Input]) -> None:
        """A request is to be sent again, before all others."""
        self._again.appendleft(inputs)

    def send_after_break(self, inputs: Sequence[Input]) -> None:
        """A request is to be sent again whose stream has broken: if it is a suspect in two, after the others."""
        if not _are_suspect(inputs):
            self.send_again(inputs)
            return
        half = (len(inputs) + 1) // 2
        self._again.extend(part for part in (inputs[:half], inputs[half:]) if part)

    def next_is_suspect(self) -> bool:
        """Whether the next request may kill its server, and is sent when nothing else is in flight."""
        return bool(self._again) and _are_suspect(self._again[0])

    def send_halves(self, inputs: Sequence[Input]) -> None:
        """A request is to be sent again in two, because one of its images is at fault."""
        half = (len(inputs) + 1) // 2
        self._again.extendleft(part for part in (inputs[half:], inputs[:half]) if part)

    def refused(self, failed: RequestTooLarge) -> None:
        """A server takes less."""
        self.request_bytes = min(self.request_bytes, failed.limit_bytes * 3 // 4)

    def has_full(self, images: int) -> bool:
        """Whether a request is ready that more images would not join, if it has at most so many."""
        return bool(self._again) or len(self._waiting) >= images or self.waiting_bytes >= self.request_bytes

    def next_inputs(self, most: int) -> Sequence[Input]:
        """Takes out the images of the next request, at most so many: first those that are sent again."""
        if self._again:
            inputs = self._again.popleft()
            if len(inputs) > most:
                self._again.appendleft(inputs[most:])
            return inputs[:most]
        found: list[Input] = []
        size_bytes = 0
        while self._waiting and len(found) < most:
            size_bytes += self._waiting[0].size_bytes
            if found and size_bytes > self.request_bytes:
                break
            found.append(self._waiting.popleft())
            self.waiting_bytes -= found[-1].size_bytes
        return found

    def message(self, inputs: Iterable[Input]) -> pb.ClassifyStreamRequest:
        """The request of these images."""
        message = pb.ClassifyStreamRequest(request=self.request)
        items = message.request.items
        for each in inputs:
            items.add(**each.item)
        return message


def _are_suspect(inputs: Iterable[Input]) -> bool:
    return any(each.breaks >= MAX_BREAKS for each in inputs)
