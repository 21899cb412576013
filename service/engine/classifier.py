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
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.engine.batcher import Work
from service.engine.repository import Repository, ServedModel
from service.errors import Cancelled, DeadlineExceeded, InvalidRequest, ModelFailed, QueueFull, RequestError, Unavailable
from service.model.cpus import cpu_budget
from service.model.preprocessing import open_image, to_pixels
from service.model.session import TensorSpec
from service.observability.metrics import Metrics
from service.observability.trace_context import TraceContext
from service.phases import Phases
from service.policy import MAX_TIMEOUT_SECONDS

log = logging.getLogger(__name__)

DEFAULT_TOP_K = 5
MANY_ITEMS = 512
"""Of a request; one with more is held against its model before anything is made of them."""

INLINE_DECODE_ITEMS = 32
INLINE_DECODE_BYTES = 64 * 1024
INLINE_DECODE_PIXELS = 64 * 1024
UNDECODED_BYTES = 256 * 2**20
"""So many bytes of encoded pictures may wait for a decoding thread, of all models together: queues count pictures, not bytes."""

SMALL_SCORES = 128
"""Up to so many scores Python sorts faster than numpy is called."""


class Item(NamedTuple):
    """One image: an image file's bytes if `encoded`, else uint8[H,W,C] of exactly the model's shape, as bytes."""

    data: bytes
    encoded: bool


class Query(NamedTuple):
    """A classify request, of `items` or of a `tensor`: [n, *shape] of n items, in the dtype and shape that the model takes.

    `deadline` is in `time.monotonic` seconds, infinite if there is none. `examine` is shown the model that is to answer, before
    anything is done with it; it may raise RequestError. `trace` is the client's, if any; `id` is its name for the request.
    """

    model: str
    items: Sequence[Item]
    version: str = ""
    top_k: int = 0
    priority: int = 0
    timeout_seconds: float = 0.0
    deadline: float = math.inf
    tensor: NDArray[Any] | None = None
    examine: Callable[[ServedModel], None] | None = None
    trace: TraceContext | None = None
    id: str = ""


Results = list[list[tuple[int, float]]]
"""For each item its (label index, probability), the most probable first."""


class Answer:
    """What one version of a model gave for a request's n items.

    `scores` is floating[n,K], a number for each label: probabilities, if the model has a contract. `finished` is when inference
    was, in `time.monotonic` seconds.
    """

    __slots__ = ("_outputs", "finished", "phases", "scores", "served", "top_k", "trace")

    def __init__(
        self,
        served: ServedModel,
        outputs: Sequence[NDArray[Any]],
        top_k: int,
        phases: Phases,
        finished: float,
        trace: TraceContext | None,
    ) -> None:
        scores = outputs[0]
        if scores.ndim != 2:
            scores = scores.reshape(len(scores), -1)
        self.served = served
        self.scores = scores
        self.top_k = min(top_k or DEFAULT_TOP_K, scores.shape[1])
        self.phases = phases
        self.finished = finished
        self.trace = trace
        self._outputs = outputs

    @property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """Every output of the model by its name, [n, *shape]."""
        return {spec.name: output for spec, output in zip(self.served.model.outputs, self._outputs, strict=True)}

    def best(self) -> Results:
        """For each item its `top_k` labels as (index, probability), the most probable first, equal ones by index."""
        return best(self.scores, self.top_k)

    def predictions(self) -> Results:
        """As `best`. Raises ModelFailed if a score is NaN: in no order does it have a place."""
        found = self.best()
        # With a softmax over them they are all NaN or none is.
        if any(item[0][1] != item[0][1] for item in found) or (self.served.model.foreign and np.isnan(self.scores).any()):
            log.error("model %s version %d: the scores of a request are NaN", self.served.name, self.served.version)
            raise ModelFailed(f"model {self.served.name!r} gave NaN for this request")
        return found

    def delivered(self, best: Results, encode_seconds: float) -> None:
        """To be called once, when the reply with what `best` gave has been handed to the transport."""
        self.served.metrics.answered(self.phases, encode_seconds, best, self.trace)


def best(scores: NDArray[Any], top_k: int) -> Results:
    """For each row of scores, floating[n,K], its `top_k` best, 1 to K: (index, score), the best first, equal ones by index."""
    if scores.size <= SMALL_SCORES:
        if top_k == 1:
            return [[max(enumerate(row), key=itemgetter(1))] for row in scores.tolist()]
        return [sorted(enumerate(row), key=itemgetter(1), reverse=True)[:top_k] for row in scores.tolist()]
    order = scores.argmax(axis=1)[:, np.newaxis] if top_k == 1 else _order(scores, top_k)
    found = np.take_along_axis(scores, order, axis=1)
    return [list(zip(*pair, strict=True)) for pair in zip(order.tolist(), found.tolist(), strict=True)]


