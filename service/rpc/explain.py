"""`Explain` of `convoy.v1.Classifier`."""

import time
from collections.abc import Sequence
from functools import partial

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.explain import Explainer
from service.engine.explanation import Explanation
from service.engine.query import Item, Query
from service.engine.reply import Responder
from service.errors import InvalidRequest, RequestError
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.call import Method, Unary, UnaryCall
from service.rpc.classify import MAX_ID_CHARACTERS, SERVICE, Caller

METHODS = {
    "class_activation": pb.Explanation.METHOD_CLASS_ACTIVATION, "occlusion": pb.Explanation.METHOD_OCCLUSION,
    None: pb.Explanation.METHOD_UNSPECIFIED,
}  # fmt: skip


class ExplainServicer:
    """Answers `Explain` with an Explainer."""

    def __init__(self, classifier: Classifier, explainer: Explainer) -> None:
        self._classifier = classifier
        self._explainer = explainer

    def methods(self) -> list[Method]:
        """The methods of this servicer."""
        return [Unary(f"/{SERVICE}/Explain", pb.ExplainRequest, self._explain)]

    def _explain(self, request: pb.ExplainRequest, call: UnaryCall) -> None:
        respond = partial(send_explanations, self._classifier, call, request.id)
        call.on_cancelled(self._explainer.explain(query_of(request, call), request.label, respond))


def query_of(request: pb.ExplainRequest, call: Caller) -> Query:
    """The query of a request. Raises RequestError for one that has no form."""
    if len(request.id) > MAX_ID_CHARACTERS:
        raise InvalidRequest(f"the id has more than {MAX_ID_CHARACTERS} characters", "id")
    return Query(
        request.model, [_item(item, at) for at, item in enumerate(request.items)], request.version,
        timeout_seconds=request.timeout_seconds, deadline=call.deadline, trace=call.trace, id=request.id,
        principal=call.principal, metadata=call.metadata,
    )  # fmt: skip


def send_explanations(
    classifier: Classifier,
    responder: Responder[bytes],
    request_id: str,
    outcome: Answer | RequestError,
    found: Sequence[Explanation],
) -> None:
    """Sends what came of a request: an `ExplainResponse`, or its error."""
    if isinstance(outcome, RequestError):
        responder.fail(outcome)
        return
    start = time.monotonic()
    try:
        payload = _response(outcome, found, request_id).SerializeToString()
    except Exception as error:  # noqa: BLE001 - as in send_reply
        classifier.record_encoding_failure(outcome, error)
        responder.fail(error)
        return
    if responder.reply(payload):
        outcome.delivered(outcome.best(), time.monotonic() - start)


def _item(item: pb.Item, at: int) -> Item:
    kind = item.WhichOneof("content")
    if kind is None:
        raise InvalidRequest(f"item {at} has neither encoded nor pixels", f"items[{at}]")
    return Item(item.encoded, True) if kind == "encoded" else Item(item.pixels, False)


def _response(answer: Answer, found: Sequence[Explanation], request_id: str) -> pb.ExplainResponse:
    served = answer.served
    response = pb.ExplainResponse(model=served.name, version=str(served.version), id=request_id)
    for each in found:
        label = served.model.labels[each.label_index]
        response.explanations.add(
            prediction=pb.Prediction(label=label, index=each.label_index, probability=each.probability),
            method=METHODS[each.method],
            height=each.heat.shape[0],
            width=each.heat.shape[1],
            heat=each.heat.astype("<f4").tobytes(),
            overlay=each.overlay,
        )
    return response
