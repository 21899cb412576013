"""The domain operation that every surface calls: images in, scores out.

A request goes straight through: checks, decoding of encoded images, the model's batcher, the answer. Durations of the phases travel
back with the answer and are recorded once, by `Answer.delivered`.

Decoding. Small encoded images of a model whose batches run on the transport's thread are decoded right there, because a hand-over
costs more than they do; "small" is judged by bytes and, from the header, by pixels, so that a small file that unfolds into
a large picture does not hold up everyone else. All others go to a pool of threads, and what the pool submits runs on the
model's thread.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.batcher import Work
from service.contract import InputSpec
from service.errors import ClientGone, DeadlinePassed, InvalidRequest, ModelFailed, RequestError
from service.metrics import Metrics, Phases
from service.model import cpu_budget
from service.preprocessing import open_image, to_pixels
from service.repository import Repository, ServedModel

log = logging.getLogger(__name__)

DEFAULT_TOP_K = 5
INLINE_DECODE_ITEMS = 32
INLINE_DECODE_BYTES = 64 * 1024
INLINE_DECODE_PIXELS = 64 * 1024
MAX_TIMEOUT_SECONDS = 1e9
SMALL_SCORES = 64
"""Up to so many scores Python sorts faster than numpy is called."""


class Item(NamedTuple):
    """One image: an image file's bytes if `encoded`, else uint8[H,W,C] of exactly the contract's shape, as bytes."""

    data: bytes
    encoded: bool


class Query(NamedTuple):
    """A classify request. `deadline` is in `time.monotonic` seconds, infinite if there is none."""

    model: str
    items: Sequence[Item]
    version: str = ""
    top_k: int = 0
    priority: int = 0
    timeout_seconds: float = 0.0
    deadline: float = math.inf


class Answer:
    """Scores float32[n,K] of a request's n items, by one version of a model."""

    __slots__ = ("phases", "scores", "served", "top_k")

    def __init__(self, served: ServedModel, scores: NDArray[np.float32], top_k: int, phases: Phases) -> None:
        self.served = served
        self.scores = scores
        self.top_k = top_k
        self.phases = phases

    def best(self) -> list[list[tuple[int, float]]]:
        """For each item its `top_k` labels as (index, probability), the most probable first, equal ones by index."""
        if self.scores.size <= SMALL_SCORES:
            return [
                [(index, row[index]) for index in sorted(range(len(row)), key=row.__getitem__, reverse=True)[: self.top_k]]
                for row in self.scores.tolist()
            ]
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, : self.top_k]
        probabilities = np.take_along_axis(self.scores, order, axis=1)
        return [list(zip(*pair, strict=True)) for pair in zip(order.tolist(), probabilities.tolist(), strict=True)]

    def delivered(self, encode_seconds: float) -> None:
        """To be called once, when the reply has been handed to the transport."""
        self.served.metrics.answered(self.phases, encode_seconds, self.scores)


Respond = Callable[[Answer | RequestError], None]
"""Takes the one outcome of a request, from any thread."""


class Classifier:
    """Answers queries with the models of a repository."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics
        self._decoders = ThreadPoolExecutor(cpu_budget(), thread_name_prefix="decode")

    def close(self) -> None:
        """Ends the decoding threads. Only when no request is in hand."""
        self._decoders.shutdown()

    def pump(self) -> float:
        """For the transport's thread, when no more events wait: see `Repository.pump`."""
        return self._repository.pump()

    def classify(self, query: Query, respond: Respond) -> Callable[[], None]:
        """Answers a query: calls `respond` exactly once, maybe before this returns, maybe from another thread.

        Returns:
            A function that cancels the request; it may be called at any time, any number of times.

        Raises:
            RequestError: the query cannot be taken on; `respond` is not called.
        """
        served = self._repository.acquire(query.model, query.version)
        request = _Request(self, served, query, respond)
        try:
            request.begin()
        except RequestError as error:
            self.refused(served, error)
            self._repository.release(served)
            raise
        return request.cancel

    def refused(self, served: ServedModel, error: RequestError) -> None:
        """Counts a request that is not answered."""
        if error.reason is not None:
            self._metrics.rejected(served.name, error.reason)

    def decode_in_pool(self, job: Callable[[], None]) -> None:
        """Runs a job on a decoding thread."""
        self._decoders.submit(job)

    def release(self, served: ServedModel) -> None:
        """Gives back the model of a request that has ended."""
        self._repository.release(served)


