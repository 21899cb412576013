"""Explains answers: which pixels spoke for a label.

The pictures are decoded and classified once. Of a network that ends in global average pooling the activations come with the answer,
and the heat map is the class activation map. Of others the pictures are classified again with a patch hidden, place after place, in
batches of some milliseconds, one at a time, and the heat map shows where the answer grew weaker.

All of it goes through the model's queue at the lowest priority, so that it waits for everybody else. It is bounded: a request is as
dear as the policy's `max_explain_items`, and RUNNING of them are in memory at a time. What is computed here, not by the model, is
done by the threads that decode.
"""

import logging
import math
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
from service.engine.top_k import Results
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
from service.model.class_activation import class_activation_map, enlarged
from service.model.contract import ACTIVATIONS_NAME, LOGITS_NAME
from service.model.occlusion import Place, hide, log_odds, mean_falls, places_of
from service.model.overlay import overlay
from service.policy import FEWEST_EXPLAIN_ITEMS, Policy
from service.principal import Principal

log = logging.getLogger(__name__)

RUNNING = 16
"""Explanations that are being made at a time, of all models; of one client half as many. Each holds its pictures and a batch."""

_BATCH_SECONDS = 0.02
"""How long a batch of hidden patches may take: so long may it hold up a request of a higher priority."""

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
        places = _places(served, len(query.items)) if method_of(served) == "occlusion" else []
        quotas = self._classifier.quotas
        if quotas is not None:  # the copies count as if the client had sent them
            copies = len(query.items) * len(places)
            quotas.take(query.principal, query.size_bytes + copies * served.model.input.size_bytes)
        timeout = query.timeout_seconds or served.policy.default_timeout_seconds
        deadline = deadline_after(query.deadline, timeout) if timeout else query.deadline
        return _Work(self, self._classifier, served, query._replace(deadline=deadline), index, places)

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


def _places(served: ServedVersion, pictures: int) -> list[Place]:
    """Where the patch goes on each of so many pictures: as many places as the policy allows."""
    height, width = served.model.contract.input.height, served.model.contract.input.width
    return places_of(height, width, math.isqrt((served.policy.max_explain_items - pictures) // pictures))


@dataclass(eq=False)
class _Work:
    """One explanation that is being made. Its steps run one after the other, on threads of the pool.

    It stands in for the classifier towards its requests: these neither release the version nor count failures, which it does once.
    """

    explainer: Explainer
    classifier: Classifier
    served: ServedVersion
    query: Query
    index: int | None
    places: list[Place]

    def __post_init__(self) -> None:
        self.release: Callable[[ServedVersion], None] = _nothing_to_release
        self.pool = self.classifier.pool
        self.quotas = self.classifier.quotas
        self.respond: Explained
        self._method: Method = "occlusion" if self.places else "class_activation"
        self._cancelled = False
        self._began = time.monotonic()
        self._cancel_request: Callable[[], None] = _nothing_to_cancel
        self._images: NDArray[Any]
        self._answer: Answer
        self._best: Results
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
        if self._method == "class_activation":
            self._explain_by_activations()
        else:
            self._hide_next()

    def _explain_by_activations(self) -> None:
        weights = self.served.model.class_weights
        for item, activations in enumerate(self._answer.hidden[ACTIVATIONS_NAME]):
            heat = enlarged(class_activation_map(activations, weights, self._index(item)), *self._images.shape[1:3])
            # A map without negative values says what there is beside its lowest one.
            self._add(item, heat, heat - max(float(heat.min()), 0.0))
        self._end(self._answer)

    def _hide_next(self) -> None:
        """Has the next batch of the present picture's copies classified."""
        item, done = len(self._found), len(self._falls)
        chunk = self.places[done : done + self._batch_items()]
        self._ask(hide(self._images[item], chunk), self._hidden)

    def _hidden(self, answer: Answer) -> None:
        item = len(self._found)
        before, after = self._odds(self._answer, item)[item], self._odds(answer, item)
        self._falls += [float(before - odds) for odds in after]
        if len(self._falls) == len(self.places):
            heat = mean_falls(np.array(self._falls), self.places, *self._images.shape[1:3])
            self._falls = []
            self._add(item, heat, heat)
        if len(self._found) == len(self._images):
            self._end(self._answer)
        else:
            self._hide_next()

    def _odds(self, answer: Answer, item: int) -> NDArray[np.floating]:
        """The log-odds of the item's label in each row of an answer."""
        logits, index = answer.outputs[LOGITS_NAME], self._index(item)
        return logits[:, index] if self.served.model.contract.head == "multilabel" else log_odds(logits, index)

    def _index(self, item: int) -> int:
        return int(self._answer.scores[item].argmax()) if self.index is None else self.index

    def _add(self, item: int, heat: NDArray[np.float32], shown: NDArray[np.float32]) -> None:
        if not np.isfinite(heat).all():
            raise self._answer.not_finite(f"model {self.served.name!r} gave numbers that are not finite for item {item}")
        index = self._index(item)
        probability = float(self._answer.scores[item, index])
        self._found.append(Explanation(index, probability, self._method, heat, overlay(self._images[item], shown)))

    def _batch_items(self) -> int:
        """How many copies are classified at a time: no more than a short batch takes."""
        measured = self.served.batcher.measured().items()
        short = max((items for items, seconds in measured if seconds <= _BATCH_SECONDS), default=1)
        own = 0 if self.quotas is None else self.quotas.queue_items(self.query.principal)
        return max(1, min(short, self.served.policy.max_request_items, own or short))

    def _ask(self, images: NDArray[Any], then: Callable[[Answer], None], *, hidden: bool = False) -> None:
        query = self.query
        asked = Query(
            query.model, (), priority=self.served.policy.priority_levels, deadline=query.deadline, tensor=images, trace=query.trace,
            id=query.id, principal=query.principal, hidden=hidden,
        )  # fmt: skip

        def done(outcome: Answer | RequestError) -> None:
            if isinstance(outcome, RequestError):
                self._end(outcome)
                return
            try:  # on whatever thread ran the batch, which has others to run
                self.pool.submit(partial(self._step, partial(then, outcome)), (), query.principal)
            except RequestError as error:
                self._end(error)

        request = Request(self, self.served, asked, done)
        self._cancel_request = request.cancel
        if self._cancelled:  # meanwhile
            request.cancel()
        request.begin(on_transport=False)

    def _step(self, step: Callable[[], None]) -> None:
        try:
            self._check_wanted()
            step()
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("model %s: an answer could not be explained", self.served.name)
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
            del self.respond, self._cancel_request  # they refer back to this
            self.explainer.leave(self.query.principal)
            self.classifier.release(self.served)


def _nothing_to_cancel() -> None:
    pass


def _nothing_to_release(_: ServedVersion) -> None:
    pass
