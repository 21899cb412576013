"""Explanations of one request, while they are made: step by step, so that others have their turn between two of them."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.decoding import decode
from service.engine.query import Query
from service.engine.request import Request
from service.engine.served_version import ServedVersion
from service.errors import Cancelled, DeadlineExceeded, ModelFailed, QueueFull, RequestError, Unavailable, forget_traceback
from service.model.class_activation import class_activation_map, enlarged
from service.model.contract import ACTIVATIONS_NAME, LOGITS_NAME
from service.model.occlusion import Grid, hide, log_odds, mean_falls
from service.model.overlay import overlay
from service.policy import MAX_TIMEOUT_SECONDS
from service.requests.fair_threads import FairThreads
from service.requests.principal import Principal

log = logging.getLogger(__name__)

_BATCH_SECONDS = 0.02
"""How long a batch of hidden patches may take: so long may it hold up a request of a higher priority."""

DRAWN_PIXELS = 240
"""A side of the drawing of a small picture, about."""

_LONGEST_WAIT_SECONDS = 1.0
"""After which a batch that found the queue full is tried again: so long may a cancelled explanation stay."""

Method = Literal["class_activation", "occlusion"]


class Explanation(NamedTuple):
    """Why one picture has its answer.

    `label_index` is the label's, `probability` the model's for it; `heat` is float32[H,W], above zero where pixels spoke for the
    label; `overlay` is a PNG.
    """

    label_index: int
    probability: float
    method: Method
    heat: NDArray[np.float32]
    overlay: bytes


Explained = Callable[[Answer | RequestError, Sequence[Explanation]], None]
"""Takes the one outcome, from any thread: the answer for the pictures with their explanations, or an error."""


@dataclass(eq=False)
class Work:
    """The explanations of one request that are being made.

    The first step decodes, on the pool; the others run one after the other on one thread. It stands in for the classifier towards
    its requests: these neither release the version nor count failures, which it does once.

    Attributes:
        query: of the request; its items are let go once they are decoded.
        index: of the label that is explained; None for the best of each picture.
        grid: where pictures are hidden; None for class activation maps.
        threads: run the steps.
        leave: called once, at the end.
    """

    classifier: Classifier
    served: ServedVersion
    query: Query
    index: int | None
    grid: Grid | None
    threads: FairThreads
    leave: Callable[[Principal], None]

    def __post_init__(self) -> None:
        self.release: Callable[[ServedVersion], None] = _nothing_to_release
        self.pool = self.classifier.pool
        self.quotas = self.classifier.quotas
        self.respond: Explained
        self._method: Method = "class_activation" if self.grid is None else "occlusion"
        self._cancelled = False
        self._began = time.monotonic()
        self._cancel_request: Callable[[], None] = _nothing_to_cancel
        self._images: NDArray[Any]
        self._answer: Answer
        self._found: list[Explanation] = []
        self._falls: list[float] = []

    def record_failure(self, _: ServedVersion, error: RequestError, seconds: float = 0.0) -> None:
        """See `RequestContext`."""

    def cancel(self) -> None:
        """Ends it at its next step. From any thread, any number of times."""
        self._cancelled = True
        self._cancel_request()

    def begin(self) -> None:
        """Decodes the pictures and has them classified."""

        def step() -> None:
            self._images = decode(self.served, self.query.items, self.pool.processes, self._check_wanted)
            self.query = self.query._replace(items=())
            self._ask(self._images, self._answered, hidden=self._method == "class_activation")

        self._step(step)

    def _answered(self, answer: Answer) -> None:
        answer.check_no_nan(answer.best())
        self._answer = answer
        if self.grid is None:
            self._draw_next(self._answer.hidden[ACTIVATIONS_NAME])
        else:
            self._hide_next(self.grid)

    def _draw_next(self, activations: NDArray[Any]) -> None:
        """Explains the next picture by its activations, [n,C,h,w] of all. The one after it has a step of its own."""
        item = len(self._found)
        found = class_activation_map(activations[item], self.served.model.class_weights, self._index(item))
        heat = enlarged(found, *self._images.shape[1:3])
        # A map without negative values says what there is beside its lowest one.
        self._add(item, heat, heat - max(float(heat.min()), 0.0))
        if len(self._found) == len(self._images):
            self._end(self._answer)
        else:
            self._then(partial(self._draw_next, activations))

    def _hide_next(self, grid: Grid) -> None:
        """Has the next batch of the present picture's copies classified."""
        item, done = len(self._found), len(self._falls)
        chunk = grid.places[done : done + self._batch_items()]
        self._ask(hide(self._images[item], chunk, grid.patch), partial(self._hidden, grid))

    def _hidden(self, grid: Grid, answer: Answer) -> None:
        item = len(self._found)
        before, after = self._odds(self._answer, item)[item], self._odds(answer, item)
        self._falls += [float(before - odds) for odds in after]
        if len(self._falls) == len(grid.places):
            heat = mean_falls(np.array(self._falls), grid, *self._images.shape[1:3])
            self._falls = []
            self._add(item, heat, heat)
        if len(self._found) == len(self._images):
            self._end(self._answer)
        else:
            self._hide_next(grid)

    def _odds(self, answer: Answer, item: int) -> NDArray[np.floating]:
        """The log-odds of the item's label in each row of an answer."""
        logits, index = answer.computed[LOGITS_NAME], self._index(item)
        return logits[:, index] if self.served.model.contract.head == "multilabel" else log_odds(logits, index)

    def _index(self, item: int) -> int:
        return int(self._answer.scores[item].argmax()) if self.index is None else self.index

    def _add(self, item: int, heat: NDArray[np.float32], shown: NDArray[np.float32]) -> None:
        if not np.isfinite(heat).all():
            raise self._answer.not_finite(f"model {self.served.name!r} gave numbers that are not finite for item {item}")
        index = self._index(item)
        probability = float(self._answer.scores[item, index])
        drawn = overlay(self._images[item], shown, DRAWN_PIXELS)
        self._found.append(Explanation(index, probability, self._method, heat, drawn))

    def _batch_items(self) -> int:
        """How many copies are classified at a time: no more than a short batch takes."""
        measured = self.served.batcher.measured().items()
        short = max((items for items, seconds in measured if seconds <= _BATCH_SECONDS), default=1)
        own = 0 if self.quotas is None else self.quotas.queue_items(self.query.principal)
        return max(1, min(short, self.served.policy.max_request_items, own or short))

    def _ask(self, images: NDArray[Any], then: Callable[[Answer], None], *, hidden: bool = False) -> None:
        query = self.query  # whose deadline has the model's limit of time already, unless the client has set another
        asked = Query(
            query.model, (), timeout_seconds=MAX_TIMEOUT_SECONDS, deadline=query.deadline, tensor=images, trace=query.trace,
            id=query.id, principal=query.principal, hidden=hidden,
        )  # fmt: skip
        again = partial(self._ask, images, then, hidden=hidden)

        def done(outcome: Answer | RequestError) -> None:  # on whatever thread ran the batch, which has others to run
            if isinstance(outcome, QueueFull):
                self._wait(outcome, again)
            elif isinstance(outcome, RequestError):
                self._end(outcome)
            else:
                self._then(partial(then, outcome))

        request = Request(self, self.served, asked, done, background=True)
        self._cancel_request = request.cancel
        if self._cancelled:  # meanwhile
            request.cancel()
        try:
            request.begin(on_transport=False)
        except QueueFull as error:
            self._wait(error, again)

    def _wait(self, error: QueueFull, again: Callable[[], None]) -> None:
        """Tries again after the error's time, until the deadline: others are served first."""
        forget_traceback(error)
        left = self.query.deadline - time.monotonic()
        timer = threading.Timer(max(0.0, min(error.retry_after_seconds, _LONGEST_WAIT_SECONDS, left)), self._then, (again,))
        timer.daemon = True
        try:
            timer.start()
        except (RuntimeError, MemoryError):  # the system has no thread for it
            self._end(error)

    def _then(self, step: Callable[[], None]) -> None:
        """Has the next step run, in its client's turn."""
        try:
            self.threads.submit(self.query.principal, partial(self._step, step))
        except RequestError as error:
            self._end(error)

    def _step(self, step: Callable[[], None]) -> None:
        try:
            self._check_wanted()
            step()
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("model %s version %d: an answer could not be explained", self.served.name, self.served.version)
                error = ModelFailed("the request failed inside the server")
            self._end(error)

    def _check_wanted(self) -> None:
        if self._cancelled:
            raise Cancelled("the client cancelled the call")
        if time.monotonic() >= self.query.deadline:
            raise DeadlineExceeded("the deadline passed before the answer was explained")
        if self.pool.closed:
            raise Unavailable("the server has stopped")

    def _end(self, outcome: Answer | RequestError) -> None:
        """Responds. Called once: each step ends with it or has the next one follow."""
        if isinstance(outcome, RequestError):
            forget_traceback(outcome)
            self.classifier.record_failure(self.served, outcome, time.monotonic() - self._began)
        try:
            self.respond(outcome, self._found)
        finally:
            del self.respond  # it and the next refer back to this
            self._cancel_request = _nothing_to_cancel  # the call may be cancelled afterwards, too
            self.leave(self.query.principal)
            self.classifier.release(self.served)


def _nothing_to_cancel() -> None:
    pass


def _nothing_to_release(_: ServedVersion) -> None:
    pass
