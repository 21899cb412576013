"""Every kind of request that a server refuses, on every surface: one table, for tests and for programs that measure."""

import http.client
import io
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import onnx
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from onnx import TensorProto, helper
from PIL import Image

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip

MAX_MESSAGE_BYTES = 1 << 20
"""For a server's --max-message-bytes: a message that is too large for it is still cheap to send."""

CLASSIFIER = "/convoy.v1.Classifier/"
OPEN_INFERENCE = "/inference.GRPCInferenceService/"
CLASSIFY, CLASSIFY_STREAM = f"{CLASSIFIER}Classify", f"{CLASSIFIER}ClassifyStream"
INFER, INFER_STREAM = f"{OPEN_INFERENCE}ModelInfer", f"{OPEN_INFERENCE}ModelStreamInfer"
PIXELS = bytes(784)
RAISING = "raising"
"""Of the models `full` has a full queue, `patient` waits for more requests, and `raising` fails on every input but zeros."""


FULL_SECONDS = 60.0
"""For so long requests wait in the queue of `full`."""


def make_repository(repository: Path, digits: Path) -> Path:
    """Models for all kinds: copies of a digits model, and one of numbers."""
    for name, policy in {
        "digits": "",
        "full": f"max_queue_items = 2\nmax_queue_delay_seconds = {FULL_SECONDS}\n",
        "patient": "max_queue_delay_seconds = 60.0\n",
    }.items():
        (repository / name / "1").mkdir(parents=True, exist_ok=True)
        target = repository / name / "1" / "model.onnx"
        if not target.exists():
            shutil.copy(digits, target)
        (repository / name / "serving.toml").write_text(policy)
    (repository / RAISING / "1").mkdir(parents=True)
    _make_raising(repository / RAISING / "1" / "model.onnx")
    return repository