class _Request:
    """One query on its way."""

    __slots__ = (
        "_cancelled",
        "_classifier",
        "_deadline",
        "_decode_seconds",
        "_priority",
        "_query",
        "_respond",
        "_served",
        "_work",
    )

    def __init__(self, classifier: Classifier, served: ServedModel, query: Query, respond: Respond) -> None:
        self._classifier = classifier
        self._served = served
        self._query = query
        self._respond = respond
        self._decode_seconds: float | None = None
        self._work: Work | None = None
        self._cancelled = False

    def begin(self) -> None:
        """Checks the query and sends it on; raises RequestError if it cannot be taken on."""
        policy = self._served.policy
        items = self._query.items
        _check_items(items, policy.max_request_items)
        self._priority = _priority(self._query.priority, policy.priority_levels, policy.default_priority)
        self._deadline = _deadline(self._query, policy.default_timeout_seconds)
        if not any(item.encoded for item in items):
            self._submit(self._raw_pixels(), pool=False)
        elif self._served.batcher.inline and _few_bytes(items):
            start = time.monotonic()
            opened = self._open()
            if _few_pixels(opened):
                pixels = self._pixels(opened)
                self._decode_seconds = time.monotonic() - start
                self._submit(pixels, pool=False)
            else:
                self._classifier.decode_in_pool(self._decode_then_submit)
        else:
            self._classifier.decode_in_pool(self._decode_then_submit)

    def cancel(self) -> None:
        """The client is gone."""
        self._cancelled = True
        if self._work is not None:
            self._served.batcher.cancel(self._work)

    def _decode_then_submit(self) -> None:
        try:
            if self._cancelled:
                raise ClientGone("the client cancelled the call")
            start = time.monotonic()
            if start >= self._deadline:
                raise DeadlinePassed("the deadline passed while the request waited to be decoded")
            pixels = self._pixels(self._open())
            self._decode_seconds = time.monotonic() - start
            self._submit(pixels, pool=True)
        except RequestError as error:
            self._end(error)
        except Exception:
            log.exception("model %s: a request failed while it was decoded", self._served.name)
            self._end(ModelFailed("the request failed inside the server"))

    def _open(self) -> list[Image.Image | None]:
        """The headers of the encoded items; None for raw ones."""
        opened: list[Image.Image | None] = []
        for index, item in enumerate(self._query.items):
            try:
                limit = self._served.policy.max_image_pixels
                opened.append(open_image(item.data, limit) if item.encoded else None)
            except InvalidRequest as error:
                raise InvalidRequest(f"item {index}: {error}", f"items[{index}].encoded") from None
        return opened

    def _raw_pixels(self) -> NDArray[np.uint8]:
        """uint8[n,H,W,C] of items that are all raw: one copy at most."""
        spec = self._served.contract.input
        items = self._query.items
        for index, item in enumerate(items):
            _check_size(index, item, spec)
        data = items[0].data if len(items) == 1 else b"".join(item.data for item in items)
        return np.frombuffer(data, np.uint8).reshape(len(items), *spec.shape)

    def _pixels(self, opened: Sequence[Image.Image | None]) -> NDArray[np.uint8]:
        """uint8[n,H,W,C] of all items."""
        spec = self._served.contract.input
        items = self._query.items
        images = np.empty((len(items), *spec.shape), np.uint8)
        for index, (item, image) in enumerate(zip(items, opened, strict=True)):
            if image is not None:
                try:
                    images[index] = to_pixels(image, spec)
                except InvalidRequest as error:
                    raise InvalidRequest(f"item {index}: {error}", f"items[{index}].encoded") from None
            else:
                _check_size(index, item, spec)
                images[index] = np.frombuffer(item.data, np.uint8).reshape(spec.shape)
        return images

    def _submit(self, images: NDArray[np.uint8], *, pool: bool) -> None:
        batcher = self._served.batcher
        work = Work(images, self._worked, self._priority, self._deadline)
        full = batcher.submit(work)
        self._work = work
        if self._cancelled:  # it came between the check before decoding and here
            batcher.cancel(work)
        elif pool:
            batcher.hand_over()
        elif full:
            batcher.pump()

    def _worked(self, work: Work) -> None:
        if work.error is not None or work.scores is None:
            self._end(work.error or ModelFailed("the model gave no answer"))
            return
        phases = Phases(self._decode_seconds, work.started - work.submitted, work.finished - work.started)
        top_k = min(self._query.top_k or DEFAULT_TOP_K, work.scores.shape[1])
        self._end(Answer(self._served, work.scores, top_k, phases))

    def _end(self, outcome: Answer | RequestError) -> None:
        if isinstance(outcome, RequestError):
            self._classifier.refused(self._served, outcome)
        try:
            self._respond(outcome)
        finally:
            self._classifier.release(self._served)


def _check_items(items: Sequence[Item], limit: int) -> None:
    if not items:
        raise InvalidRequest("the request has no items; send 1 or more images", "items")
    if len(items) > limit:
        raise InvalidRequest(f"the request has {len(items)} items; at most {limit} are accepted", "items")


def _check_size(index: int, item: Item, spec: InputSpec) -> None:
    if len(item.data) != spec.size_bytes:
        shape = " x ".join(map(str, spec.shape))
        message = f"item {index}: {len(item.data)} bytes of pixels; the model takes {spec.size_bytes} (uint8 {shape})"
        raise InvalidRequest(message, f"items[{index}].pixels")


def _priority(asked: int, levels: int, default: int) -> int:
    if asked > levels:
        raise InvalidRequest(f"priority {asked} is above the lowest level of this model, {levels}", "priority")
    return asked or default


def _deadline(query: Query, default_timeout_seconds: float) -> float:
    """The earlier of the call's deadline and now plus the timeout."""
    timeout = query.timeout_seconds
    if not 0 <= timeout <= MAX_TIMEOUT_SECONDS:  # a NaN is refused too
        raise InvalidRequest(f"timeout_seconds {timeout} is not between 0 and {MAX_TIMEOUT_SECONDS:.0e}", "timeout_seconds")
    timeout = timeout or default_timeout_seconds
    return min(query.deadline, time.monotonic() + timeout) if timeout else query.deadline


def _few_bytes(items: Sequence[Item]) -> bool:
    return len(items) <= INLINE_DECODE_ITEMS and sum(len(item.data) for item in items) <= INLINE_DECODE_BYTES


def _few_pixels(opened: Sequence[Image.Image | None]) -> bool:
    return sum(image.width * image.height for image in opened if image is not None) <= INLINE_DECODE_PIXELS
