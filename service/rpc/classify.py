"""`Classify` and `ClassifyStream` of `convoy.v1.Classifier`: their messages to queries of the classifier, and its answers back."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import MANY_ITEMS, Item, Query
from service.engine.reply import send_reply
from service.engine.served_version import ServedVersion
from service.engine.top_k import Results
from service.errors import InvalidRequest, QueueFull, Unavailable
from service.model.contract import EMBEDDING_NAME
from service.observability.trace_context import TraceContext
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.requests.principal import Principal
from service.rpc.call import Call, Method, Receiver, Stream, StreamCall, Unary, UnaryCall
from service.rpc.known_messages import KnownMessages
from service.rpc.message_cost import max_fields
from service.rpc.open_streams import OpenStreams
from service.rpc.request_stream import RequestStream, StreamRequest
from service.rpc.status import Metadata, status_of
from service.rpc.wire import ClassifyResponseWriter, classify_stream_response, with_embeddings

SERVICE = "convoy.v1.Classifier"
MAX_ID_CHARACTERS = 256


class Caller(Protocol):
    """What a query takes from the call that brings it."""

    @property
    def deadline(self) -> float:
        """In `time.monotonic` seconds, infinite for none."""

    @property
    def trace(self) -> TraceContext | None:
        """The client's, if it sent one."""

    @property
    def principal(self) -> Principal:
        """Who calls."""

    @property
    def metadata(self) -> Metadata:
        """The client's."""


