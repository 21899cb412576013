"""`ModelInfer` and `ModelStreamInfer` of `inference.GRPCInferenceService`: their messages to queries, and answers back.

The other methods of the service are in `open_inference_admin.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import MANY_ITEMS
from service.engine.reply import Responder, Write, send_reply
from service.engine.top_k import Results
from service.errors import InvalidRequest, RequestError
from service.open_inference.conversion import make_query, read_from_memory, rename_error_field, select_outputs
from service.open_inference.packed import MANY_VALUES, array_of
from service.open_inference.parameters import (
    REGION,
    WANTS_FINAL_RESPONSE,
    RequestedOutput,
    check_output_count,
    parse_input_memory,
    parse_requested_output,
)
from service.open_inference.shared_memory import SharedMemory
from service.open_inference.tensors import (
    BYTES,
    DTYPES,
    MAX_DIMENSIONS,
    Elements,
    InputTensor,
    OutputTensor,
    check_dimensions,
    elements_from_bytes,
    elements_from_values,
    elements_to_bytes,
    write_to_memory,
)
from service.pb.inference import open_inference_pb2 as pb
from service.rpc.call import Call, Method, Receiver, Stream, StreamCall, Unary, UnaryCall
from service.rpc.known_messages import KnownMessages
from service.rpc.message_cost import max_fields
from service.rpc.open_streams import OpenStreams
from service.rpc.request_stream import RequestStream, StreamRequest
from service.rpc.status import status_of
from service.rpc.wire import ModelInferResponseWriter, model_stream_infer_response

SERVICE = "inference.GRPCInferenceService"
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents",
}  # fmt: skip


class InferServicer:
    """Answers `ModelInfer` and `ModelStreamInfer` with a Classifier."""

    def __init__(self, classifier: Classifier, memory: SharedMemory, ignore_unknown_parameters: bool = False) -> None:
        self._classifier = classifier
        self._memory = memory
        self._ignore_unknown = ignore_unknown_parameters
        self._streams = OpenStreams()

    def methods(self) -> list[Method]:
        """The methods of this servicer."""

        def fields() -> int:
            return max_fields(self._classifier.max_request_items())

        shortcut = _Shortcut()
        return [
            Unary(f"/{SERVICE}/ModelInfer", pb.ModelInferRequest, self._infer, max_fields=fields, shortcut=shortcut),
            Stream(f"/{SERVICE}/ModelStreamInfer", pb.ModelInferRequest, self._open, "bidi_stream", True, fields, shortcut),
        ]

    def end_streams(self) -> None:
        """Ends every stream when the requests read from it are answered, for a server that drains."""
        self._streams.finish_all()

    def _infer(self, request: "pb.ModelInferRequest | _Known", call: UnaryCall) -> None:
        if isinstance(request, tuple):
            model, version, tensor, form = request
            call.on_cancelled(self.ask(model, version, tensor, {}, form, call, call, _write))
        else:
            call.on_cancelled(self.start(request, call, call, _write))

    def _open(self, call: StreamCall) -> Receiver:
        def start(request: "pb.ModelInferRequest | _Known", stream_request: StreamRequest) -> Callable[[], None]:
            if isinstance(request, tuple):
                model, version, tensor, form = request
                return self.ask(model, version, tensor, {}, form, call, stream_request, _write_in_stream)
            stream_request.id = request.id
            if call.grant is not None:
                call.grant.require_message(call.method.path, request)
            return self.start(request, call, stream_request, _write_in_stream)

        stream = RequestStream(call, start, _error_response)
        self._streams.add(stream)
        return stream

    def start(
        self, request: pb.ModelInferRequest, call: Call, responder: Responder[bytes], write: Write[bytes]
    ) -> Callable[[], None]:
        """Starts work on a request; `responder` gets what `write` makes of the answer. Returns a function that cancels the request.

        Raises RequestError if the request is refused.
        """
        if call.grant is not None and _names_memory(request):
            call.grant.require("shared-memory")
        tensor, typed = self._parse_input(request)
        requested = self._parse_outputs(request) if request.outputs else ()
        parameters = _parameters(request.parameters) if request.parameters else {}
        final = bool(parameters.get(WANTS_FINAL_RESPONSE, False))
        # Of the request, which holds the tensor, only the id is kept.
        form = _ReplyForm(request.id, requested, typed, final)
        return self.ask(request.model_name, request.model_version, tensor, parameters, form, call, responder, write)

    def ask(
        self, model: str, version: str, tensor: InputTensor, parameters: Mapping[str, Any], form: "_ReplyForm", call: Call,
        responder: Responder[bytes], write: Write[bytes],
    ) -> Callable[[], None]:  # fmt: skip
        """As `start`, of a request that has been read."""
        query = make_query(
            model, version, tensor, form.requested, parameters, call.deadline, call.trace, form.request_id, self._ignore_unknown,
            call.principal, call.metadata,
        )  # fmt: skip
        try:
            return self._classifier.classify(query, partial(_send_reply, self._classifier, responder, write, form))
        except RequestError as error:
            raise rename_error_field(error) from None

    def _parse_input(self, request: pb.ModelInferRequest) -> tuple[InputTensor, bool]:
        """The input, and whether it came as typed contents."""
        if len(request.inputs) != 1:
            raise InvalidRequest(f"the request has {len(request.inputs)} inputs; a model here takes 1", "inputs")
        tensor = request.inputs[0]
        if len(tensor.shape) > MAX_DIMENSIONS:
            check_dimensions(tensor.shape)
        shape = list(tensor.shape)
        datatype = tensor.datatype
        memory = None
        if tensor.parameters:
            memory = parse_input_memory(_parameters(tensor.parameters), self._memory, self._ignore_unknown)
        contents = request.raw_input_contents
        typed = not contents and memory is None
        if len(contents) > 1:
            raise InvalidRequest(f"raw_input_contents has {len(contents)} elements for 1 input", "raw_input_contents")
        if (contents and memory) or (not typed and tensor.HasField("contents") and tensor.contents.ListFields()):
            raise InvalidRequest("the input is given twice: use one of contents, raw_input_contents and shared memory", "inputs[0]")
        if datatype == BYTES and shape and shape[0] > MANY_ITEMS:
            self._check_count(request, shape[0])
        if typed:
            elements = _typed_elements(datatype, shape, tensor.contents)
        elif memory is not None:
            return read_from_memory(
                self._classifier, request.model_name, request.model_version, tensor.name, datatype, shape, memory
            ), typed
        else:
            elements = elements_from_bytes(datatype, shape, contents[0])
        return InputTensor(tensor.name, datatype, shape, elements), typed

    def _check_count(self, request: pb.ModelInferRequest, items: int) -> None:
        try:
            self._classifier.check_count(request.model_name, request.model_version, items)
        except RequestError as error:
            raise rename_error_field(error) from None

    def _parse_outputs(self, request: pb.ModelInferRequest) -> Sequence[RequestedOutput]:
        check_output_count(len(request.outputs))
        return [
            parse_requested_output(index, output.name, _parameters(output.parameters), self._memory, self._ignore_unknown)
            if output.parameters
            else RequestedOutput(output.name)
            for index, output in enumerate(request.outputs)
        ]


class _Facts(NamedTuple):
    """What a request says but for its elements."""

    model: str
    version: str
    name: str
    datatype: str
    shape: tuple[int, ...]
    requested: tuple[RequestedOutput, ...]
    typed: bool


class _Shortcut:
    """Requests without id and parameters, with one tensor of numbers: raw, or typed ones that have all the same number of bytes."""

    def __init__(self) -> None:
        self._known: KnownMessages[pb.ModelInferRequest, _Facts] = KnownMessages(pb.ModelInferRequest, _elements_of, _facts_of)
        self.learn = self._known.learn

    def read(self, payload: bytes, _call: Call) -> "_Known | None":
        """See Shortcut."""
        known = self._known.find(payload)
        if known is None:
            return None
        (model, version, name, datatype, shape, requested, typed), start, _ = known
        dtype = DTYPES[datatype]
        elements = np.ndarray(shape, dtype, payload, start)
        if start % dtype.itemsize:  # ONNX Runtime reads where the array lies
            elements = elements.copy()
        tensor = InputTensor(name, datatype, shape, elements)
        return model, version, tensor, _ReplyForm("", requested, typed, False)


_FIXED_SIZE = {"FP32", "FP64"}
"""Data types whose typed contents have a fixed number of bytes each."""


def _elements_of(request: pb.ModelInferRequest) -> bytes:
    if request.raw_input_contents:
        return request.raw_input_contents[0]
    [tensor] = request.inputs
    field = _CONTENTS[tensor.datatype]
    return array_of(tensor.contents, field).tobytes() if getattr(tensor.contents, field) else b""


def _facts_of(request: pb.ModelInferRequest) -> _Facts | None:
    if len(request.inputs) != 1 or request.id or request.parameters:
        return None
    tensor = request.inputs[0]
    typed = not request.raw_input_contents
    if tensor.datatype not in (_FIXED_SIZE if typed else DTYPES):
        return None
    if tensor.parameters or any(output.parameters for output in request.outputs):
        return None
    shape = tuple(tensor.shape)
    if math.prod(shape) * DTYPES[tensor.datatype].itemsize != len(_elements_of(request)):
        return None
    requested = tuple(RequestedOutput(output.name) for output in request.outputs)
    return _Facts(request.model_name, request.model_version, tensor.name, tensor.datatype, shape, requested, typed)


def _names_memory(request: pb.ModelInferRequest) -> bool:
    """Whether a request has its input in shared memory, or wants an output there."""
    return any(REGION in tensor.parameters for tensors in (request.inputs, request.outputs) for tensor in tensors)


class _ReplyForm(NamedTuple):
    """How a request wants its reply."""

    request_id: str
    requested: Sequence[RequestedOutput]
    typed: bool  # outputs as typed contents, as the input was
    final: bool  # with the parameter triton_final_response


_Known = tuple[str, str, InputTensor, _ReplyForm]
"""A request that was read without being parsed: model, version, input, and how it wants its reply. A bare tuple costs least."""


def _send_reply(
    classifier: Classifier, responder: Responder[bytes], write: Write[bytes], form: _ReplyForm, outcome: Answer | RequestError
) -> None:
    send_reply(classifier, responder, write, form, rename_error_field(outcome) if isinstance(outcome, RequestError) else outcome)


def _write(answer: Answer, _: Results, form: _ReplyForm) -> bytes:
    request_id, requested, typed, final = form
    served = answer.served
    if typed or final or any(output.classes or output.memory for output in requested):
        response = pb.ModelInferResponse(model_name=served.name, model_version=str(served.version), id=request_id)
        _add_outputs(response, select_outputs(answer, requested), typed)
        if final:
            response.parameters["triton_final_response"].bool_param = True
        return response.SerializeToString()
    writer: ModelInferResponseWriter | None = served.cache.get(ModelInferResponseWriter)
    if writer is None:
        writer = ModelInferResponseWriter(served.name, str(served.version), list(answer.outputs))
        served.cache[ModelInferResponseWriter] = writer
    return writer.write(request_id, answer, [output.name for output in requested] if requested else writer.names)


def _write_in_stream(answer: Answer, best: Results, form: _ReplyForm) -> bytes:
    return model_stream_infer_response(_write(answer, best, form))


def _error_response(request_id: str, _: int, error: BaseException) -> bytes:
    """The response in a stream to a request that failed. Only the id says which request it was."""
    response = pb.ModelInferResponse(id=request_id)
    return pb.ModelStreamInferResponse(error_message=status_of(error).message, infer_response=response).SerializeToString()


def _typed_elements(datatype: str, shape: Sequence[int], contents: pb.InferTensorContents) -> Elements:
    field = _CONTENTS.get(datatype)
    if field is None:
        if datatype == "FP16":
            raise InvalidRequest("FP16 has no typed contents: send it in raw_input_contents", "inputs[0].contents")
        return elements_from_bytes(datatype, shape, b"")  # raises the error
    values = getattr(contents, field)
    if MANY_VALUES <= len(values) == math.prod(shape) and datatype != BYTES:
        values = array_of(contents, field)
    return elements_from_values(datatype, shape, values, f"inputs[0].contents.{field}")


def _add_outputs(response: pb.ModelInferResponse, outputs: Sequence[OutputTensor], typed: bool) -> None:
    """Adds the outputs, typed or raw. If one has no typed form, or goes to shared memory, all are raw."""
    typed = typed and all(output.datatype in _CONTENTS and output.memory is None for output in outputs)
    for output in outputs:
        tensor = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        elements = output.elements
        if typed:
            values = elements if isinstance(elements, list) else elements.ravel().tolist()
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(values)
        elif output.memory is None:
            response.raw_output_contents.append(elements_to_bytes(elements))
        else:
            tensor.parameters["shared_memory_region"].string_param = output.memory.region.name
            tensor.parameters["shared_memory_byte_size"].int64_param = write_to_memory(output)
            tensor.parameters["shared_memory_offset"].int64_param = output.memory.offset
            response.raw_output_contents.append(b"")


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(f"parameter {name[:64]!r} has no value", f"parameters[{name[:64]}]")
        values[name] = getattr(parameter, kind)
    return values