def _order(scores: NDArray[Any], top_k: int) -> NDArray[np.intp]:
    """For each row of floating[n,K] the indices [n,top_k] of its best, equal ones by index, NaN last."""
    # To sort all of them would take longer than the inference: only those no less than the last to be named, all rows at once.
    least = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1 : top_k]
    rows, indices = np.nonzero(~(scores < least))
    indices = indices[np.lexsort((indices, -scores[rows, indices], rows))]
    starts = np.searchsorted(rows, np.arange(len(scores)))
    order: NDArray[np.intp] = indices[starts[:, np.newaxis] + np.arange(top_k)]
    return order


Respond = Callable[[Answer | RequestError], None]
"""Takes the one outcome of a request, from any thread."""


class Classifier:
    """Answers queries with the models of a repository."""

    def __init__(self, repository: Repository, metrics: Metrics, cpus: int | None = None) -> None:
        """Decodes with as many threads as there are `cpus`; all that this process may use if not given."""
        self._repository = repository
        self.release = repository.release  # as it is: each request goes through it
        self._metrics = metrics
        self._decoders = ThreadPoolExecutor(cpus or cpu_budget(), thread_name_prefix="decode")
        self._undecoded = threading.Lock()
        self._undecoded_bytes = 0
        self._draining = False
        self.closed = False

    def drain(self, seconds: float) -> bool:
        """Refuses new queries from now on and waits for those in hand, at most so long; whether all of them ended."""
        self._draining = True
        self._repository.hurry()
        return self._repository.wait_until_idle(seconds)

    def close(self) -> None:
        """Ends the decoding threads, at the next picture. Only after `drain`."""
        self.closed = True
        self._decoders.shutdown()

    def pump(self) -> float:
        """For the transport's thread, when no more events wait: see `Repository.pump`."""
        return self._repository.pump()

    def classify(self, query: Query, respond: Respond, *, on_transport: bool = True) -> Callable[[], None]:
        """Answers a query: calls `respond` exactly once, maybe before this returns, maybe from another thread.

        `on_transport` says that this is the transport's thread, which must not be held up and which runs batches itself. On any
        other thread images are decoded in the pool, because a decoded picture is large and such threads are many, and batches run
        on the model's own.

        Returns:
            A function that cancels the request; it may be called at any time, any number of times.

        Raises:
            RequestError: the query cannot be taken on; `respond` is not called.
        """
        served = self._repository.acquire(query.model, query.version)
        try:
            if self._draining:
                raise Unavailable("the server is draining")
            if query.examine is not None:
                query.examine(served)
            request = _Request(self, served, query, respond)
            if on_transport:
                request.begin()
            else:
                request.begin_off_transport()
        except BaseException as error:
            if isinstance(error, RequestError):
                self.record_failure(served, error)
            self.release(served)
            raise
        return request.cancel

    def classify_blocking(self, query: Query) -> Answer:
        """Answers a query on a thread that may wait, never the transport's. Raises RequestError."""
        outcomes: list[Answer | RequestError] = []
        ended = threading.Event()

        def respond(outcome: Answer | RequestError) -> None:
            outcomes.append(outcome)
            ended.set()

        self.classify(query, respond, on_transport=False)
        ended.wait()
        outcome = outcomes.pop()
        try:
            if isinstance(outcome, RequestError):
                raise outcome
            return outcome
        finally:
            del outcome  # an error refers to this frame

    def check_count(self, model: str, version: str, items: int) -> None:
        """For requests of more than MANY_ITEMS. Raises RequestError if there is no such model or it takes fewer in one request."""
        served = self._repository.acquire(model, version)
        try:
            if items > served.policy.max_request_items:
                error = _wrong_count(items, served.policy.max_request_items)
                self.record_failure(served, error)
                raise error
        finally:
            self.release(served)

    def decode_in_pool(self, job: Callable[[], None], encoded_bytes: int) -> None:
        """Runs a job, which holds so many bytes until it is done, on a decoding thread. Raises QueueFull if too many wait."""
        with self._undecoded:
            waiting = self._undecoded_bytes
            if waiting and waiting + encoded_bytes > UNDECODED_BYTES:
                raise QueueFull(f"{waiting} bytes of encoded images wait to be decoded, {encoded_bytes} more came", 1.0)
            self._undecoded_bytes += encoded_bytes

        def run() -> None:
            try:
                job()
            finally:
                with self._undecoded:
                    self._undecoded_bytes -= encoded_bytes

        self._decoders.submit(run)

    def record_encoding_failure(self, answer: Answer, error: Exception) -> None:
        """Counts a request that was computed and of whose answer nothing can be made."""
        self.record_failure(answer.served, error if isinstance(error, RequestError) else ModelFailed(str(error)))

    def record_failure(self, served: ServedModel, error: RequestError, seconds: float = 0.0) -> None:
        """Counts a request that was not answered, so many seconds after it had joined the queue."""
        served.metrics.failed(error.reason, seconds)
        self._metrics.rejected(served.name, error.reason)


