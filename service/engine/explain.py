"""Explains answers: which pixels spoke for a label.

The pictures are decoded and classified once. Of a network that ends in global average pooling the activations come with the answer,
and the heat map is the class activation map. Of others the pictures are classified again with a patch hidden, place after place, in
batches of some milliseconds, one at a time, and the heat map shows where the answer grew weaker.

All of it goes through the model's queue below the lowest priority that a request may have, so that it waits for everybody else. It
is bounded: a request is as dear as the policy's `max_explain_items`, and RUNNING of them are in memory at a time. What is computed
here, not by the model, is done by one thread of its own, a picture or a batch at a time: the threads that decode are for everybody.
"""

import threading
from collections.abc import Callable, Sequence

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.decoding import tensors_only
from service.engine.explanation import DRAWN_PIXELS, Explained, Explanation, Method, Work
from service.engine.observer import Observation
from service.engine.query import Query
from service.engine.request import deadline_after
from service.engine.served_version import ServedVersion
from service.errors import InvalidRequest, QueueFull, RequestError, Unimplemented
from service.model.contract import ACTIVATIONS_NAME
from service.model.occlusion import Grid, grid_of
from service.model.overlay import drawn_bytes
from service.policy import FEWEST_EXPLAIN_ITEMS, Policy
from service.requests.fair_threads import FairThreads
from service.requests.principal import Principal

RUNNING = 16
"""Explanations that are being made at a time, of all models; of one client half as many. Each holds its pictures and a batch."""

_SHOWN_LABELS = 20


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
            served = classifier.acquire_for(query)
            classifier.check_not_draining()
            work = self._work(served, query, label)
            work.respond = respond if observation is None else _observed(respond, observation)
            self._enter(query.principal)
            try:
                if classifier.quotas is not None:  # last of what may refuse it: what is counted stays so
                    size_bytes = query.size_bytes + len(query.items) * bytes_of_each(served, work.grid)
                    classifier.quotas.take(query.principal, size_bytes)
                classifier.pool.submit(work.begin, query.items, query.principal)
            except BaseException:
                self._leave(query.principal)
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

    def _work(self, served: ServedVersion, query: Query, label: str) -> Work:
        """Raises RequestError for what cannot be explained."""
        index = _check(served, query, label)
        grid = _grid(served, len(query.items)) if method_of(served) == "occlusion" else None
        timeout = query.timeout_seconds or served.policy.default_timeout_seconds
        deadline = deadline_after(query.deadline, timeout) if timeout else query.deadline
        return Work(self._classifier, served, query._replace(deadline=deadline), index, grid, self.threads, self._leave)

    def _enter(self, principal: Principal) -> None:
        with self._lock:
            running, own = sum(self._running.values()), self._running.get(principal, 0)
            if running >= RUNNING or own >= RUNNING // 2:
                raise QueueFull(
                    f"{running} explanations are being made, {own} of them for this client, which may have half of {RUNNING}"
                )
            self._running[principal] = own + 1

    def _leave(self, principal: Principal) -> None:
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
    return copies * served.model.input.size_bytes + drawn_bytes(spec.height, spec.width, DRAWN_PIXELS)
