"""`convoy.v1.Classifier`: protobuf messages to the domain and back."""

import time

from service.classifier import Answer, Classifier, EncodedImage, Item, Query, RawPixels
from service.errors import InvalidRequest, RequestError
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.call import Method, Unary, UnaryCall

SERVICE = "convoy.v1.Classifier"
MAX_ID_BYTES = 256


class ClassifyServicer:
    """Answers `Classify` with a Classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def methods(self) -> list[Method]:
        """What this servicer offers."""
        return [Unary(f"/{SERVICE}/Classify", pb.ClassifyRequest, self._classify)]

    def _classify(self, request: pb.ClassifyRequest, call: UnaryCall) -> None:
        query = _query(request, call.deadline)

        def respond(outcome: Answer | RequestError) -> None:
            if isinstance(outcome, RequestError):
                call.fail(outcome)
                return
            start = time.monotonic()
            if call.reply(_response(request.id, outcome).SerializeToString()):
                outcome.delivered(time.monotonic() - start)

        call.on_gone(self._classifier.classify(query, respond))


def _query(request: pb.ClassifyRequest, deadline: float) -> Query:
    if len(request.id.encode()) > MAX_ID_BYTES:
        raise InvalidRequest(f"the id has more than {MAX_ID_BYTES} bytes", "id")
    return Query(
        model=request.model,
        version=request.version,
        items=[_item(index, item) for index, item in enumerate(request.items)],
        top_k=request.top_k,
        priority=request.priority,
        timeout_seconds=request.timeout_seconds,
        deadline=deadline,
    )


def _item(index: int, item: pb.Item) -> Item:
    kind = item.WhichOneof("content")
    if kind == "encoded":
        return EncodedImage(item.encoded)
    if kind == "pixels":
        return RawPixels(item.pixels)
    raise InvalidRequest(f"item {index} has neither encoded nor pixels", f"items[{index}]")


def _response(request_id: str, answer: Answer) -> pb.ClassifyResponse:
    labels = answer.served.contract.labels
    phases = answer.phases
    return pb.ClassifyResponse(
        model=answer.served.name,
        version=str(answer.served.version),
        id=request_id,
        results=[
            pb.ItemResult(
                predictions=[
                    pb.Prediction(label=labels[index], index=index, probability=probability) for index, probability in best
                ]
            )
            for best in answer.best()
        ],
        phases=pb.Phases(
            decode_seconds=phases.decode_seconds,
            queue_seconds=phases.queue_seconds,
            inference_seconds=phases.inference_seconds,
        ),
    )
