"""What goes through `client.py`: pictures of all kinds into requests, responses and errors into plain values."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from service.errors import ConvoyError, FileUnreadable, UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

MAX_MESSAGE_BYTES = 2**31 - 1
"""Protobuf's limit."""

_ROUND_BYTES = 16
"""What a message has round an item, and a stream's message round a request, at most."""

_PNG_MODES = {mode: mode for mode in ("1", "L", "LA", "I;16", "I;16B", "P", "RGB", "RGBA")} | {
    "La": "LA", "PA": "RGBA", "RGBa": "RGBA",
}  # fmt: skip
"""By a picture's mode, the one of PNG that holds all of it; RGB for any other."""

_Request = TypeVar("_Request", pb.ClassifyRequest, pb.GetModelRequest)

_TOO_LARGE = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")


@runtime_checkable
class Pixels(Protocol):
    """A numpy array, without importing numpy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C), or (H, W) of gray."""

    @property
    def dtype(self) -> Any:
        """Must be uint8."""

    def tobytes(self) -> bytes:
        """The pixels row by row."""


@runtime_checkable
class Picture(Protocol):
    """A PIL.Image.Image, without importing PIL."""

    @property
    def mode(self) -> str:
        """How it holds its pixels."""

    def getexif(self) -> Any:
        """Its EXIF data, which may say how it is to be turned."""

    def convert(self, mode: str) -> "Picture":
        """The same in another mode."""

    def save(self, fp: Any, format: str, **params: Any) -> None:  # noqa: A002 - PIL's own name
        """Writes it as a file."""


Image = bytes | str | os.PathLike[str] | Pixels | Picture
"""An encoded image's bytes, the path of an image file, a PIL image, or decoded pixels uint8[H,W,C] of exactly the model's shape."""

Images = Sequence[Image] | Pixels
"""Several images, or the pixels of several: uint8[N,H,W,C]."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label of one image; `probability` is 0 to 1."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request: for each image its predictions, best first, and the seconds each phase took."""

    model: str
    version: str
    results: list[list[Prediction]]
    phases: dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How one version of a model stands, and why if it does not serve."""

    model: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of one item, without the batch dimension; `dtype` as numpy names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What one version of a served model takes and gives. `contract` and `limits` have the fields of the API's messages.

    `contract` is None for a model that Convoy did not export. `preferred_batch_items` are batch sizes that pay.
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


class CallFailed(ConvoyError):
    """A request that the server did not answer.

    `code` is the gRPC status' name; `field` the request field at fault, if any; `retry_after_seconds` is 0 if the server did not
    say when to come back.
    """

    def __init__(self, code: str, message: str, field: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(code, message, field, retry_after_seconds)  # all that pickle makes it of again
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def no_server(server: str, error: CallFailed) -> UserError | None:
    """What to say if a call failed because nobody answered; None if somebody did."""
    if error.code != "UNAVAILABLE" or "connect" not in error.message.lower():
        return None
    cause = error.message.rpartition("last error: ")[2]
    if "Connection refused" in cause:
        return UserError(f"no server answers at {server}: start one with `convoy serve`, or name it with --server HOST:PORT")
    return UserError(f"no gRPC server answers at {server}, or not in this way (with TLS or without): {cause}")


def classify_request(images: Images, **fields: Any) -> pb.ClassifyRequest:
    """The request; raises UserError for an image or a field that cannot be sent."""
    request = filled(pb.ClassifyRequest(), **fields)
    # Added up: protobuf would have to serialise the images to say it, once more than is needed.
    size_bytes = request.ByteSize() + 2 * _ROUND_BYTES
    for image in _each(images):
        item = _item(image)
        size_bytes += sum(map(len, item.values())) + _ROUND_BYTES
        if size_bytes > MAX_MESSAGE_BYTES:  # gRPC's asyncio client would send an empty message in its place
            raise UserError(f"the images have more bytes than a request holds, which is at most {MAX_MESSAGE_BYTES}")
        request.items.add(**item)
    return request


def filled(request: _Request, **fields: Any) -> _Request:
    """The request, with these fields set; raises UserError for one that cannot have its value."""
    for name, value in fields.items():
        try:
            setattr(request, name, value)
        except (TypeError, ValueError):
            raise UserError(f"{name} {value!r}: a value that it cannot have") from None
    return request


def needs_reading(images: Images) -> bool:
    """Whether to make the request of them reads files or encodes pictures."""
    if isinstance(images, Pixels) or not isinstance(images, Sequence):
        return False
    return not all(isinstance(image, bytes | Pixels) for image in images)


def _each(images: Images) -> Iterable[Image]:
    if isinstance(images, Pixels):
        if len(images.shape) != 4:
            raise UserError(f"an array of images is uint8[N,H,W,C], not of shape {images.shape}; put one image in a list")
        return _rows(images)
    if isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Sequence):
        raise UserError("images must be a list, even of one image")
    return images


def _rows(images: Any) -> Iterator[Pixels]:
    yield from images


def _item(image: Image) -> dict[str, bytes]:
    """An Item's one field."""
    if isinstance(image, bytes):
        return {"encoded": image}
    if isinstance(image, str | os.PathLike):
        return {"encoded": read_file(image)}
    if isinstance(image, Pixels):
        if str(image.dtype) != "uint8":
            raise UserError(f"pixels must be uint8, not {image.dtype}: send the picture as decoded, not normalised")
        if len(image.shape) not in (2, 3):
            raise UserError(f"pixels of one image are uint8[H,W,C], not of shape {image.shape}")
        return {"pixels": image.tobytes()}
    if isinstance(image, Picture):
        return {"encoded": _png(image)}
    raise UserError(f"an image is bytes, a path, a PIL image or a uint8 array, not {type(image).__name__}")