def _make_raising(path: Path) -> None:
    """float32[N,2] to scores; takes an element at a place that exists only if the input is 0."""
    nodes = [
        helper.make_node("Cast", ["x"], ["where"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "where"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["scores"]),
    ]
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "scores")]
    table = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "table")
    graph = helper.make_graph(nodes, "raising", [shape[0]], [shape[1]], [table])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Clients:
    """Connections to one server."""

    def __init__(self, grpc_port: int, http_port: int) -> None:
        self._stack = ExitStack()
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = self._stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options))
        self.http = self._stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", http_port, timeout=60)))
        self._fill()
        self._stack.callback(lambda: self._fills.cancel())

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep_full(self) -> None:
        """Fills the queue of `full` anew when half the time that a request waits in it is over."""
        if time.monotonic() - self._filled_at > 0.5 * FULL_SECONDS:
            self._fills.cancel()
            while "full" in self._waiting():
                time.sleep(0.01)
            self._fill()

    def _fill(self) -> None:
        self._fills = self.call(CLASSIFY).future(_classify("full", [PIXELS, PIXELS]), timeout=3600)
        while "full" not in self._waiting():
            time.sleep(0.01)
        self._filled_at = time.monotonic()

    def call(self, path: str) -> Any:
        """A unary method, of serialised messages."""
        return self.channel.unary_unary(path)

    def stream(self, path: str) -> Any:
        """A method of streams."""
        return self.channel.stream_stream(path)

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Sends an HTTP request; returns the status."""
        self.http.request("POST", path, body, headers)
        response = self.http.getresponse()
        response.read()
        return response.status

    def _waiting(self) -> str:
        self.http.request("GET", "/metrics")
        lines = self.http.getresponse().read().decode().splitlines()
        return " ".join(line for line in lines if line.startswith("convoy_queue_items{") and not line.endswith(" 0.0"))


class Refusal(NamedTuple):
    """A kind: `send` sends one request and returns how it ended; `outcome` is what that must be."""

    surface: str
    kind: str
    send: Callable[[Clients], object]
    outcome: object

    def __str__(self) -> str:
        return f"{self.surface}: {self.kind}"


def _classify(model: str, contents: list[bytes], **fields: Any) -> bytes:
    items = [pb.Item(encoded=content) if content[:4] == b"\x89PNG" else pb.Item(pixels=content) for content in contents]
    return pb.ClassifyRequest(model=model, items=items, **fields).SerializeToString()


def _png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _tensor(datatype: str, shape: list[int], name: str = "image") -> oip.ModelInferRequest.InferInputTensor:
    return oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)


def _infer(
    datatype: str, shape: list[int], contents: bytes = b"", model: str = "digits", name: str = "image", **fields: Any
) -> bytes:
    return oip.ModelInferRequest(
        model_name=model, inputs=[_tensor(datatype, shape, name)], raw_input_contents=[contents], **fields
    ).SerializeToString()


def _bytes(elements: list[bytes]) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def _parameters(**values: int | str) -> dict[str, oip.InferParameter]:
    return {
        name: oip.InferParameter(int64_param=value) if isinstance(value, int) else oip.InferParameter(string_param=value)
        for name, value in values.items()
    }


SMALL, BIG = _png(28), _png(600)
IMAGE = [1, 28, 28, 1]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED, UNIMPLEMENTED = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED
LATE, UNAVAILABLE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE
INTERNAL, CANCELLED = grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED

CLASSIFY_MESSAGES: dict[str, tuple[bytes, grpc.StatusCode]] = {
    "too many items to read": (_classify("digits", [PIXELS] * 600), INVALID),
    "too many small items": (_classify("digits", [b"0"] * 20_000), INVALID),
    "too many items, unknown model": (_classify("other", [PIXELS] * 600), NOT_FOUND),
    "too many items": (_classify("full", [PIXELS] * 3), INVALID),
    "no items": (_classify("digits", []), INVALID),
    "an item without content": (pb.ClassifyRequest(model="digits", items=[pb.Item()]).SerializeToString(), INVALID),
    "unknown model": (_classify("other", [PIXELS]), NOT_FOUND),
    "unknown version": (_classify("digits", [PIXELS], version="9"), NOT_FOUND),
    "pixels of the wrong size": (_classify("digits", [bytes(785)]), INVALID),
    "undecodable": (_classify("digits", [SMALL[:-30]]), INVALID),
    "undecodable, large": (_classify("digits", [BIG[:-30]]), INVALID),
    "pictures for a model of numbers": (_classify(RAISING, [SMALL]), INVALID),
    "a long id": (_classify("digits", [PIXELS], id="x" * 300), INVALID),
    "a low priority": (_classify("digits", [PIXELS], priority=9), INVALID),
    "a timeout that is NaN": (_classify("digits", [PIXELS], timeout_seconds=math.nan), INVALID),
    "queue full": (_classify("full", [PIXELS]), EXHAUSTED),
    "queue full, decoded": (_classify("full", [BIG]), EXHAUSTED),
    "late": (_classify("digits", [PIXELS], timeout_seconds=1e-6), LATE),
    "late, decoded": (_classify("digits", [BIG], timeout_seconds=1e-6), LATE),
    "late in the queue": (_classify("patient", [PIXELS, bytes(784)] * 40, timeout_seconds=1e-5), LATE),
    "malformed": (b"\x0a\xff" + bytes(1000), INVALID),
}

INFER_MESSAGES: dict[str, tuple[bytes, grpc.StatusCode]] = {
    "too many items to read": (_infer("BYTES", [600], _bytes([PIXELS] * 600)), INVALID),
    "too many items, unknown model": (_infer("BYTES", [600], _bytes([PIXELS] * 600), model="other"), NOT_FOUND),
    "too many items": (_infer("UINT8", [513, 28, 28, 1], bytes(513 * 784)), INVALID),
    "no items": (_infer("UINT8", [0, 28, 28, 1]), INVALID),
    "unknown model": (_infer("UINT8", IMAGE, PIXELS, model="other"), NOT_FOUND),
    "unknown version": (_infer("UINT8", IMAGE, PIXELS, model_version="9"), NOT_FOUND),
    "wrong shape": (_infer("UINT8", [1, 784], PIXELS), INVALID),
    "wrong datatype": (_infer("INT8", IMAGE, PIXELS), INVALID),
    "unknown datatype": (_infer("FLOAT", IMAGE, PIXELS), INVALID),
    "bytes that are not of the shape": (_infer("UINT8", IMAGE, bytes(783)), INVALID),
    "unknown input": (_infer("UINT8", IMAGE, PIXELS, name="x"), INVALID),
    "two inputs": (oip.ModelInferRequest(model_name="digits", inputs=[_tensor("UINT8", IMAGE)] * 2).SerializeToString(), INVALID),
    "typed contents of the wrong number": (
        oip.ModelInferRequest(model_name="digits", inputs=[_tensor("UINT8", IMAGE)]).SerializeToString(), INVALID,
    ),
    "undecodable": (_infer("BYTES", [1], _bytes([SMALL[:-30]])), INVALID),
    "undecodable, large": (_infer("BYTES", [1], _bytes([BIG[:-30]])), INVALID),
    "unknown parameter": (_infer("UINT8", IMAGE, PIXELS, parameters=_parameters(mood=1)), INVALID),
    "a parameter of sequences": (_infer("UINT8", IMAGE, PIXELS, parameters=_parameters(sequence_id=1)), UNIMPLEMENTED),
    "a low priority": (_infer("UINT8", IMAGE, PIXELS, parameters=_parameters(priority=9)), INVALID),
    "unknown output": (
        _infer("UINT8", IMAGE, PIXELS, outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="x")]), INVALID,
    ),
    "unknown region of shared memory": (
        oip.ModelInferRequest(
            model_name="digits",
            inputs=[
                oip.ModelInferRequest.InferInputTensor(
                    name="image", datatype="UINT8", shape=IMAGE, parameters=_parameters(shared_memory_region="none")
                )
            ],
        ).SerializeToString(),
        NOT_FOUND,
    ),
    "queue full": (_infer("UINT8", IMAGE, PIXELS, model="full"), EXHAUSTED),
    "late": (_infer("UINT8", [40, 28, 28, 1], bytes(40 * 784), parameters=_parameters(timeout=1)), LATE),
    "the model raises": (_infer("FP32", [1, 2], np.ones(2, "<f4").tobytes(), model=RAISING, name="x"), INTERNAL),
    "not finite": (_infer("FP32", [1, 2], np.full(2, np.inf, "<f4").tobytes(), model=RAISING, name="x"), INVALID),
    "malformed": (b"\x0a\xff" + bytes(1000), INVALID),
}  # fmt: skip

ADMIN_MESSAGES: dict[str, tuple[str, Message, grpc.StatusCode]] = {
    "unknown model": (f"{CLASSIFIER}GetModel", pb.GetModelRequest(model="other"), NOT_FOUND),
    "metadata of an unknown model": (f"{OPEN_INFERENCE}ModelMetadata", oip.ModelMetadataRequest(name="other"), NOT_FOUND),
    "load an unknown model": (
        f"{OPEN_INFERENCE}RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="other"), NOT_FOUND,
    ),
    "load with parameters": (
        f"{OPEN_INFERENCE}RepositoryModelLoad",
        oip.RepositoryModelLoadRequest(
            model_name="digits", parameters={"file:1/model.onnx": oip.ModelRepositoryParameter(bytes_param=bytes(100_000))}
        ),
        INVALID,
    ),
    "unload an unknown model": (
        f"{OPEN_INFERENCE}RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="other"), NOT_FOUND,
    ),
    "register shared memory, which is off": (
        f"{OPEN_INFERENCE}SystemSharedMemoryRegister",
        oip.SystemSharedMemoryRegisterRequest(name="r", key="/none", byte_size=1), UNIMPLEMENTED,
    ),
    "CUDA memory": (f"{OPEN_INFERENCE}CudaSharedMemoryStatus", oip.CudaSharedMemoryStatusRequest(), UNIMPLEMENTED),
    "unknown method": ("/convoy.v1.Classifier/Guess", pb.ClassifyRequest(model="x" * 10_000), UNIMPLEMENTED),
    "health of an unknown service": (
        "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="other"), NOT_FOUND,
    ),
}  # fmt: skip


def _json(inputs: dict[str, Any] | None = None, **members: Any) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": IMAGE, "data": [0] * 784} | (inputs or {})
    return json.dumps({"inputs": [tensor]} | members).encode()


_AS_IT_IS = {"Inference-Header-Content-Length": "0"}
_NUMBERS = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}

REST_REQUESTS: dict[str, tuple[str, bytes, dict[str, str], int]] = {
    "unknown model": ("/v2/models/other/infer", _json(), {}, 404),
    "unknown version": ("/v2/models/digits/versions/9/infer", _json(), {}, 404),
    "no such path": ("/v3/models", _json(), {}, 404),
    "not JSON": ("/v2/models/digits/infer", b"{" + bytes(10_000), {}, 400),
    "no inputs": ("/v2/models/digits/infer", b"{}", {}, 400),
    "wrong shape": ("/v2/models/digits/infer", _json({"shape": [1, 784]}), {}, 400),
    "unknown datatype": ("/v2/models/digits/infer", _json({"datatype": "FLOAT"}), {}, 400),
    "values that are not numbers": ("/v2/models/digits/infer", _json({"data": ["a"] * 784}), {}, 400),
    "too many items": ("/v2/models/full/infer", _json({"shape": [3, 28, 28, 1], "data": [0] * 3 * 784}), {}, 400),
    "too many encoded items": (
        "/v2/models/digits/infer", _json({"datatype": "BYTES", "shape": [600], "data": ["AAAA"] * 600}), {}, 400,
    ),
    "unknown parameter": ("/v2/models/digits/infer", _json(parameters={"mood": 1}), {}, 400),
    "unknown output": ("/v2/models/digits/infer", _json(outputs=[{"name": "x"}]), {}, 400),
    "unknown region of shared memory": (
        "/v2/models/digits/infer",
        b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "parameters": '
        b'{"shared_memory_region": "none"}}]}', {}, 404,
    ),
    "undecodable": ("/v2/models/digits/infer", BIG[:-30], _AS_IT_IS, 400),
    "a picture for a model of numbers": (f"/v2/models/{RAISING}/infer", SMALL, _AS_IT_IS, 400),
    "queue full": ("/v2/models/full/infer", _json(), {}, 429),
    "queue full, decoded": ("/v2/models/full/infer", BIG, _AS_IT_IS, 429),
    "late": ("/v2/models/digits/infer", _json(parameters={"timeout": 1}), {}, 504),
    "the model raises": (f"/v2/models/{RAISING}/infer", _json(_NUMBERS), {}, 500),
    "broken gzip": ("/v2/models/digits/infer", b"\x1f\x8b" + bytes(5000), {"Content-Encoding": "gzip"}, 400),
    "load an unknown model": ("/v2/repository/models/other/load", b"{}", {}, 404),
    "from another site": ("/v2/models/digits/infer", _json(), {"Sec-Fetch-Site": "cross-site"}, 403),
    "page: unknown model": ("/page/classify/other", SMALL, {}, 404),
    "page: undecodable": ("/page/classify/digits", BIG[:-30], {}, 400),
    "page: empty": ("/page/classify/digits", b"", {}, 400),
}  # fmt: skip


def _unary(path: str, message: bytes) -> Callable[[Clients], object]:
    return lambda clients: clients.call(path).future(message, timeout=60).exception().code()


def _in_stream(path: str, message: bytes, read: Callable[[bytes], object]) -> Callable[[Clients], object]:
    """One stream with one request, which is refused in its response."""

    def send(clients: Clients) -> object:
        responses = [read(response) for response in clients.stream(path)(iter([message]), timeout=60)]
        return responses[0] if len(responses) == 1 else responses

    return send


def _classify_error(response: bytes) -> int:
    return pb.ClassifyStreamResponse.FromString(response).error.code


def _infer_error(response: bytes) -> bool:
    return bool(oip.ModelStreamInferResponse.FromString(response).error_message)


def _cancelled(clients: Clients) -> object:
    call = clients.call(CLASSIFY).future(_classify("patient", [PIXELS] * 10), timeout=60)
    time.sleep(0.005)
    call.cancel()
    return call.code()


def _cancelled_stream(path: str, message: bytes) -> Callable[[Clients], object]:
    def send(clients: Clients) -> object:
        call = clients.stream(path)(iter([message] * 3), timeout=60)
        time.sleep(0.005)
        call.cancel()
        return call.code()

    return send


def _no_message(clients: Clients) -> object:
    method: Any = clients.channel.stream_unary(CLASSIFY)
    return method.future(iter([]), timeout=60).exception().code()


def _rest(path: str, body: bytes, headers: dict[str, str]) -> Callable[[Clients], object]:
    return lambda clients: clients.post(path, body, headers)


def _framed(kind: str, message: bytes) -> bytes:
    """The message of ClassifyStream for a message of Classify."""
    if kind == "malformed":
        return message
    return pb.ClassifyStreamRequest(request=pb.ClassifyRequest.FromString(message)).SerializeToString()


def _too_large(clients: Clients) -> object:
    """The length alone: the server answers and closes the connection."""
    connection = http.client.HTTPConnection(clients.http.host, clients.http.port, timeout=60)
    with closing(connection):
        connection.putrequest("POST", "/v2/models/digits/infer")
        connection.putheader("Content-Length", str(MAX_MESSAGE_BYTES + 1))
        connection.endheaders()
        return connection.getresponse().status


_VALID = _classify("patient", [PIXELS])

NO_MESSAGE = Refusal("Classify", "no message", _no_message, INVALID)
"""Only the fast transport answers it: grpc.aio waits until the deadline."""

REFUSALS = [
    *(Refusal("Classify", kind, _unary(CLASSIFY, message), code) for kind, (message, code) in CLASSIFY_MESSAGES.items()),
    Refusal("Classify", "too large", _unary(CLASSIFY, _classify("digits", [bytes(MAX_MESSAGE_BYTES)])), EXHAUSTED),
    Refusal("Classify", "cancelled", _cancelled, CANCELLED),
    *(
        Refusal("ClassifyStream", kind, _in_stream(CLASSIFY_STREAM, _framed(kind, message), _classify_error), code.value[0])
        for kind, (message, code) in CLASSIFY_MESSAGES.items()
    ),
    Refusal("ClassifyStream", "cancelled", _cancelled_stream(CLASSIFY_STREAM, _framed("", _VALID)), CANCELLED),
    *(Refusal("ModelInfer", kind, _unary(INFER, message), code) for kind, (message, code) in INFER_MESSAGES.items()),
    *(
        Refusal("ModelStreamInfer", kind, _in_stream(INFER_STREAM, message, _infer_error), True)
        for kind, (message, _) in INFER_MESSAGES.items()
    ),
    Refusal(
        "ModelStreamInfer", "cancelled", _cancelled_stream(INFER_STREAM, _infer("UINT8", IMAGE, PIXELS, model="patient")), CANCELLED
    ),
    *(
        Refusal("other methods", kind, _unary(path, message.SerializeToString()), code)
        for kind, (path, message, code) in ADMIN_MESSAGES.items()
    ),
    *(Refusal("REST", kind, _rest(path, body, headers), status) for kind, (path, body, headers, status) in REST_REQUESTS.items()),
    Refusal("REST", "too large", _too_large, 413),
]

WHEN_DRAINING = [
    Refusal("Classify", "draining", _unary(CLASSIFY, _VALID), UNAVAILABLE),
    Refusal("ClassifyStream", "draining", _in_stream(CLASSIFY_STREAM, _framed("", _VALID), _classify_error), UNAVAILABLE.value[0]),
    Refusal("ModelInfer", "draining", _unary(INFER, _infer("UINT8", IMAGE, PIXELS)), UNAVAILABLE),
    Refusal("ModelStreamInfer", "draining", _in_stream(INFER_STREAM, _infer("UINT8", IMAGE, PIXELS), _infer_error), True),
    Refusal("REST", "draining", _rest("/v2/models/digits/infer", _json(), {}), 503),
    Refusal("page", "draining", _rest("/page/classify/digits", SMALL, {}), 503),
]
"""Kinds of a server that drains."""
