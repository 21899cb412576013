"""The Open Inference Protocol over HTTP: `/v2/...`, JSON and the binary extension. Thin: the same queries, inventory and control.

Runs on the HTTP port's threads, which may wait.
"""

import base64
import binascii
import gzip
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from service.control import NO_CUDA, NO_LOG_SETTINGS, NO_TRACE_SETTINGS, Control, check_load, check_repository, check_unload
from service.engine.classifier import Classifier
from service.errors import (
    Cancelled,
    ConvoyError,
    DeadlineExceeded,
    InvalidRequest,
    LoadError,
    ModelFailed,
    NotFound,
    QueueFull,
    RequestError,
    Unavailable,
    Unimplemented,
)
from service.http.server import INFER, INFER_VERSION, find
from service.observability.trace_context import HEADER, trace_context
from service.open_inference.metadata import ServerMetadata
from service.open_inference.shared_memory import SharedMemory
from service.open_inference.tensors import (
    BYTES,
    Elements,
    Input,
    Output,
    Wanted,
    check_outputs,
    elements_of_raw,
    elements_of_values,
    in_request,
    input_place,
    outputs,
    put,
    query,
    raw,
    read,
    wanted_output,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

JSON_LENGTH = "Inference-Header-Content-Length"
CONTROL_BYTES = 64 * 1024
"""Of a body that asks for anything but inference."""

_PIECE_BYTES = 4096
COMPRESS_BYTES = 1024
"""Shorter answers are not worth compressing."""

_MODEL = "/v2/models/<model>"
_VERSION = f"{_MODEL}/versions/<version>"
_REGION = "/v2/systemsharedmemory/region/<region>"
_STATUSES: dict[type[ConvoyError], int] = {
    InvalidRequest: 400, NotFound: 404, QueueFull: 429, DeadlineExceeded: 504, Cancelled: 499, Unavailable: 503, Unimplemented: 501,
    ModelFailed: 500, LoadError: 400,
}  # fmt: skip


class Rest:
    """The WSGI application of `/v2`."""

    def __init__(
        self, classifier: Classifier, inventory: ServerMetadata, control: Control, memory: SharedMemory, max_body_bytes: int
    ) -> None:
        """`max_body_bytes` bounds a request's body when it is unpacked."""
        self._classifier = classifier
        self._inventory = inventory
        self._control = control
        self._memory = memory
        self._max_body_bytes = max_body_bytes
        get: dict[str, Callable[..., Response]] = {
            "/v2": lambda _: _json(inventory.server()),
            "/v2/health/live": lambda _: _json({"live": True}),
            "/v2/health/ready": lambda _: self._ready(inventory.ready()),
            "/v2/models/stats": lambda _: _json(inventory.statistics("", "")),
            "/v2/systemsharedmemory/status": self._memory_status,
            f"{_REGION}/status": self._memory_status,
        }
        for path in (_MODEL, _VERSION):
            get |= {
                path: lambda _, model, version="": _json(inventory.metadata(model, version)),
                f"{path}/ready": self._model_ready,
                f"{path}/config": lambda _, model, version="": _json(inventory.config(model, version)),
                f"{path}/stats": lambda _, model, version="": _json(inventory.statistics(model, version)),
            }
        post: dict[str, Callable[..., Response]] = {
            INFER: self._infer,
            INFER_VERSION: self._infer,
            "/v2/repository/index": self._index,
            "/v2/repository/models/<model>/load": self._load,
            "/v2/repository/models/<model>/unload": self._unload,
            f"{_REGION}/register": self._register,
            f"{_REGION}/unregister": self._unregister,
            "/v2/systemsharedmemory/unregister": self._unregister,
        }
        missing = {
            "/v2/cudasharedmemory/<path:rest>": NO_CUDA,
            "/v2/trace/setting": NO_TRACE_SETTINGS,
            f"{_MODEL}/trace/setting": NO_TRACE_SETTINGS,
            f"{_VERSION}/trace/setting": NO_TRACE_SETTINGS,
            "/v2/logging": NO_LOG_SETTINGS,
        }
        self._routes = Map(
            [
                *(Rule(path, methods=["GET"], endpoint=answer) for path, answer in get.items()),
                *(Rule(path, methods=["POST"], endpoint=answer) for path, answer in post.items()),
                *(Rule(path, endpoint=_not_offered(reason)) for path, reason in missing.items()),
            ],
            strict_slashes=False,
            merge_slashes=False,
        )

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request; see PEP 3333."""
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        try:
            answer, arguments = find(self._routes, environ)
            request = Request(environ, populate_request=False)  # else it and `environ` hold each other
            response: Response = answer(request, **arguments)
        except ConvoyError as error:
            response = _error(error)
        except HTTPException as error:
            response = _json({"error": f"{asked}: {(error.name or 'not accepted').lower()}"}, error.code or 500)
            response.headers.extend(header for header in error.get_headers(environ) if header[0] == "Allow")
        except Exception:
            log.exception("%s failed", asked)
            response = _json({"error": "the server failed on this request; its log says why"}, 500)
        return response(environ, start_response)

    def _ready(self, ready: bool) -> Response:
        return _json({"ready": ready}, 200 if ready else 503)

    def _model_ready(self, _: Request, model: str, version: str = "") -> Response:
        self._inventory.metadata(model, version)  # raises for one that nobody knows
        return self._ready(self._inventory.model_ready(model, version))

    def _infer(self, request: Request, model: str, version: str = "") -> Response:
        body = self._body(request, self._max_body_bytes)
        length = request.headers.get(JSON_LENGTH)
        if length == "0":
            document: dict[str, Any] = {}
            given = self._inventory.lone_input(model, version, body)
        else:
            document, binary = _split(body, length)
            given = self._input(document, binary)
        parameters = _member(document, "parameters", dict, {})
        wanted = self._wanted(document)
        try:
            answer = self._classifier.classify_blocking(query(
                model, version, given, [each for each, _ in wanted], parameters,
                trace=trace_context(request.headers.get(HEADER, "")), request_id=_member(document, "id", str, ""),
            ))  # fmt: skip
        except RequestError as error:
            raise in_request(error) from None
        start = time.monotonic()
        best = answer.best()
        all_binary = bool(parameters.get("binary_data_output", False))
        head = {"model_name": answer.served.name, "model_version": str(answer.served.version)}
        if "id" in document:
            head["id"] = _member(document, "id", str)
        try:
            found = outputs(answer, [each for each, _ in wanted])
            binaries = [binary if binary is not None else all_binary for _, binary in wanted] or [all_binary] * len(found)
            response = _answer(head, list(zip(found, binaries, strict=True)))
        except RequestError as error:
            self._classifier.record_encoding_failure(answer, error)
            raise
        answer.delivered(best, time.monotonic() - start)
        return _compressed(request, response)

    def _input(self, document: Mapping[str, Any], binary: bytes) -> Input:
        tensors = _member(document, "inputs", list)
        if len(tensors) != 1 or not isinstance(tensors[0], dict):
            raise InvalidRequest(f"the request has {len(tensors)} inputs; a model here takes 1", "inputs")
        [tensor] = tensors
        name, datatype = _member(tensor, "name", str), _member(tensor, "datatype", str)
        shape = _member(tensor, "shape", list)
        parameters = _member(tensor, "parameters", dict, {})
        where = input_place(parameters, self._memory)
        size = parameters.get("binary_data_size")
        if (where is not None) + (size is not None) + ("data" in tensor) != 1:
            raise InvalidRequest(
                "give the input once: as data, as binary_data_size bytes after the JSON, or in shared memory", "inputs[0]"
            )
        if size is not None and size != len(binary):
            raise InvalidRequest(f"binary_data_size is {size}; {len(binary)} bytes come after the JSON", "inputs[0].parameters")
        if size is None and binary:
            raise InvalidRequest(
                f"{len(binary)} bytes come after the JSON that no binary_data_size speaks of", "inputs[0].parameters"
            )
        if size is not None or where is not None:
            elements = elements_of_raw(datatype, shape, binary if where is None else read(where, datatype, shape))
        else:
            elements = _values(datatype, shape, _member(tensor, "data", list))
        return Input(name, datatype, shape, elements)

    def _wanted(self, document: Mapping[str, Any]) -> list[tuple[Wanted, bool | None]]:
        """The outputs asked for, and whether binary; None leaves that to the request's parameter."""
        found: list[tuple[Wanted, bool | None]] = []
        asked = _member(document, "outputs", list, [])
        check_outputs(len(asked))
        for index, output in enumerate(asked):
            if not isinstance(output, dict):
                raise InvalidRequest(f"outputs[{index}] is not an object", f"outputs[{index}]")
            parameters = _member(output, "parameters", dict, {})
            wanted = wanted_output(index, _member(output, "name", str), parameters, self._memory)
            found.append((wanted, bool(parameters["binary_data"]) if "binary_data" in parameters else None))
        return found

    def _index(self, request: Request) -> Response:
        document = self._document(request)
        check_repository(_member(document, "repository_name", str, ""))
        return _json(self._inventory.index(ready_only=_member(document, "ready", bool, False)))

    def _load(self, request: Request, model: str) -> Response:
        check_load("", _member(self._document(request), "parameters", dict, {}))
        self._control.load(model)
        return _json({})

    def _unload(self, request: Request, model: str) -> Response:
        check_unload("", _member(self._document(request), "parameters", dict, {}))
        self._control.unload(model)
        return _json({})

    def _memory_status(self, _: Request, region: str = "") -> Response:
        return _json(
            [
                {"name": name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size}
                for name, each in self._memory.regions(region).items()
            ]
        )

    def _register(self, request: Request, region: str) -> Response:
        document = self._document(request)
        offset, byte_size = _member(document, "offset", int, 0), _member(document, "byte_size", int)
        if offset < 0 or byte_size < 1:
            raise InvalidRequest("offset is 0 or more, byte_size 1 or more", "offset" if offset < 0 else "byte_size")
        self._control.register(region, _member(document, "key", str), offset, byte_size)
        return _json({})

    def _unregister(self, _: Request, region: str = "") -> Response:
        self._control.unregister(region)
        return _json({})

    def _document(self, request: Request) -> dict[str, Any]:
        """The body as a JSON object; empty if there is none."""
        body = self._body(request, CONTROL_BYTES)
        return _parse(body) if body else {}

    def _body(self, request: Request, most: int) -> bytes:
        """The body, unpacked. Raises InvalidRequest if it has more bytes than `most`."""
        if (request.content_length or 0) > most:
            raise InvalidRequest(f"the body is larger than {most} bytes")
        body = request.get_data()
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding == "identity":
            return body
        if encoding not in ("gzip", "deflate"):
            raise InvalidRequest(f"Content-Encoding {encoding[:64]!r} is none of gzip, deflate, identity")
        try:
            return _unpacked(body, encoding, most)
        except zlib.error:
            raise InvalidRequest(f"the body is not {encoding} data") from None


def _unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """What was packed, in one member or more; raises InvalidRequest if it has more bytes than `most`, or is cut short."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS + 32)  # takes either format
    parts = []
    left = most
    # Piece by piece, because what comes after a member is copied.
    for at in range(0, len(body), _PIECE_BYTES):
        piece = body[at : at + _PIECE_BYTES]
        while piece:
            if unpacker.eof:
                unpacker = zlib.decompressobj(zlib.MAX_WBITS + 32)
            part = unpacker.decompress(piece, left + 1)
            left -= len(part)
            if left < 0:
                raise InvalidRequest(f"the body is larger than {most} bytes when it is unpacked")
            parts.append(part)
            piece = unpacker.unused_data
    if not unpacker.eof:
        raise InvalidRequest(f"the body is {encoding} data that is cut short")
    return b"".join(parts)


def _answer(head: dict[str, Any], found: Sequence[tuple[Output, bool]]) -> Response:
    tensors, binary = [], []
    for output, as_binary in found:
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if output.place is not None:
            put(output)  # and no parameters, as with Triton: NVIDIA's C++ client takes any for those of binary data
        elif as_binary:
            binary.append(raw(output.elements))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        elif isinstance(output.elements, list):
            tensor["data"] = [element.decode() for element in output.elements]
        else:
            tensor["data"] = output.elements.ravel().tolist()
        tensors.append(tensor)
    try:
        text = json.dumps(head | {"outputs": tensors}, allow_nan=False).encode()
    except ValueError:
        raise ModelFailed("the model gave NaN or infinity, for which JSON has no number: ask for binary data") from None
    if not binary:
        return Response(text, mimetype="application/json")
    return Response(b"".join([text, *binary]), headers={JSON_LENGTH: str(len(text))}, mimetype="application/octet-stream")


def _compressed(request: Request, response: Response) -> Response:
    """The response packed in a way that the client takes, if it is worth it."""
    body = response.get_data()
    encoding = request.accept_encodings.best_match(["gzip", "deflate"]) if len(body) >= COMPRESS_BYTES else None
    if encoding is not None:
        response.set_data(gzip.compress(body, 1) if encoding == "gzip" else zlib.compress(body, 1))
        response.headers["Content-Encoding"] = encoding
    return response


def _values(datatype: str, shape: list[Any], data: list[Any]) -> Elements:
    """The elements of a tensor's `data`. BYTES, which JSON has no form for, are in base64."""
    if datatype == BYTES:
        data = [element[0] if isinstance(element, list) and len(element) == 1 else element for element in data]
        try:
            data = [base64.b64decode(element, validate=True) for element in data]
        except (TypeError, ValueError, binascii.Error):
            raise InvalidRequest("BYTES in JSON are texts in base64, one an encoded image", "inputs[0].data") from None
    return elements_of_values(datatype, shape, data, "inputs[0].data")


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON of a request, and the bytes after it."""
    if length is None:
        return _parse(body), b""
    # Twenty digits are more than any body has, and int() takes only some thousands.
    if not length.isascii() or not length.isdigit() or len(length) > 20 or int(length) > len(body):
        raise InvalidRequest(f"{JSON_LENGTH} is {length[:64]!r}; the length of the JSON, at most that of the body, is accepted")
    return _parse(body[: int(length)]), body[int(length) :]


def _parse(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "not UTF-8, nested too deeply, or NaN or Infinity"
        raise InvalidRequest(f"the body is not JSON: {reason} (for an image file as it is, send {JSON_LENGTH}: 0)") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body is JSON, but not an object")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(name)  # Python's own parser takes NaN and Infinity


_NOTHING = object()
_NAMES = {str: "a text", dict: "an object", list: "an array", bool: "true or false", int: "a whole number"}


def _member(document: Mapping[str, Any], name: str, kind: type, otherwise: Any = _NOTHING) -> Any:
    """One member of a JSON object, of that type; `otherwise` if it is not there."""
    value = document.get(name, otherwise)
    if value is _NOTHING:
        raise InvalidRequest(f"{name!r} is missing; {_NAMES[kind]} is accepted", name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRequest(f"{name!r} is not {_NAMES[kind]}", name)
    return value


def _json(document: Any, status: int = 200) -> Response:
    return Response(json.dumps(document), status, mimetype="application/json")


def status_of(error: ConvoyError) -> int:
    """The HTTP status that says what kind of error it is."""
    return _STATUSES.get(type(error), 500)


def _error(error: ConvoyError) -> Response:
    response = _json({"error": str(error)}, status_of(error))
    if isinstance(error, QueueFull | Unavailable):
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return response


def _not_offered(reason: str) -> Callable[..., Response]:
    def refuse(_: Request, **__: str) -> Response:
        raise Unimplemented(reason)

    return refuse
