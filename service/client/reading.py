"""The files of `classify_many` that are to be read: which are next, and the reading itself."""

from collections import deque
from collections.abc import Iterator, Sequence

from service.client.images import MAX_MESSAGE_BYTES, LargeFile, item
from service.client.packing import Input
from service.errors import ConvoyError, UserError

READ_AT_ONCE = 8
"""How many files a reader reads one after the other."""

READ_BYTES = 4 * 1024 * 1024
"""Once a reader has so much, it reads no more of them; a larger file waits for its turn."""


class Unread:
    """The files that wait for a reader, in order. Pure.

    `reading`: how many are being read; `reading_bytes`: of those whose size is known before.
    """

    def __init__(self) -> None:
        self.reading = 0
        self.reading_bytes = 0
        self._waiting: deque[Input] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, each: Input) -> bool:
        """Adds a file; whether a reader is to come for it."""
        self._waiting.append(each)
        return len(self._waiting) % READ_AT_ONCE == 1  # each reader takes as many

    def next_inputs(self) -> list[Input]:
        """Takes out what one reader reads."""
        found: list[Input] = []
        size_bytes = 0
        while self._waiting and len(found) < READ_AT_ONCE:
            size_bytes += self._waiting[0].expected_bytes
            if found and size_bytes > READ_BYTES:
                break
            found.append(self._waiting.popleft())
            self.reading_bytes += found[-1].expected_bytes
        self.reading += len(found)
        return found

    def read(
        self, inputs: Sequence[Input], contents: Sequence[dict[str, bytes] | ConvoyError | LargeFile]
    ) -> Iterator[tuple[Input, dict[str, bytes] | ConvoyError]]:
        """What came of reading files. Large ones, and those without contents, wait again, before all others."""
        self.reading -= len(inputs)
        self.reading_bytes -= sum(each.expected_bytes for each in inputs)
        later = list(inputs[len(contents) :])
        for each, content in zip(reversed(inputs[: len(contents)]), reversed(contents), strict=True):
            if isinstance(content, LargeFile):
                each.expected_bytes = content.size_bytes
                later.insert(0, each)
        self._waiting.extendleft(reversed(later))
        for each, content in zip(inputs, contents, strict=False):
            if not isinstance(content, LargeFile):
                yield each, content


def contents(inputs: Sequence[Input]) -> list[dict[str, bytes] | UserError | LargeFile]:
    """Reads files: the item of each, or why it has none; of the first ones alone, if they are large."""
    found: list[dict[str, bytes] | UserError | LargeFile] = []
    size_bytes = 0
    for each in inputs:
        try:
            content = item(each.image, MAX_MESSAGE_BYTES if each.expected_bytes else READ_BYTES)
            size_bytes += sum(map(len, content.values()))
            found.append(content)
        except (UserError, LargeFile) as unread:
            found.append(unread)
        if size_bytes >= READ_BYTES:
            break
    return found
