"""The reply to a request, the same for every API: written, sent, and recorded in the metrics."""

import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import Query
from service.engine.top_k import Results
from service.errors import RequestError

Payload = TypeVar("Payload")
Payload_contra = TypeVar("Payload_contra", contravariant=True)

Write = Callable[[Answer, Results, Any], Payload]
"""Makes the reply of an answer, its best labels and the context of the request. What it raises fails the request."""


class Responder(Protocol[Payload_contra]):
    """Sends the reply to one request."""

    def reply(self, payload: Payload_contra, /) -> bool:
        """Sends the reply; False if the request has ended, as when its client has cancelled it."""

    def fail(self, error: BaseException, /) -> object:
        """Ends the request with the status of an error."""


def send_reply(
    classifier: Classifier, responder: Responder[Payload], write: Write[Payload], context: Any, outcome: Answer | RequestError
) -> None:
    """Replies with an answer or an error.

    The reply is what `write` makes of the answer and `context`. If `write` raises, the request counts as failed and ends with the
    error. If the reply is sent, the request counts as answered.
    """
    if isinstance(outcome, RequestError):
        responder.fail(outcome)
        return
    start = time.monotonic()
    try:
        best = outcome.best()
        payload = write(outcome, best, context)
    except Exception as error:  # noqa: BLE001 - any error fails this request alone: its client must not wait for ever
        classifier.record_encoding_failure(outcome, error)
        responder.fail(error)
        return
    if responder.reply(payload):
        outcome.delivered(best, time.monotonic() - start)


def reply_to(classifier: Classifier, query: Query, write: Write[Payload], context: Any) -> Payload:
    """The reply to a query, for a thread that may block, never the transport's. Raises the error of a request that fails."""
    caller: _Caller[Payload] = _Caller()
    send_reply(classifier, caller, write, context, classifier.classify_blocking(query))
    return caller.payload


class _Caller(Generic[Payload]):
    """Takes a reply for the thread that waits for it."""

    payload: Payload

    def reply(self, payload: Payload) -> bool:
        self.payload = payload
        return True

    def fail(self, error: BaseException) -> None:
        raise error