class ClassifyServicer:
    """Answers `Classify` and `ClassifyStream` with a Classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """The methods of this servicer."""

        def fields() -> int:
            return max_fields(self._classifier.max_request_items())

        return [
            Unary(f"/{SERVICE}/Classify", pb.ClassifyRequest, self._classify, max_fields=fields, shortcut=_Shortcut()),
            Stream(
                f"/{SERVICE}/ClassifyStream", pb.ClassifyStreamRequest, self._open, "bidi_stream", True, fields, _StreamShortcut()
            ),
        ]

    def end_streams(self) -> None:
        """Ends every stream when the requests read from it are answered, for a server that drains."""
        self._streams.finish_all()

    def _classify(self, request: pb.ClassifyRequest | Query, call: UnaryCall) -> None:
        query = request if isinstance(request, Query) else query_of(request, self._classifier, call)
        # Of the request, which holds the images, only the id is kept.
        write = write_with_embeddings if query.hidden else write_response
        respond = partial(send_reply, self._classifier, call, write, query.id)
        call.on_cancelled(self._classifier.classify(query, respond))

    def _open(self, call: StreamCall) -> Receiver:
        def start(message: pb.ClassifyStreamRequest | Query, stream_request: StreamRequest) -> Callable[[], None]:
            if isinstance(message, Query):
                query = message
            else:
                request = message.request
                stream_request.id = request.id[:MAX_ID_CHARACTERS]
                if call.grant is not None:
                    call.grant.require_message(call.method.path, message)
                query = query_of(request, self._classifier, call)
            write = _write_embeddings_in_stream if query.hidden else _write_in_stream
            respond = partial(send_reply, self._classifier, stream_request, write, stream_request)
            return self._classifier.classify(query, respond)

        stream = RequestStream(call, start, _error_response)
        self._streams.add(stream)
        return stream


class _Facts(NamedTuple):
    """What a request of one raw item says but for its pixels."""

    model: str
    version: str
    top_k: int
    priority: int
    timeout_seconds: float


class _Shortcut:
    """Requests of one raw item that have no id."""

    def __init__(self) -> None:
        self._known: KnownMessages[pb.ClassifyRequest, _Facts] = KnownMessages(pb.ClassifyRequest, _pixels_of, _facts_of)
        self.learn = self._known.learn

    def read(self, payload: bytes, call: Call) -> Query | None:
        """See Shortcut."""
        return _known_query(self._known.find(payload), payload, call)


class _StreamShortcut:
    """The same in a stream."""

    def __init__(self) -> None:
        self._known: KnownMessages[pb.ClassifyStreamRequest, _Facts] = KnownMessages(
            pb.ClassifyStreamRequest, lambda message: _pixels_of(message.request), lambda message: _facts_of(message.request)
        )
        self.learn = self._known.learn

    def read(self, payload: bytes, call: Call) -> Query | None:
        """See Shortcut."""
        return _known_query(self._known.find(payload), payload, call)


def _known_query(known: tuple[_Facts, int, int] | None, payload: bytes, call: Call) -> Query | None:
    if known is None:
        return None
    (model, version, top_k, priority, timeout), start, stop = known
    return Query(
        model, (Item(payload[start:stop], False),), version, top_k, priority, timeout, call.deadline, None, None, call.trace, "",
        call.principal, False, call.metadata,
    )  # fmt: skip


def _pixels_of(request: pb.ClassifyRequest) -> bytes:
    return request.items[0].pixels if request.items else b""


def _facts_of(request: pb.ClassifyRequest) -> _Facts | None:
    if len(request.items) != 1 or request.id or request.embeddings:
        return None
    return _Facts(request.model, request.version, request.top_k, request.priority, request.timeout_seconds)


def query_of(request: pb.ClassifyRequest, classifier: Classifier, call: Caller) -> Query:
    """The query of a request. Raises RequestError for one that has no form."""
    request_id = request.id
    if len(request_id) > MAX_ID_CHARACTERS:
        raise InvalidRequest(f"the id has more than {MAX_ID_CHARACTERS} characters", "id")
    given = request.items
    if len(given) > MANY_ITEMS:
        classifier.check_count(request.model, request.version, len(given))
    items = []
    for item in given[:]:  # a list: protobuf's own iteration costs twice as much for one item
        pixels = item.pixels
        if pixels:
            items.append(Item(pixels, False))
            continue
        kind = item.WhichOneof("content")
        if kind == "pixels":
            items.append(Item(pixels, False))
        elif kind == "encoded":
            items.append(Item(item.encoded, True))
        else:
            raise InvalidRequest(f"item {len(items)} has neither encoded nor pixels", f"items[{len(items)}]")
    embeddings = request.embeddings
    # By position: twice as fast as by name.
    return Query(
        request.model, items, request.version, request.top_k, request.priority, request.timeout_seconds, call.deadline,
        None, _require_embeddings if embeddings else None, call.trace, request_id, call.principal, embeddings,
        call.metadata,
    )  # fmt: skip


def _require_embeddings(served: ServedVersion) -> None:
    if EMBEDDING_NAME not in served.model.hidden:
        raise InvalidRequest(
            f"model {served.name!r} version {served.version} gives no embeddings: export or import it with --embeddings",
            "embeddings",
        )


def write_response(answer: Answer, best: Results, request_id: str) -> bytes:
    """The serialised `ClassifyResponse` of an answer. Raises RequestError if it is not finite."""
    answer.check_no_nan(best)
    served = answer.served
    writer: ClassifyResponseWriter | None = served.cache.get(ClassifyResponseWriter)
    if writer is None:
        model = served.model
        writer = ClassifyResponseWriter(served.name, str(served.version), model.labels, model.heads, model.gives_probabilities)
        served.cache[ClassifyResponseWriter] = writer
    others = answer.best_of_other_heads() if writer.has_other_heads else ()
    return writer.write(request_id, answer.phases, best, others)


def write_with_embeddings(answer: Answer, best: Results, request_id: str) -> bytes:
    """The same with the embedding of each item."""
    rows = answer.hidden[EMBEDDING_NAME]
    if not np.isfinite(rows).all():
        raise answer.not_finite(f"model {answer.served.name!r} gave an embedding that is not finite for this request")
    return with_embeddings(write_response(answer, best, request_id), rows)


def _write_in_stream(answer: Answer, best: Results, request: StreamRequest) -> bytes:
    return classify_stream_response(request.id, request.index, write_response(answer, best, request.id))


def _write_embeddings_in_stream(answer: Answer, best: Results, request: StreamRequest) -> bytes:
    return classify_stream_response(request.id, request.index, write_with_embeddings(answer, best, request.id))


def _error_response(request_id: str, index: int, error: BaseException) -> bytes:
    """A `ClassifyStreamResponse` with the status that `Classify` would have failed with."""
    status = status_of(error)
    details = pb.Error(code=status.number, message=status.message)
    if isinstance(error, InvalidRequest):
        details.field = error.field
    elif isinstance(error, QueueFull | Unavailable):
        details.retry_after_seconds = error.retry_after_seconds
    return pb.ClassifyStreamResponse(id=request_id, index=index, error=details).SerializeToString()
