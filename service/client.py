"""A small typed client of `convoy.v1.Classifier`.

with Client("127.0.0.1:8001") as client:
    answer = client.classify(["cat.jpg", "dog.png"], model="pets")
    print(answer.results[0][0].label)
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grpc
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from service.errors import ConvoyError, UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_TARGET = re.compile(r"(dns|unix|ipv4|ipv6|xds):\S+|(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
_LOOPBACK = re.compile(r"127\.|localhost:|\[::1\]")


@runtime_checkable
class Pixels(Protocol):
    """A numpy array, uint8[H,W,C], without importing numpy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C)."""

    @property
    def dtype(self) -> Any:
        """Must be uint8."""

    def tobytes(self) -> bytes:
        """The pixels row by row."""


Image = bytes | str | os.PathLike[str] | Pixels
"""An encoded image's bytes, the path of an image file, or decoded pixels uint8[H,W,C] of exactly the model's shape."""


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


class CallFailed(ConvoyError):
    """A call that the server did not answer. `code` is the gRPC status' name; `field` the request field at fault, if any."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.field = field


class Client:
    """A connection to one server. Safe to share between threads; close it, or use it in a `with` statement."""

    def __init__(
        self,
        server: str = "127.0.0.1:8001",
        *,
        timeout_seconds: float = 30.0,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        """Makes a client; it connects with its first call.

        Args:
            server: HOST:PORT.
            timeout_seconds: the deadline of each call.
            tls_ca: PEM file of the CA that the server's certificate must come from; turns TLS on.
            tls_cert: PEM file of the client's certificate, for mutual TLS.
            tls_key: PEM file of its private key.

        Raises:
            UserError: a PEM file cannot be read, or one is missing.
        """
        self.server = server
        self._timeout_seconds = timeout_seconds
        if not _TARGET.fullmatch(server):
            raise UserError(f"server {server!r}: give it as HOST:PORT, such as 127.0.0.1:8001 or [::1]:8001")
        options = [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # A proxy in the environment is for other machines; gRPC would send calls to this one through it too.
            ("grpc.enable_http_proxy", 0 if _LOOPBACK.match(server) else 1),
        ]
        if tls_ca is None and tls_cert is None and tls_key is None:
            self._channel = grpc.insecure_channel(server, options)
        elif tls_ca is None or (tls_cert is None) != (tls_key is None):
            raise UserError("TLS needs the server's CA, and a client certificate needs its key: --tls-ca, --tls-cert, --tls-key")
        else:
            key, certificate = (_read(path) if path is not None else None for path in (tls_key, tls_cert))
            credentials = grpc.ssl_channel_credentials(_read(tls_ca), key, certificate)
            self._channel = grpc.secure_channel(server, credentials, options)
        self._classify = self._channel.unary_unary(
            "/convoy.v1.Classifier/Classify",
            request_serializer=pb.ClassifyRequest.SerializeToString,
            response_deserializer=pb.ClassifyResponse.FromString,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._channel.close()

    def classify(
        self,
        images: Sequence[Image],
        model: str,
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
    ) -> Classification:
        """Classifies images with one model, in one request.

        Args:
            images: at least one; kinds may be mixed.
            model: the model's name.
            version: a version number; empty for the one served by default.
            top_k: how many labels an image gets; 0 means 5.
            priority: 1 is served first; 0 means the model's default level.
            timeout_seconds: how long the server may take; 0 leaves it at the client's own deadline.

        Raises:
            UserError: a file cannot be read, or an array is not uint8.
            CallFailed: the server refused or failed, or cannot be reached.
        """
        if isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Sequence):
            raise UserError("images must be a list, even of one image")
        items = [_item(image) for image in images]
        try:
            request = pb.ClassifyRequest(
                model=model, version=version, items=items, top_k=top_k, priority=priority, timeout_seconds=timeout_seconds
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"a field of the request has a value that it cannot have: {error}") from None
        try:
            response: pb.ClassifyResponse = self._classify(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise _call_failed(error) from None
        phases = response.phases
        return Classification(
            model=response.model,
            version=response.version,
            results=[
                [Prediction(found.label, found.index, found.probability) for found in result.predictions]
                for result in response.results
            ],
            phases={field.name: value for field, value in phases.ListFields()},
        )


def _item(image: Image) -> pb.Item:
    if isinstance(image, bytes):
        return pb.Item(encoded=image)
    if isinstance(image, str | os.PathLike):
        return pb.Item(encoded=_read(image))
    if not isinstance(image, Pixels):
        raise UserError(f"an image is bytes, a path or a uint8 array, not {type(image).__name__}")
    if str(image.dtype) != "uint8":
        raise UserError(f"pixels must be uint8, not {image.dtype}: send the picture as decoded, not normalised")
    return pb.Item(pixels=image.tobytes())


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: {error.strerror}") from None


def _call_failed(error: grpc.RpcError) -> CallFailed:
    if not isinstance(error, grpc.Call):
        return CallFailed("UNKNOWN", str(error))
    field = ""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        bad_request = BadRequest()
        if detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
    return CallFailed(error.code().name, error.details() or "", field)
