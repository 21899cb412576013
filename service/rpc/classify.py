"""`Classify` and `ClassifyStream` of `convoy.v1.Classifier`: protobuf messages to the domain and back."""

import struct
import time
from collections.abc import Callable, Iterable, Sequence

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import MANY_ITEMS, Item, Query
from service.engine.repository import ServedModel
from service.errors import InvalidRequest, QueueFull, RequestError, Unavailable
from service.observability.trace_context import TraceContext
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.phases import Phases
from service.rpc.call import Method, OpenStreams, Receiver, Stream, StreamCall, Unary, UnaryCall
from service.rpc.request_stream import Request, RequestStream
from service.rpc.status import status_of

SERVICE = "convoy.v1.Classifier"
MAX_ID_CHARACTERS = 256


class ClassifyServicer:
    """Answers `Classify` and `ClassifyStream` with a Classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """What this servicer offers."""
        return [
            Unary(f"/{SERVICE}/Classify", pb.ClassifyRequest, self._classify),
            Stream(f"/{SERVICE}/ClassifyStream", pb.ClassifyStreamRequest, self._open, "bidi_stream", lenient=True),
        ]

    def end_streams(self) -> None:
        """Ends every stream once what was read of it is answered, for a server that drains."""
        self._streams.finish_all()

    def _classify(self, request: pb.ClassifyRequest, call: UnaryCall) -> None:
        query = _query(request, self._classifier, call.deadline, call.trace)
        request_id = request.id  # and no more of the request, which holds the pictures

        def respond(outcome: Answer | RequestError) -> None:
            if isinstance(outcome, RequestError):
                call.fail(outcome)
                return
            start = time.monotonic()
            try:
                best = outcome.predictions()
                payload = _writer(outcome.served).write(request_id, outcome.phases, best)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller must not wait for ever
                self._classifier.record_encoding_failure(outcome, error)
                call.fail(error)
                return
            if call.reply(payload):
                outcome.delivered(best, time.monotonic() - start)

        call.on_cancelled(self._classifier.classify(query, respond))

    def _open(self, call: StreamCall) -> Receiver:
        def begin(message: pb.ClassifyStreamRequest, place: Request) -> Callable[[], None]:
            request = message.request
            query = _query(request, self._classifier, call.deadline, call.trace)
            request_id = request.id

            def respond(outcome: Answer | RequestError) -> None:
                if isinstance(outcome, RequestError):
                    place.fail(outcome, _refusal(request_id, place.index, outcome))
                    return
                start = time.monotonic()
                try:
                    best = outcome.predictions()
                    response = _writer(outcome.served).write(request_id, outcome.phases, best)
                    payload = b"".join((_head(request_id, place.index), _RESPONSE, varint(len(response)), response))
                except Exception as error:  # noqa: BLE001 - as in _classify
                    self._classifier.record_encoding_failure(outcome, error)
                    place.fail(error, _refusal(request_id, place.index, error))
                    return
                if place.answer(payload):
                    outcome.delivered(best, time.monotonic() - start)

            return self._classifier.classify(query, respond)

        stream = RequestStream(call, begin, _refused)
        self._streams.add(stream)
        return stream


def _query(request: pb.ClassifyRequest, classifier: Classifier, deadline: float, trace: TraceContext | None) -> Query:
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
    # By position: twice as fast as by name.
    return Query(
        request.model, items, request.version, request.top_k, request.priority, request.timeout_seconds, deadline,
        None, None, trace, request_id,
    )  # fmt: skip


def _writer(served: ServedModel) -> "ResponseWriter":
    writer: ResponseWriter | None = served.kept.get(ResponseWriter)
    if writer is None:
        writer = served.kept[ResponseWriter] = ResponseWriter(served.name, str(served.version), served.model.labels)
    return writer


_RESPONSE = b"\x1a"  # ClassifyStreamResponse.response, a message


def _head(request_id: str, index: int) -> bytes:
    """What a ClassifyStreamResponse begins with: its id and index."""
    head = b"\x10" + varint(index) if index else b""
    return b"".join((b"\x0a", varint(len(text)), text, head)) if (text := request_id.encode()) else head


def _refused(message: pb.ClassifyStreamRequest | None, index: int, error: Exception) -> bytes:
    return _refusal("" if message is None else message.request.id[:MAX_ID_CHARACTERS], index, error)


def _refusal(request_id: str, index: int, error: BaseException) -> bytes:
    """A ClassifyStreamResponse that says what `Classify` would have failed with."""
    status = status_of(error)
    refusal = pb.Error(code=status.number, message=status.message)
    if isinstance(error, InvalidRequest):
        refusal.field = error.field
    elif isinstance(error, QueueFull | Unavailable):
        refusal.retry_after_seconds = error.retry_after_seconds
    return pb.ClassifyStreamResponse(id=request_id, index=index, error=refusal).SerializeToString()


class ResponseWriter:
    """Writes the serialised `ClassifyResponse`s of one model.

    A serialised message is its fields one after the other, so what is the same in every answer of a model is serialised once, and
    an answer is put together from bytes: a fraction of the time that building the messages takes. The numbers below are the field
    keys of classifier.proto; a test holds them against protobuf's own serialisation.
    """

    _PROBABILITY = b"\x1d"  # Prediction.probability, 32 bits
    _PREDICTION = b"\x0a"  # ItemResult.predictions, a message
    _ID = b"\x1a"  # ClassifyResponse.id
    _RESULT = b"\x22"  # ClassifyResponse.results, a message
    _PHASES = struct.Struct("<BBBdBd")  # ClassifyResponse.phases with queue_seconds and inference_seconds
    _PHASES_DECODED = struct.Struct("<BBBdBdBd")  # and decode_seconds
    _FLOAT = struct.Struct("<f")

    def __init__(self, model: str, version: str, labels: Sequence[str]) -> None:
        self._head = pb.ClassifyResponse(model=model, version=version).SerializeToString()
        self._labels = []
        for index, label in enumerate(labels):
            prediction = pb.Prediction(label=label, index=index).SerializeToString() + self._PROBABILITY
            self._labels.append(self._PREDICTION + varint(len(prediction) + self._FLOAT.size) + prediction)

    def write(self, request_id: str, phases: Phases, results: Iterable[Iterable[tuple[int, float]]]) -> bytes:
        """One response; `results` has for each item its (label index, probability), best first."""
        labels, pack = self._labels, self._FLOAT.pack
        parts = [self._head]
        if request_id:
            text = request_id.encode()
            parts += (self._ID, varint(len(text)), text)
        for predictions in results:
            result = b"".join([labels[index] + pack(probability) for index, probability in predictions])
            size = len(result)
            parts += (self._RESULT, _SHORT[size] if size < 128 else varint(size), result)
        decode, queue, inference = phases
        if decode is None:
            parts.append(self._PHASES.pack(0x2A, 18, 0x11, queue, 0x19, inference))
        else:
            parts.append(self._PHASES_DECODED.pack(0x2A, 27, 0x09, decode, 0x11, queue, 0x19, inference))
        return b"".join(parts)


_SHORT = [bytes([number]) for number in range(128)]


def varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    if number < 128:
        return _SHORT[number]
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)
