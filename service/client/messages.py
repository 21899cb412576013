"""The client's requests, answers and errors: plain values on one side, protobuf messages and gRPC statuses on the other."""

import re
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from service.client.images import MAX_MESSAGE_BYTES, Image, Images, items
from service.errors import ConvoyError, UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

_OVERHEAD_BYTES = 16
"""At most what protobuf adds to an item, and to a request in a stream's message."""

_TOO_LARGE = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")
_CONCERNS_ALL = {"NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"}
_ITEM = re.compile(r"items\[(\d+)\]")
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_Request = TypeVar("_Request", pb.ClassifyRequest, pb.ExplainRequest, pb.GetModelRequest)
_WithItems = TypeVar("_WithItems", pb.ClassifyRequest, pb.ExplainRequest)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label of one image; `probability` is 0 to 1.

    Where the model's numbers are not known to be probabilities, `probability` is 0 and `score` has the number.
    """

    label: str
    index: int
    probability: float
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request: for each image its predictions, best first, and the seconds each phase took.

    `heads` has the same as `results` from each further head of the model, by its name. `thresholds` has the probability from which
    on a label is taken as true, by the name of the head, "" for the first; of heads whose labels are true or not each by itself.
    `embeddings` has float32[D] for each image, if they were asked for; `numpy.stack` makes float32[N,D] of it.
    """

    model: str
    version: str
    results: list[list[Prediction]]
    phases: dict[str, float]
    heads: dict[str, list[list[Prediction]]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    embeddings: "list[array[float]]" = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The state of one version of a model; `reason` says why it does not serve.

    An `IDLE` version lies in the repository, and nothing asks for it. `share` is that of the requests that name no version, 0 to 1.
    """

    model: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE", "IDLE"]
    reason: str
    aliases: list[str] = field(default_factory=list)
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which pixels spoke for a label of an image.

    Attributes:
        prediction: the label that is explained.
        method: `class_activation` (what each place contributed to the label's score) or `occlusion` (how much its log-odds fell
            when a patch hid the pixel).
        heat: float32[height,width] of the model's input, above zero where pixels spoke for the label; `numpy.asarray(heat)`.
        overlay: a PNG of the picture as the model saw it under the heat map.
    """

    prediction: Prediction
    method: str
    heat: "memoryview[float]" = field(hash=False)
    overlay: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return _explanation, (self.prediction, self.method, self.heat.tobytes(), self.heat.shape, self.overlay)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of one item, without the batch dimension; `dtype` as numpy names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What one version of a served model takes and gives. `contract`, `limits` and `heads` have the fields of the API's messages.

    `contract` is None for a model that Convoy did not export. `preferred_batch_items` are the most efficient batch sizes.
    `embedding_size` is 0 for a model that gives no embeddings, `explanation` the method of `explain`, empty if there is none.
    `shares` are of the requests that name no version, by the version that answers them, 0 to 1.
    """

    model: str
    version: str
    versions: list[str]
    aliases: dict[str, str]
    input: Tensor
    outputs: list[Tensor]
    labels: list[str]
    contract: dict[str, Any] | None
    provider: str
    precision: str
    digest: str
    preferred_batch_items: list[int]
    limits: dict[str, float]
    signer: str = ""
    heads: list[dict[str, Any]] = field(default_factory=list)
    embedding_size: int = 0
    explanation: str = ""
    shares: dict[str, float] = field(default_factory=dict)


class CallFailed(ConvoyError):
    """A request that failed: the server refused it, or could not be reached.

    `code` is the name of the gRPC status, `field` the request field at fault, if any, and `retry_after_seconds` the server's advice
    on when to retry, 0 if it gave none.
    """

    def __init__(self, code: str, message: str, field: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(code, message, field, retry_after_seconds)  # so that it can be pickled
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class RequestTooLarge(CallFailed):
    """A request larger than the server's `--max-message-bytes`."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        message = f"the request has {size_bytes} bytes, and the server takes at most {limit_bytes} (--max-message-bytes)"
        super().__init__("RESOURCE_EXHAUSTED", message)
        self.args = size_bytes, limit_bytes  # so that it can be pickled
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class Outcome(NamedTuple):
    """What became of one input of `classify_many`: the `index`-th, from 0, which was `image`.

    `answer` is a Classification with one row in `results`, and in each of `heads`; or why there is none: CallFailed of the
    server, or UserError of an image that cannot be read or sent.
    """

    index: int  # type: ignore[assignment]  # hides the method of tuples
    image: Image
    answer: Classification | ConvoyError


def classify_request(images: Images, **fields: Any) -> pb.ClassifyRequest:
    """Builds a request. Raises UserError for an image or a field value that cannot be sent."""
    return _with_items(filled(pb.ClassifyRequest(), **fields), images)


def explain_request(images: Images, **fields: Any) -> pb.ExplainRequest:
    """As `classify_request`."""
    return _with_items(filled(pb.ExplainRequest(), **fields), images)


def _with_items(request: _WithItems, images: Images) -> _WithItems:
    """Adds the images to a request and returns it. Raises UserError for an image that cannot be sent."""
    # Added up here: ByteSize() of the whole would make protobuf serialise the images once more.
    size_bytes = request.ByteSize() + 2 * _OVERHEAD_BYTES
    for item in items(images):
        size_bytes += sum(map(len, item.values())) + _OVERHEAD_BYTES
        if size_bytes > MAX_MESSAGE_BYTES:  # gRPC's asyncio client would send an empty message instead
            raise UserError(f"the request is too large: a request holds at most {MAX_MESSAGE_BYTES} bytes")
        request.items.add(**item)
    return request


def filled(request: _Request, **fields: Any) -> _Request:
    """Sets these fields of a request and returns it. Raises UserError for a value of the wrong type or out of range."""
    for name, value in fields.items():
        try:
            setattr(request, name, value)
        except (TypeError, ValueError):
            raise UserError(f"invalid value for {name}: {value!r}") from None
    return request


def classification(response: pb.ClassifyResponse) -> Classification:
    """The answer in a response."""
    answer = Classification(
        model=response.model,
        version=response.version,
        results=[_predictions(result) for result in response.results],
        phases=_fields(response.phases),
    )
    if response.HasField("threshold"):
        answer.thresholds[""] = response.threshold
    for result in response.results:
        if result.embedding:
            answer.embeddings.append(array("f", result.embedding))
        for head in result.heads:
            answer.heads.setdefault(head.name, []).append(_predictions(head))
            if head.HasField("threshold"):
                answer.thresholds[head.name] = head.threshold
    return answer


def rows(response: pb.ClassifyResponse) -> list[Classification]:
    """The answer in a response for each of its images, as if it had been alone in the request."""
    phases = _fields(response.phases)
    thresholds = {"": response.threshold} if response.HasField("threshold") else {}
    return [
        Classification(
            model=response.model,
            version=response.version,
            results=[_predictions(result)],
            phases=phases.copy(),
            heads={head.name: [_predictions(head)] for head in result.heads},
            thresholds=thresholds | {head.name: head.threshold for head in result.heads if head.HasField("threshold")},
            embeddings=[array("f", result.embedding)] if result.embedding else [],
        )
        for result in response.results
    ]


def explanations(response: pb.ExplainResponse) -> list[Explanation]:
    """The explanations in a response."""
    return [
        _explanation(_prediction(each.prediction), _method(each.method), each.heat, (each.height, each.width), each.overlay)
        for each in response.explanations
    ]


def _explanation(prediction: Prediction, method: str, heat: bytes, shape: tuple[int, int], overlay: bytes) -> Explanation:
    """Also of what `Explanation.__reduce__` says: a memoryview cannot be pickled."""
    return Explanation(prediction, method, memoryview(heat).cast("f", shape), overlay)


def _method(method: pb.Explanation.Method) -> str:
    return pb.Explanation.Method.Name(method).removeprefix("METHOD_").lower() if method else ""


def _predictions(result: pb.ItemResult | pb.HeadResult) -> list[Prediction]:
    return [_prediction(found) for found in result.predictions]


def _prediction(found: pb.Prediction) -> Prediction:
    return Prediction(found.label, found.index, found.probability, found.score if found.HasField("score") else None)


def outcome(response: pb.ClassifyStreamResponse) -> Classification | CallFailed:
    """The answer to one request of a stream, or the error it was refused with."""
    if response.HasField("response"):
        return classification(response.response)
    return refusal(response.error)


def refusal(error: pb.Error) -> CallFailed:
    """Why a request of a stream was refused."""
    return CallFailed(_CODES.get(error.code, "UNKNOWN"), error.message, error.field, error.retry_after_seconds)


def model_info(response: pb.GetModelResponse) -> ModelInfo:
    """The description in a response."""
    return ModelInfo(
        model=response.model,
        version=response.version,
        versions=list(response.versions),
        aliases=dict(response.aliases),
        input=_tensor(response.input),
        outputs=[_tensor(output) for output in response.outputs],
        labels=list(response.labels),
        contract=_fields(response.contract) if response.HasField("contract") else None,
        provider=response.provider,
        precision=response.precision,
        digest=response.digest,
        preferred_batch_items=list(response.preferred_batch_items),
        limits=_fields(response.limits),
        signer=response.signer,
        heads=[_fields(head) for head in response.heads],
        embedding_size=response.embedding_size,
        explanation=_method(response.explanation),
        shares=dict(response.shares),
    )


def model_statuses(response: pb.ListModelsResponse) -> list[ModelStatus]:
    """The list in a response."""
    return [
        ModelStatus(
            each.model,
            each.version,
            pb.ModelStatus.State.Name(each.state).removeprefix("STATE_"),  # type: ignore[arg-type]
            each.reason,
            list(each.aliases),
            each.share,
        )
        for each in response.models
    ]


def _tensor(spec: pb.TensorSpec) -> Tensor:
    return Tensor(spec.name, spec.dtype, tuple(spec.shape))


def _fields(message: Message) -> dict[str, Any]:
    """A message as a dict, without the optional fields that are not set."""
    found: dict[str, Any] = {}
    for each in message.DESCRIPTOR.fields:
        value = getattr(message, each.name)
        if each.has_presence and not message.HasField(each.name):
            continue
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            value = dict(value)
        elif isinstance(value, Message):
            value = _fields(value)
        elif not isinstance(value, str | int | float):
            value = list(value)
        found[each.name] = value
    return found


def call_failed(error: Any) -> CallFailed:
    """The CallFailed for an exception of grpcio's synchronous or asyncio client."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return CallFailed("UNKNOWN", str(error))
    code, message = error.code().name, error.details() or ""
    if code == "RESOURCE_EXHAUSTED" and (sizes := _TOO_LARGE.search(message)) is not None:
        return RequestTooLarge(int(sizes[1]), int(sizes[2]))
    if code == "UNAVAILABLE" and "backend unhealthy" in message:
        message = "no server is ready: those reached are loading, draining, or have no model"
    trailing = dict(error.trailing_metadata() or ())
    at_fault = ""
    for detail in Status.FromString(trailing.get("grpc-status-details-bin", b"")).details:
        bad_request = BadRequest()
        if detail.Unpack(bad_request) and bad_request.field_violations:
            at_fault = bad_request.field_violations[0].field
    return CallFailed(code, message, at_fault, int(trailing.get("grpc-retry-pushback-ms", 0)) / 1000)


def concerns_all(failed: CallFailed) -> bool:
    """Whether any other request to the model would be refused as this one was."""
    if failed.code in _CONCERNS_ALL:
        return True
    return failed.code == "INVALID_ARGUMENT" and failed.field not in ("", "items") and item_at_fault(failed) is None


def item_at_fault(failed: CallFailed) -> int | None:
    """The number of the item that a request was refused for. An error of the model alone names the field of an item, too."""
    number = _ITEM.match(failed.field)
    return int(number[1]) if number is not None and failed.message.startswith(f"item {number[1]}") else None


def of_one_item(failed: CallFailed) -> CallFailed:
    """The error of an item as if it had been alone in its request."""
    number = item_at_fault(failed)
    if not number:
        return failed
    message = failed.message.replace(f"item {number}", "item 0", 1)
    return CallFailed(failed.code, message, _ITEM.sub("items[0]", failed.field), failed.retry_after_seconds)
