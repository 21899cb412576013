"""Observes single requests: a line in the access log, spans in a trace. Records how a request fared, never what was in it."""

import logging
import random
import time
from typing import TYPE_CHECKING, Any

from service.engine.answer import Answer
from service.engine.query import Query
from service.engine.request import Respond
from service.errors import RequestError

if TYPE_CHECKING:
    from service.observability.tracing import RequestSpan, Tracing  # needs an extra

log = logging.getLogger("convoy.access")

MAX_CHARACTERS = 128


class RequestObserver:
    """Chooses the requests to observe. A server without access log and tracing has none, and pays nothing for it."""

    def __init__(self, access_log_sample: float, tracing: "Tracing | None") -> None:
        """Logs a share `access_log_sample` of the requests, 0 to 1, and traces those that `tracing` chooses."""
        self._access_log_sample = access_log_sample
        self._tracing = tracing

    def begin(self, query: Query) -> "Observation | None":
        """The observation of a new request; None if it is neither logged nor traced."""
        began = time.monotonic()
        span = None if self._tracing is None else self._tracing.begin(query.trace, _printable(query.id), began)
        logged = random.random() < self._access_log_sample  # noqa: S311 - no secret
        return Observation(query, began, span, logged) if logged or span is not None else None


class Observation:
    """One observed request. Holds none of its images.

    Attributes:
        trace: of the request's own span if it is traced, else the client's.
    """

    __slots__ = ("_began", "_id", "_items", "_logged", "_model", "_span", "_version", "trace")

    def __init__(self, query: Query, began: float, span: "RequestSpan | None", logged: bool) -> None:
        self.trace = query.trace if span is None else span.trace
        self._began = began
        self._id = query.id
        self._items = len(query.items if query.tensor is None else query.tensor)
        self._logged = logged
        self._model = query.model
        self._span = span
        self._version = query.version

    def observe(self, respond: Respond) -> Respond:
        """A callback that calls `respond` and then ends the observation."""

        def observed(outcome: Answer | RequestError) -> None:
            start = time.monotonic()
            try:
                respond(outcome)
            finally:
                self._end(outcome, start)

        return observed

    def refused(self, error: BaseException) -> None:
        """Ends the observation of a request that was refused."""
        self._end(error, time.monotonic())

    def _end(self, outcome: Answer | BaseException, start: float) -> None:
        """Records the outcome. The reply was encoded and sent from `start` until now."""
        now = time.monotonic()
        if self._span is not None and isinstance(outcome, Answer):
            served = outcome.served
            self._span.answered(served.name, served.version, self._items, outcome.phases, outcome.finished, (start, now))
        elif self._span is not None and isinstance(outcome, BaseException):
            self._span.failed(outcome, now)
        if self._logged:
            facts = {
                "request_id": _printable(self._id), "trace_id": self.trace.trace_id if self.trace is not None else "",
                "model": _printable(self._model), "items": self._items, "seconds": round(now - self._began, 6),
            }  # fmt: skip
            facts |= self._answered(outcome, now - start) if isinstance(outcome, Answer) else self._failed(outcome)
            log.info("request", extra={key: value for key, value in facts.items() if value != ""})

    def _answered(self, answer: Answer, encode_seconds: float) -> dict[str, Any]:
        phases = {key: round(value, 6) for key, value in answer.phases._asdict().items() if value is not None}
        return {"version": str(answer.served.version), "outcome": "ok", **phases, "encode_seconds": round(encode_seconds, 6)}

    def _failed(self, error: BaseException) -> dict[str, Any]:
        why = str(error) if isinstance(error, RequestError) else ""
        return {"version": _printable(self._version), "outcome": type(error).__name__, "why": why}


def _printable(text: str) -> str:
    """A client's text, cut and escaped to be safe in a log."""
    text = text[:MAX_CHARACTERS]
    return text if text.isprintable() else ascii(text)