class _Request(Work):
    """One query on its way. It lets go of its pictures when it is done: what it refers to may refer to it."""

    __slots__ = ("_cancelled", "_classifier", "_decode_seconds", "_items", "_respond", "_served", "_tensor", "_top_k")

    def __init__(self, classifier: Classifier, served: ServedModel, query: Query, respond: Respond) -> None:
        policy = served.policy
        count = len(query.items) if query.tensor is None else len(query.tensor)
        if not 0 < count <= policy.max_request_items:
            raise _wrong_count(count, policy.max_request_items)
        if query.priority > policy.priority_levels:
            raise InvalidRequest(
                f"priority {query.priority} is above the lowest level of this model, {policy.priority_levels}", "priority"
            )
        timeout = query.timeout_seconds or policy.default_timeout_seconds
        deadline = _deadline(query.deadline, timeout) if timeout else query.deadline
        super().__init__(count, query.priority or policy.default_priority, deadline, query.trace)
        self._classifier = classifier
        self._served = served
        self._items = query.items
        self._tensor = query.tensor
        self._top_k = query.top_k
        self._respond = respond
        self._decode_seconds: float | None = None
        self._cancelled = False

    def begin(self) -> None:
        """Sends the request on from the transport's thread; raises RequestError if it cannot be taken on."""
        images = self._raw()
        if images is not None:
            self._submit(images, pool=False)
            return
        items = self._items
        batcher = self._served.batcher
        if batcher.inline and _quickly_opened(items):
            start = time.monotonic()
            opened = [self._open(index, item) if item.encoded else None for index, item in enumerate(items)]
            if _quickly_decoded(opened):
                pixels = self._pixels(opened)
                self._decode_seconds = time.monotonic() - start
                self._submit(pixels, pool=False)
                return
        self._decode_in_pool()

    def begin_off_transport(self) -> None:
        """Sends the request on from any other thread; raises RequestError if it cannot be taken on."""
        images = self._raw()
        if images is None:
            self._decode_in_pool()
        else:
            self._served.batcher.reserve(self.items)
            self._submit(images, pool=True)

    def cancel(self) -> None:
        """The client is gone."""
        self._cancelled = True
        if self.submitted:
            self._served.batcher.cancel(self)

    def _decode_in_pool(self) -> None:
        batcher = self._served.batcher
        batcher.reserve(self.items)
        try:
            self._classifier.decode_in_pool(self._decode_then_submit, sum(len(item.data) for item in self._items))
        except QueueFull:
            batcher.release(self.items)
            raise

    def _decode_then_submit(self) -> None:
        try:
            pixels = self._decoded()
            self._items = ()
        except Exception as error:
            self._served.batcher.release(self.items)
            if not isinstance(error, RequestError):
                log.exception("model %s: a request failed while it was decoded", self._served.name)
                error = ModelFailed("the request failed inside the server")
            self._served.batcher.fail(self, error)
            return
        try:
            self._submit(pixels, pool=True)
        except RequestError as error:
            self._served.batcher.fail(self, error)

    def _decoded(self) -> NDArray[np.uint8]:
        start = time.monotonic()
        pixels = self._pixels([None] * len(self._items))
        self._decode_seconds = time.monotonic() - start
        return pixels

    def _open(self, index: int, item: Item) -> Image.Image:
        """The header of one encoded item."""
        try:
            return open_image(item.data, self._served.policy.max_image_pixels)
        except InvalidRequest as error:
            raise InvalidRequest(f"item {index}: {error}", f"items[{index}].encoded") from None

    def _raw(self) -> NDArray[Any] | None:
        """The tensor, or uint8[n,H,W,C] of items that are all raw, one copy at most; None if there is something to decode."""
        spec = self._served.model.input
        if self._tensor is not None:
            _check_tensor(self._tensor, spec)
            return self._tensor
        items = self._items
        for index, item in enumerate(items):
            if item.encoded:
                if self._served.model.foreign:
                    raise self._needs_tensors(f"items[{index}].encoded")
                return None
        if not spec.is_picture:
            raise self._needs_tensors("items[0].pixels")
        for index, item in enumerate(items):
            if len(item.data) != spec.size_bytes:
                raise _wrong_size(index, item, spec)
        data = items[0].data if len(items) == 1 else b"".join([item.data for item in items])
        return np.frombuffer(data, spec.item)

    def _pixels(self, opened: list[Image.Image | None]) -> NDArray[np.uint8]:
        """uint8[n,H,W,C] of all items. Those that are not `opened` yet are, one by one: a decoded picture is large."""
        spec = self._served.model.contract.input
        for index, item in enumerate(self._items):
            if not item.encoded and len(item.data) != self._served.model.input.size_bytes:
                raise _wrong_size(index, item, self._served.model.input)
        images = np.empty((len(self._items), *spec.shape), np.uint8)
        for index, item in enumerate(self._items):
            if not item.encoded:
                images[index] = np.frombuffer(item.data, np.uint8).reshape(spec.shape)
                continue
            image = opened[index]
            if image is None:
                self._check_wanted()
                image = self._open(index, item)
            try:
                images[index] = to_pixels(image, spec)
            except InvalidRequest as error:
                raise InvalidRequest(f"item {index}: {error}", f"items[{index}].encoded") from None
        return images

    def _check_wanted(self) -> None:
        """Raises RequestError if nobody waits for the answer any more."""
        if time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the deadline passed before the request was decoded")
        if self._cancelled:
            raise Cancelled("the client cancelled the call")
        if self._classifier.closed:
            raise Unavailable("the server has stopped")

    def _needs_tensors(self, field: str) -> InvalidRequest:
        served = self._served
        return InvalidRequest(
            f"model {served.name!r} has no contract that says how a picture becomes its input, {served.model.input}: "
            "send it tensors, over the Open Inference Protocol",
            field,
        )

    def _submit(self, images: NDArray[Any], *, pool: bool) -> None:
        batcher = self._served.batcher
        self.images = images
        full = batcher.submit(self, reserved=pool)
        if self._cancelled:  # it came while the pictures were decoded
            batcher.cancel(self)
        elif pool:
            batcher.hand_over()
        elif full:
            batcher.pump()

    def done(self) -> None:
        """See Work."""
        error, served, respond = self.error, self._served, self._respond
        del self._respond
        self._items = ()
        self._tensor = None
        try:
            if error is None:
                phases = Phases(self._decode_seconds, self.started - self.submitted, self.finished - self.started)
                del self.images  # no instance computes on them any more
                respond(Answer(served, self.outputs, self._top_k, phases, self.finished, self.trace))
            else:
                # What raised it holds pictures; as the error is remembered here, they would wait for the garbage collector.
                error.__traceback__ = error.__context__ = None
                respond(error)
        finally:
            if error is not None:
                self._classifier.record_failure(served, error, time.monotonic() - self.submitted if self.submitted else 0.0)
            self._classifier.release(served)


