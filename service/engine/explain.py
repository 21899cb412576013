"""Explains answers: which pixels spoke for a label.

The pictures are decoded and classified once. Of a network that ends in global average pooling the activations come with the answer,
and the heat map is the class activation map. Of others the pictures are classified again with a patch hidden, place after place, in
batches of some milliseconds, one at a time, and the heat map shows where the answer grew weaker.

All of it goes through the model's queue below the lowest priority that a request may have, so that it waits for everybody else. It
is bounded: a request is as dear as the policy's `max_explain_items`, and RUNNING of them are in memory at a time. What is computed
here, not by the model, is done by one thread of its own, a picture or a batch at a time: the threads that decode are for everybody.
"""

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
from service.engine.decoding import decode, tensors_only
from service.engine.observer import Observation
from service.engine.query import Query
from service.engine.request import Request, deadline_after
from service.engine.served_version import ServedVersion
from service.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    QueueFull,
    RequestError,
    Unavailable,
    Unimplemented,
    forget_traceback,
)
from service.fair_threads import FairThreads
from service.model.class_activation import class_activation_map, enlarged
from service.model.contract import ACTIVATIONS_NAME, LOGITS_NAME
from service.model.occlusion import Grid, grid_of, hide, log_odds, mean_falls
from service.model.overlay import drawn_bytes, overlay
from service.policy import FEWEST_EXPLAIN_ITEMS, Policy
from service.principal import Principal

log = logging.getLogger(__name__)

RUNNING = 16
"""Explanations that are being made at a time, of all models; of one client half as many. Each holds its pictures and a batch."""

_BATCH_SECONDS = 0.02
"""How long a batch of hidden patches may take: so long may it hold up a request of a higher priority."""

_DRAWN_PIXELS = 240
"""A side of the drawing of a small picture, about."""

_LONGEST_WAIT_SECONDS = 1.0
"""After which a batch that found the queue full is tried again: so long may a cancelled explanation stay."""

_SHOWN_LABELS = 20

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


def method_of(served: ServedVersion) -> Method | None:
    """How answers of a version are explained; None if they are not."""
    if not served.model.has_contract or not served.policy.max_explain_items:
        return None
    return "class_activation" if ACTIVATIONS_NAME in served.model.hidden else "occlusion"


def most_pictures(policy: Policy) -> int:
    """Pictures in one request, each with its hidden copies."""
    return policy.max_explain_items // FEWEST_EXPLAIN_ITEMS


class Explainer:
    """Explains answers of a classifier's models."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._lock = threading.Lock()
        self._running: dict[Principal, int] = {}
        self.threads = FairThreads(1, "explain")  # started by its first job

    def close(self) -> None:
        """Ends the thread. Only after the classifier's."""
        self.threads.close()

    def explain(self, query: Query, label: str, respond: Explained) -> Callable[[], None]:
        """Explains the items of a query: calls `respond` exactly once, from another thread. Returns a function that cancels.

        `label` is the label to explain; empty for the best of each item. The query's priority is not used.

        Raises RequestError if the query is refused; `respond` is not called.
        """
        classifier = self._classifier
        observation = classifier.observation(query)
        if observation is not None:
            query = query._replace(trace=observation.trace)
        served = None
        try:
            served = classifier.acquire(query.model, query.version)
            classifier.check_not_draining()
            work = self._work(served, query, label)
            work.respond = respond if observation is None else _observed(respond, observation)
            self._enter(query.principal)
            try:
                classifier.pool.submit(work.begin, query.items, query.principal)
            except BaseException:
                self.leave(query.principal)
                raise
        except BaseException as error:
            if served is not None:
                if isinstance(error, RequestError):
                    classifier.record_failure(served, error)
                classifier.release(served)
            if observation is not None:
                observation.refused(error)
            raise
        return work.cancel

    def explain_blocking(self, query: Query, label: str) -> tuple[Answer, Sequence[Explanation]]:
        """The answer and its explanations, for a thread that may block. Raises RequestError."""
        ended = threading.Event()
        outcomes: list[tuple[Answer | RequestError, Sequence[Explanation]]] = []

        def respond(outcome: Answer | RequestError, found: Sequence[Explanation]) -> None:
            outcomes.append((outcome, found))
            ended.set()

        self.explain(query, label, respond)
        ended.wait()
        outcome, found = outcomes.pop()
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome, found

    def _work(self, served: ServedVersion, query: Query, label: str) -> "_Work":
        """Raises RequestError for what cannot be explained, or is more than the client may send."""
        index = _check(served, query, label)
        grid = _grid(served, len(query.items)) if method_of(served) == "occlusion" else None
        quotas = self._classifier.quotas
        if quotas is not None:
            quotas.take(query.principal, query.size_bytes + len(query.items) * bytes_of_each(served, grid))
        timeout = query.timeout_seconds or served.policy.default_timeout_seconds
        deadline = deadline_after(query.deadline, timeout) if timeout else query.deadline
        return _Work(self, self._classifier, served, query._replace(deadline=deadline), index, grid)

    def _enter(self, principal: Principal) -> None:
        with self._lock:
            running, own = sum(self._running.values()), self._running.get(principal, 0)
            if running >= RUNNING or own >= RUNNING // 2:
                raise QueueFull(
                    f"{running} explanations are being made, {own} of them for this client, which may have half of {RUNNING}"
                )
            self._running[principal] = own + 1

    def leave(self, principal: Principal) -> None:
        """An explanation for a principal has ended."""
        with self._lock:
            left = self._running.pop(principal) - 1
            if left:
                self._running[principal] = left


