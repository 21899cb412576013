"""Every picture to exactly one answer or error, and every answer to its row and its folder."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from service.bulk.columns import Columns, reason
from service.bulk.output import Output
from service.bulk.path_set import PathSet
from service.bulk.pictures import Picture, key_of
from service.bulk.sorting import Sorter
from service.client import Classification, Outcome
from service.errors import ConvoyError, UserError

Ask = Callable[[Iterator[str | bytes]], Iterator[Outcome]]
"""`classify_many` of a client, with everything but the pictures."""


class Recorder(Protocol):
    """Takes what comes of each picture. `failed` is called in the thread that reads the pictures, too."""

    def answered(self, picture: Picture, answer: Classification) -> None:
        """`answer` has the picture as its only one."""

    def failed(self, picture: Picture, error: str) -> None:
        """Of a picture that cannot be read or classified."""


def run(
    pictures: Iterator[Picture],
    ask: Ask,
    recorder: Recorder,
    done: PathSet | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> None:
    """Classifies the pictures whose `key_of` is not `done`, each once; with None all of them. Raises what `classify_many` raises.

    `on_picture` is called for each answer.
    """
    waiting: dict[int, Picture] = {}

    def images() -> Iterator[str | bytes]:
        index = 0
        for picture in pictures:
            if done is not None and not done.add(key_of(picture.name)):
                continue
            if picture.image is None:
                recorder.failed(picture, picture.error)
                continue
            waiting[index] = picture
            index += 1
            yield picture.image

    outcomes = ask(images())
    try:
        for index, _, answer in outcomes:
            picture = waiting.pop(index)
            on_picture()
            if isinstance(answer, ConvoyError):
                recorder.failed(picture, reason(answer, picture.name, picture.path or picture.name))
            else:
                recorder.answered(picture, answer)
    finally:
        close = getattr(outcomes, "close", None)
        if close is not None:
            close()


class Rows:
    """Records rows in a file, pictures in folders, or both; and counts. Without a file, errors are what there is to `say`."""

    def __init__(
        self,
        output: Output | None,
        sorter: Sorter | None,
        columns: Columns,
        say: Callable[[Picture, str], None] = lambda *_: None,
    ) -> None:
        self._output = output
        self._sorter = sorter
        self._columns = columns
        self._say = say
        self._lock = threading.Lock()
        self._closed = False
        self.classified = 0
        self.errors = 0
        self.labels: Counter[str] = Counter()

    def open(self) -> PathSet:
        """Opens the output; the keys of the pictures that are done already."""
        if self._sorter is not None:
            self._sorter.open(self._columns.labels)
        if self._output is None:
            return PathSet()
        done = self._output.open(self._columns, self._claim, self._written)
        self._written()
        return done

    def _claim(self, path: str, sorted_to: str | None) -> bool:
        return self._sorter is None or self._sorter.claim(path, sorted_to)

    def _written(self) -> None:
        if self._sorter is not None:
            self._sorter.written()

    def answered(self, picture: Picture, answer: Classification) -> None:
        """Sorts the picture and writes its row. A picture that cannot be sorted is an error: the next run tries it again."""
        best = answer.results[0][0]
        with self._lock:
            sorted_to = None
            if self._sorter is not None:
                try:
                    sorted_to = self._sorter.place(picture, best.label, best.probability)
                except UserError as error:
                    self._fail(picture, str(error))
                    return
            self.classified += 1
            self.labels[best.label] += 1
            if self._output is not None:
                self._output.write(self._columns.answered(picture.name, answer, sorted_to))
            if self._sorter is not None and sorted_to is not None:
                self._sorter.recorded(picture, sorted_to)
            if self._output is None:
                self._written()

    def failed(self, picture: Picture, error: str) -> None:
        """Writes a row with the error."""
        with self._lock:
            self._fail(picture, error)

    def _fail(self, picture: Picture, error: str) -> None:
        if self._closed:
            return
        self.errors += 1
        if self._output is not None:
            self._output.write(self._columns.failed(picture.name, error))
        else:
            self._say(picture, error)

    def close(self) -> None:
        """Writes the rest; also after an interruption."""
        with self._lock:
            self._closed = True
            if self._output is not None:
                self._output.close()