def _wrong_count(items: int, limit: int) -> InvalidRequest:
    if not items:
        return InvalidRequest("the request has no items; send 1 or more images", "items")
    return InvalidRequest(f"the request has {items} items; at most {limit} are accepted", "items")


def _check_tensor(tensor: NDArray[Any], spec: TensorSpec) -> None:
    if tensor.dtype != spec.dtype or tensor.shape[1:] != spec.shape:
        given = " x ".join(map(str, tensor.shape[1:]))
        raise InvalidRequest(f"the tensor's items are {tensor.dtype} {given}; the model takes {spec}", spec.name)


def _wrong_size(index: int, item: Item, spec: TensorSpec) -> InvalidRequest:
    message = f"item {index}: {len(item.data)} bytes of pixels; the model takes {spec.size_bytes} ({spec})"
    return InvalidRequest(message, f"items[{index}].pixels")


def _deadline(deadline: float, timeout: float) -> float:
    """The earlier of the call's deadline and now plus the timeout, in seconds."""
    if not 0 <= timeout <= MAX_TIMEOUT_SECONDS:  # a NaN is refused too
        raise InvalidRequest(f"timeout_seconds {timeout} is not between 0 and {MAX_TIMEOUT_SECONDS:.0e}", "timeout_seconds")
    return min(deadline, time.monotonic() + timeout)


def _quickly_opened(items: Sequence[Item]) -> bool:
    """Few bytes, and none of it what a PNG may hold compressed beside its pixels, which is unfolded with the header."""
    return (
        len(items) <= INLINE_DECODE_ITEMS
        and sum(len(item.data) for item in items) <= INLINE_DECODE_BYTES
        and not any(kind in item.data for item in items for kind in (b"zTXt", b"iTXt", b"iCCP"))
    )


def _quickly_decoded(opened: Sequence[Image.Image | None]) -> bool:
    """Few pixels, and none of it a progressive JPEG or a TIFF, which may hold any number of scans or tiles of them."""
    images = [image for image in opened if image is not None]
    return sum(image.width * image.height for image in images) <= INLINE_DECODE_PIXELS and not any(
        "progressive" in image.info or image.format == "TIFF" for image in images
    )