def _observed(respond: Explained, observation: Observation) -> Explained:
    def observed(outcome: Answer | RequestError, found: Sequence[Explanation]) -> None:
        observation.observe(lambda outcome: respond(outcome, found))(outcome)

    return observed


def _check(served: ServedVersion, query: Query, label: str) -> int | None:
    """The index of the label; None for the best one. Raises RequestError for what cannot be explained."""
    policy, model = served.policy, served.model
    if not policy.max_explain_items:
        raise Unimplemented(f"model {served.name!r} does not explain its answers (max_explain_items = 0 in its serving.toml)")
    if model.input.is_picture_file:
        raise InvalidRequest(
            f"answers of model {served.name!r} are not explained: its graph decodes picture files by itself, and nothing says "
            "which pixels it makes of them. A model that takes pixels, exported or imported by Convoy, is explained",
            "items[0]",
        )
    if not model.has_contract:
        raise tensors_only(served, "items[0]")
    most = most_pictures(policy)
    if not 0 < len(query.items) <= most:
        raise InvalidRequest(
            f"the request has {len(query.items)} items; 1 to {most} are explained at a time (max_explain_items)", "items"
        )
    if not label:
        return None
    if label not in model.labels:
        shown = ", ".join(model.labels[:_SHOWN_LABELS]) + (" ..." if len(model.labels) > _SHOWN_LABELS else "")
        raise InvalidRequest(f"model {served.name!r} has no label {label[:64]!r}; its labels are {shown}", "label")
    return model.labels.index(label)


def _grid(served: ServedVersion, pictures: int) -> Grid:
    """Where the patch goes on each of so many pictures: as many places as the policy allows."""
    spec = served.model.contract.input
    return grid_of(spec.height, spec.width, (served.policy.max_explain_items - pictures) // pictures)


def bytes_of_each(served: ServedVersion, grid: Grid | None) -> int:
    """What explaining a picture counts for quotas: its hidden copies and its drawing, as if the client had sent their pixels."""
    spec = served.model.contract.input
    copies = 0 if grid is None else len(grid.places)
    return copies * served.model.input.size_bytes + drawn_bytes(spec.height, spec.width, _DRAWN_PIXELS)


@dataclass(eq=False)
class _Work:
    """One explanation that is being made. The first step decodes, on the pool; the others run one after the other on one thread.

    It stands in for the classifier towards its requests: these neither release the version nor count failures, which it does once.
    """

    explainer: Explainer
    classifier: Classifier
    served: ServedVersion
    query: Query
    index: int | None
    grid: Grid | None

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
        drawn = overlay(self._images[item], shown, _DRAWN_PIXELS)
        self._found.append(Explanation(index, probability, self._method, heat, drawn))

    def _batch_items(self) -> int:
        """How many copies are classified at a time: no more than a short batch takes."""
        measured = self.served.batcher.measured().items()
        short = max((items for items, seconds in measured if seconds <= _BATCH_SECONDS), default=1)
        own = 0 if self.quotas is None else self.quotas.queue_items(self.query.principal)
        return max(1, min(short, self.served.policy.max_request_items, own or short))

    def _ask(self, images: NDArray[Any], then: Callable[[Answer], None], *, hidden: bool = False) -> None:
        query = self.query
        asked = Query(
            query.model, (), deadline=query.deadline, tensor=images, trace=query.trace, id=query.id, principal=query.principal,
            hidden=hidden,
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
            self.explainer.threads.submit(self.query.principal, partial(self._step, step))
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
            self.explainer.leave(self.query.principal)
            self.classifier.release(self.served)


def _nothing_to_cancel() -> None:
    pass


def _nothing_to_release(_: ServedVersion) -> None:
    pass
