"""A classifier that tells of its single requests: a line in the access log, spans in a trace.

A server that is asked for neither has a plain `Classifier`, so that it pays nothing for this. What is told of a request is how
it fared, never what was in it.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import Query
from service.engine.repository import Repository
from service.engine.request import Respond
from service.errors import RequestError
from service.observability.metrics import Metrics
from service.observability.trace_context import TraceContext

if TYPE_CHECKING:
    from service.observability.tracing import RequestSpan, Tracing  # needs an extra

log = logging.getLogger("convoy.access")

MAX_CHARACTERS = 128


class ObservedClassifier(Classifier):
    """Answers as a Classifier does."""

    def __init__(
        self, repository: Repository, metrics: Metrics, cpus: int, access_log_sample: float, tracing: "Tracing | None"
    ) -> None:
        """Logs a share `access_log_sample` of the requests, 0 to 1; traces those that `tracing` chooses."""
        super().__init__(repository, metrics, cpus)
        self._access_log_sample = access_log_sample
        self._tracing = tracing

    def classify(self, query: Query, respond: Respond, *, on_transport: bool = True) -> Callable[[], None]:
        """See Classifier."""
        began = time.monotonic()
        span = None if self._tracing is None else self._tracing.begin(query.trace, _shown(query.id), began)
        logged = random.random() < self._access_log_sample  # noqa: S311 - no secret
        if span is not None:
            query = query._replace(trace=span.trace)
        elif not logged:
            return super().classify(query, respond, on_transport=on_transport)
        request = _Observed(query, began, span, logged)

        def observed(outcome: Answer | RequestError) -> None:
            start = time.monotonic()
            try:
                respond(outcome)
            finally:
                request.ended(outcome, start)

        try:
            return super().classify(query, observed, on_transport=on_transport)
        except BaseException as error:
            request.ended(error, time.monotonic())
            raise


class _Observed:
    """What is remembered of a request in hand: nothing that holds its pictures."""

    __slots__ = ("_began", "_id", "_items", "_logged", "_model", "_span", "_trace", "_version")

    def __init__(self, query: Query, began: float, span: "RequestSpan | None", logged: bool) -> None:
        self._began = began
        self._id = query.id
        self._items = len(query.items if query.tensor is None else query.tensor)
        self._logged = logged
        self._model = query.model
        self._span = span
        self._trace: TraceContext | None = query.trace
        self._version = query.version

    def ended(self, outcome: Answer | BaseException, start: float) -> None:
        """The outcome was made known, from `start` until now."""
        now = time.monotonic()
        if isinstance(outcome, Answer):
            served = outcome.served
            if self._span is not None:
                self._span.answered(served.name, served.version, self._items, outcome.phases, outcome.finished, (start, now))
            facts: dict[str, Any] = {"version": str(served.version), "outcome": "ok"}
            facts |= {key: round(value, 6) for key, value in outcome.phases._asdict().items() if value is not None}
            facts["encode_seconds"] = round(now - start, 6)
        else:
            if self._span is not None:
                self._span.failed(outcome, now)
            facts = {"version": _shown(self._version), "outcome": type(outcome).__name__}
            if isinstance(outcome, RequestError):
                facts["why"] = str(outcome)
        if self._logged:
            told: dict[str, Any] = {
                "request_id": _shown(self._id),
                "trace_id": self._trace.trace_id if self._trace is not None else "",
            }
            told |= {"model": _shown(self._model), "items": self._items, "seconds": round(now - self._began, 6)}
            log.info("request", extra={key: value for key, value in (told | facts).items() if value != ""})


def _shown(text: str) -> str:
    """What a client sent, fit to be logged and kept."""
    text = text[:MAX_CHARACTERS]
    return text if text.isprintable() else ascii(text)
