"""The Open Inference Protocol over HTTP: `/v2/...`, in JSON and with its binary extension.

Runs on the HTTP port's threads, which may block.
"""

import base64
import binascii
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from service.access import audit
from service.control import (
    NO_CUDA,
    NO_LOG_SETTINGS,
    NO_TRACE_SETTINGS,
    Control,
    ControlPlaces,
    check_load,
    check_repository,
    check_unload,
)
from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.reply import reply_to
from service.engine.top_k import Results
from service.errors import InvalidRequest, Unimplemented
from service.http.bodies import JSON_LENGTH, compress, member, parse_json, read_body, split_body
from service.http.gate import grant_of
from service.http.json_cost import take_json
from service.http.principals import caller_of, metadata_of, principal_of
from service.http.responses import json_response, response_to_error
from service.http.server import INFER, INFER_VERSION, match_route
from service.observability.trace_context import HEADER, trace_context
from service.open_inference.conversion import make_query, read_from_memory, select_outputs
from service.open_inference.metadata import ServerMetadata
from service.open_inference.parameters import (
    REGION,
    RequestedOutput,
    check_output_count,
    parse_input_memory,
    parse_requested_output,
)
from service.open_inference.shared_memory import SharedMemory
from service.open_inference.tensors import (
    BYTES,
    Elements,
    InputTensor,
    OutputTensor,
    elements_from_bytes,
    elements_from_values,
    elements_to_bytes,
    write_to_memory,
)
from service.requests.byte_budget import UNLIMITED, ByteBudget, Holding

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_CONTROL_BYTES = 64 * 1024
"""The limit of a body in any request but inference."""

LARGE_JSON_BYTES = 1024 * 1024
_LARGE_JSON = threading.Lock()
"""A JSON text of so many bytes is parsed alone: that holds the interpreter's lock for tens of milliseconds each."""

_HOLDING = "convoy.holding"
"""The key in a request's environment for what it holds of the budget of bytes."""

_MODEL = "/v2/models/<model>"
_VERSION = f"{_MODEL}/versions/<version>"
_REGION = "/v2/systemsharedmemory/region/<region>"