def _png(picture: Picture) -> bytes:
    """Without loss, and quickly; how it is to be turned goes along, as it would in a file."""
    if picture.mode.startswith(("I", "F")) and picture.mode not in _PNG_MODES:
        raise UserError(f"PIL images of mode {picture.mode} are not accepted: the range of their pixels is not known")
    buffer = io.BytesIO()
    try:
        exif = picture.getexif()
        mode = _PNG_MODES.get(picture.mode, "RGB")
        if picture.mode != mode:
            picture = picture.convert(mode)
        picture.save(buffer, "PNG", compress_level=1, exif=exif)
    except Exception as error:  # noqa: BLE001 - Pillow raises whatever a broken file makes it raise, here where it reads it
        raise UserError(f"a PIL image cannot be read, or made a PNG of: {error}") from None
    return buffer.getvalue()


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. Raises FileUnreadable, also for one that is too large for any request."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_MESSAGE_BYTES:
            raise FileUnreadable(f"{os.fspath(path)}: {size} bytes; a request holds at most {MAX_MESSAGE_BYTES}")
        return Path(path).read_bytes()
    except OSError as error:
        raise FileUnreadable(f"{os.fspath(path)}: {error.strerror}") from None
    except ValueError as error:  # of a name with a zero byte
        raise FileUnreadable(f"{os.fspath(path)!r}: {error}") from None


def classification(response: pb.ClassifyResponse) -> Classification:
    """The answer in a response."""
    return Classification(
        model=response.model,
        version=response.version,
        results=[
            [Prediction(found.label, found.index, found.probability) for found in result.predictions] for result in response.results
        ],
        phases=_fields(response.phases),
    )


def outcome(response: pb.ClassifyStreamResponse) -> Classification | CallFailed:
    """What became of one request of a stream."""
    if response.HasField("response"):
        return classification(response.response)
    error = response.error
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
    )


def model_statuses(response: pb.ListModelsResponse) -> list[ModelStatus]:
    """The list in a response."""
    return [
        ModelStatus(each.model, each.version, pb.ModelStatus.State.Name(each.state).removeprefix("STATE_"), each.reason)  # type: ignore[arg-type]
        for each in response.models
    ]


def _tensor(spec: pb.TensorSpec) -> Tensor:
    return Tensor(spec.name, spec.dtype, tuple(spec.shape))


def _fields(message: Message) -> dict[str, Any]:
    """The fields of a message that are there, and of those without presence all."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = dict(value)
        elif not isinstance(value, str | int | float):
            value = list(value)
        found[field.name] = value
    return found


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def too_large_bytes(error: Any) -> int | None:
    """The size of the request if it is more than the server takes; None if the RPC failed for another reason."""
    found = _too_large(error)
    return int(found[1]) if found is not None else None


def _too_large(error: Any) -> re.Match[str] | None:
    return _TOO_LARGE.search(error.details() or "") if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else None


def call_failed(error: Any) -> CallFailed:
    """What an RPC that failed says, of grpcio's synchronous or asyncio client."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return CallFailed("UNKNOWN", str(error))
    code, message, field = error.code().name, error.details() or "", ""
    too_large = _too_large(error)
    if too_large is not None:
        message = f"the request has {too_large[1]} bytes, and the server takes at most {too_large[2]} (its --max-message-bytes)"
    elif code == "UNAVAILABLE" and "backend unhealthy" in message:
        message = "no server serves: those that answer say that they are loading, draining, or have no model"
    trailing = dict(error.trailing_metadata() or ())
    for detail in Status.FromString(trailing.get("grpc-status-details-bin", b"")).details:
        bad_request = BadRequest()
        if detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
    return CallFailed(code, message, field, int(trailing.get("grpc-retry-pushback-ms", 0)) / 1000)