class Rest:
    """The WSGI application of `/v2`."""

    def __init__(
        self,
        classifier: Classifier,
        metadata: ServerMetadata,
        control: Control,
        places: ControlPlaces,
        memory: SharedMemory,
        max_body_bytes: int,
        ignore_unknown_parameters: bool = False,
        budget: ByteBudget = UNLIMITED,
        max_json_bytes: int = 2**62,
    ) -> None:
        """`max_body_bytes` is the limit of a request's body, decompressed, `max_json_bytes` that of JSON in it.

        From `budget` comes what a body becomes; the body itself was taken by whoever read it.
        """
        self._budget = budget
        self._max_json_bytes = max_json_bytes
        self._classifier = classifier
        self._metadata = metadata
        self._control = control
        self._places = places
        self._memory = memory
        self._max_body_bytes = max_body_bytes
        self._ignore_unknown = ignore_unknown_parameters
        get: dict[str, Callable[..., Response]] = {
            "/v2": lambda _: json_response(metadata.server_metadata()),
            "/v2/health/live": lambda _: self._live(),
            "/v2/health/ready": lambda _: self._ready(metadata.ready()),
            "/v2/models": lambda _: json_response({"models": metadata.model_names()}),  # as KServe's servers do
            "/v2/models/stats": lambda _: json_response(metadata.model_statistics("", "")),
            "/v2/systemsharedmemory/status": self._memory_status,
            f"{_REGION}/status": self._memory_status,
        }
        for path in (_MODEL, _VERSION):
            get |= {
                path: lambda _, model, version="": json_response(metadata.model_metadata(model, version)),
                f"{path}/ready": self._model_ready,
                f"{path}/config": lambda _, model, version="": json_response(metadata.model_config(model, version)),
                f"{path}/stats": lambda _, model, version="": json_response(metadata.model_statistics(model, version)),
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
        unimplemented = {
            "/v2/cudasharedmemory/<path:rest>": NO_CUDA,
            "/v2/trace/setting": NO_TRACE_SETTINGS,
            f"{_MODEL}/trace/setting": NO_TRACE_SETTINGS,
            f"{_VERSION}/trace/setting": NO_TRACE_SETTINGS,
            "/v2/logging": NO_LOG_SETTINGS,
        }
        self._routes = Map(
            [
                *(Rule(path, methods=["GET"], endpoint=handler) for path, handler in get.items()),
                *(Rule(path, methods=["POST"], endpoint=handler) for path, handler in post.items()),
                *(Rule(path, endpoint=_unimplemented(reason)) for path, reason in unimplemented.items()),
            ],
            strict_slashes=False,
            merge_slashes=False,
        )

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request; see PEP 3333."""
        try:
            handler, arguments = match_route(self._routes, environ)
            request = Request(environ, populate_request=False)  # else it and `environ` refer to each other
            with Holding(self._budget) as holding:
                environ[_HOLDING] = holding
                response: Response = handler(request, **arguments)
        except Exception as error:  # noqa: BLE001 - any error is the response to this request
            response = response_to_error(error, environ)
        return response(environ, start_response)

    def _live(self) -> Response:
        live = self._metadata.live()
        return json_response({"live": live}, 200 if live else 503)

    def _ready(self, ready: bool) -> Response:
        return json_response({"ready": ready}, 200 if ready else 503)

    def _model_ready(self, _: Request, model: str, version: str = "") -> Response:
        self._metadata.model_metadata(model, version)  # raises NotFound
        return self._ready(self._metadata.model_ready(model, version))

    def _infer(self, request: Request, model: str, version: str = "") -> Response:
        document, tensor = self._parse_body(request, model, version)
        parameters = member(document, "parameters", dict, {})
        requested = self._parse_outputs(document)
        query = make_query(
            model, version, tensor, [output for output, _ in requested], parameters,
            trace=trace_context(request.headers.get(HEADER, "")), request_id=member(document, "id", str, ""),
            ignore_unknown=self._ignore_unknown, principal=principal_of(request.environ), metadata=metadata_of(request),
        )  # fmt: skip
        form = _ReplyForm(request, document.get("id"), requested, bool(parameters.get("binary_data_output", False)))
        return reply_to(self._classifier, query, _write, form)

    def _parse_body(self, request: Request, model: str, version: str) -> tuple[dict[str, Any], InputTensor]:
        """The JSON of a request, and its input. Of the JSON only what is small stays in memory while the request waits."""
        holding = holding_of(request)
        body = read_body(request, self._max_body_bytes, holding)
        json_length = request.headers.get(JSON_LENGTH)
        if json_length == "0":
            return {}, self._metadata.parse_binary_body(model, version, body)
        text, binary = split_body(body, json_length)
        del body
        with Holding(self._budget) as passing, _LARGE_JSON if len(text) > LARGE_JSON_BYTES else nullcontext():
            take_json(text, self._max_json_bytes, passing)
            document = parse_json(text)
            del text
            grant = grant_of(request.environ)
            if grant is not None and _names_memory(document):
                grant.require("shared-memory")
            tensor = self._parse_input(document, binary, model, version)
            del document["inputs"]
        if not binary and isinstance(tensor.elements, np.ndarray):
            holding.take(tensor.elements.nbytes)  # now, for what JSON was counted for included them
        return document, tensor

    def _parse_input(self, document: Mapping[str, Any], binary: bytes, model: str, version: str) -> InputTensor:
        tensors = member(document, "inputs", list)
        if len(tensors) != 1 or not isinstance(tensors[0], dict):
            raise InvalidRequest(f"the request has {len(tensors)} inputs; a model here takes 1", "inputs")
        [tensor] = tensors
        name, datatype = member(tensor, "name", str), member(tensor, "datatype", str)
        shape = member(tensor, "shape", list)
        parameters = member(tensor, "parameters", dict, {})
        memory = parse_input_memory(parameters, self._memory, self._ignore_unknown)
        size = parameters.get("binary_data_size")
        if (memory is not None) + (size is not None) + ("data" in tensor) != 1:
            raise InvalidRequest(
                "give the input once: as data, as binary_data_size bytes after the JSON, or in shared memory", "inputs[0]"
            )
        if size is not None and size != len(binary):
            raise InvalidRequest(f"binary_data_size is {size}; {len(binary)} bytes come after the JSON", "inputs[0].parameters")
        if size is None and binary:
            raise InvalidRequest(
                f"{len(binary)} bytes come after the JSON without a binary_data_size for them", "inputs[0].parameters"
            )
        if memory is not None:
            return read_from_memory(self._classifier, model, version, name, datatype, shape, memory)
        if size is not None:
            elements = elements_from_bytes(datatype, shape, binary)
        else:
            elements = _elements_from_json(datatype, shape, member(tensor, "data", list))
        return InputTensor(name, datatype, shape, elements)

    def _parse_outputs(self, document: Mapping[str, Any]) -> list[tuple[RequestedOutput, bool | None]]:
        """The requested outputs, each with whether it is to be binary; None leaves that to the request's parameter."""
        requested: list[tuple[RequestedOutput, bool | None]] = []
        outputs = member(document, "outputs", list, [])
        check_output_count(len(outputs))
        for index, output in enumerate(outputs):
            if not isinstance(output, dict):
                raise InvalidRequest(f"outputs[{index}] is not an object", f"outputs[{index}]")
            parameters = member(output, "parameters", dict, {})
            name = member(output, "name", str)
            parsed = parse_requested_output(index, name, parameters, self._memory, self._ignore_unknown)
            requested.append((parsed, bool(parameters["binary_data"]) if "binary_data" in parameters else None))
        return requested

    def _index(self, request: Request) -> Response:
        document = self._document(request)
        check_repository(member(document, "repository_name", str, ""))
        return json_response(self._metadata.repository_index(ready_only=member(document, "ready", bool, False)))

    def _load(self, request: Request, model: str) -> Response:
        check_load("", member(self._document(request), "parameters", dict, {}))
        with audit.recorded("load", **caller_of(request.environ), model=model), self._places.taken():
            self._control.load(model)
        return json_response({})

    def _unload(self, request: Request, model: str) -> Response:
        check_unload("", member(self._document(request), "parameters", dict, {}))
        with audit.recorded("unload", **caller_of(request.environ), model=model), self._places.taken():
            self._control.unload(model)
        return json_response({})

    def _memory_status(self, _: Request, region: str = "") -> Response:
        return json_response(
            [
                {"name": name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size}
                for name, each in self._memory.regions(region).items()
            ]
        )

    def _register(self, request: Request, region: str) -> Response:
        document = self._document(request)
        offset, byte_size = member(document, "offset", int, 0), member(document, "byte_size", int)
        if offset < 0 or byte_size < 1:
            raise InvalidRequest("offset must be 0 or more, byte_size 1 or more", "offset" if offset < 0 else "byte_size")
        key = member(document, "key", str)
        with audit.recorded("register", **caller_of(request.environ), region=region, key=key), self._places.taken():
            self._control.register(region, key, offset, byte_size)
        return json_response({})

    def _unregister(self, request: Request, region: str = "") -> Response:
        with audit.recorded("unregister", **caller_of(request.environ), region=region), self._places.taken():
            self._control.unregister(region)
        return json_response({})

    def _document(self, request: Request) -> dict[str, Any]:
        """The body as a JSON object; an empty one if there is no body."""
        body = read_body(request, MAX_CONTROL_BYTES, holding_of(request))
        return parse_json(body) if body else {}


def holding_of(request: Request) -> Holding:
    """What a request holds of the budget of bytes."""
    holding: Holding = request.environ[_HOLDING]
    return holding


def _names_memory(document: Mapping[str, Any]) -> bool:
    """Whether a request has its input in shared memory, or wants an output there. Of a document that may have any form."""
    tensors = [tensor for key in ("inputs", "outputs") if isinstance(document.get(key), list) for tensor in document[key]]
    parameters = [tensor.get("parameters") for tensor in tensors if isinstance(tensor, dict)]
    return any(isinstance(each, dict) and REGION in each for each in parameters)


class _ReplyForm(NamedTuple):
    """How a request wants its reply."""

    request: Request
    request_id: str | None
    requested: Sequence[tuple[RequestedOutput, bool | None]]
    binary: bool  # for outputs that do not say whether they are to be binary


def _write(answer: Answer, _: Results, form: _ReplyForm) -> Response:
    outputs = select_outputs(answer, [requested for requested, _ in form.requested])
    binary = [form.binary if binary is None else binary for _, binary in form.requested] or [form.binary] * len(outputs)
    document: dict[str, Any] = {"model_name": answer.served.name, "model_version": str(answer.served.version)}
    if form.request_id is not None:
        document["id"] = form.request_id
    return compress(form.request, _write_outputs(answer, document, zip(outputs, binary, strict=True)))


def _write_outputs(answer: Answer, document: dict[str, Any], outputs: Iterable[tuple[OutputTensor, bool]]) -> Response:
    """The response with the members of `document` and outputs of the answer, each with whether it is to be binary."""
    tensors, binaries = [], []
    for output, binary in outputs:
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if output.memory is not None:
            write_to_memory(output)  # and no parameters, as with Triton: NVIDIA's C++ client takes any for those of binary data
        elif binary:
            binaries.append(elements_to_bytes(output.elements))
            tensor["parameters"] = {"binary_data_size": len(binaries[-1])}
        elif isinstance(output.elements, list):
            tensor["data"] = [element.decode() for element in output.elements]
        else:
            tensor["data"] = output.elements.ravel().tolist()
        tensors.append(tensor)
    try:
        text = json.dumps(document | {"outputs": tensors}, allow_nan=False).encode()
    except ValueError:
        raise answer.not_finite("the model gave NaN or infinity, for which JSON has no number: ask for binary data") from None
    if not binaries:
        return Response(text, mimetype="application/json")
    return Response(b"".join([text, *binaries]), headers={JSON_LENGTH: str(len(text))}, mimetype="application/octet-stream")


def _elements_from_json(datatype: str, shape: list[Any], data: list[Any]) -> Elements:
    """The elements of a tensor's `data`. JSON has no form for BYTES: they are strings in base64."""
    if datatype == BYTES:
        data = [element[0] if isinstance(element, list) and len(element) == 1 else element for element in data]
        try:
            data = [base64.b64decode(element, validate=True) for element in data]
        except (TypeError, ValueError, binascii.Error):
            raise InvalidRequest("BYTES in JSON must be strings in base64, one for each encoded image", "inputs[0].data") from None
    return elements_from_values(datatype, shape, data, "inputs[0].data")


def _unimplemented(reason: str) -> Callable[..., Response]:
    def refuse(_: Request, **__: str) -> Response:
        raise Unimplemented(reason)

    return refuse
