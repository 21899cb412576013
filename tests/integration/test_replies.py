"""Replies that cannot be written, on every surface of a real server: one request fails, once in the metrics, and no other."""

import http.client
import json
import pkgutil
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families

from export.data.datasets import Dataset
from service.errors import InvalidRequest, ModelFailed
from service.model.contract import METADATA_KEY, Contract, Training, own_head
from service.model.input_spec import InputSpec
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.rpc.wire import ClassifyResponseWriter, ModelInferResponseWriter
from service.server import Server
from tests.conftest import Serve

Outcome = tuple[str, str]
"""A gRPC code or an HTTP status, and the message of an error."""

OK = ("OK", "")
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
REGION_BYTES = 64


class Surface(ABC):
    """Sends requests of one image each, one after the other, over one connection or stream."""

    writer: str | type
    """What writes its replies: a function of the server, or a class of which each version keeps one in its cache.

    Those classes may be compiled, and then nothing can be put in place of their methods.
    """

    @abstractmethod
    def ask(self, server: Server, model: str, images: list[bytes], **options: Any) -> Iterator[Outcome]:
        """The outcome of each request, in order."""


class Classify(Surface):
    writer = ClassifyResponseWriter

    def ask(self, server: Server, model: str, images: list[bytes], **options: Any) -> Iterator[Outcome]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call: Any = channel.unary_unary(
                "/convoy.v1.Classifier/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
            )
            for image in images:
                yield outcome(partial(call, classify_request(model, image), timeout=20))


class ClassifyStream(Surface):
    writer = ClassifyResponseWriter

    def ask(self, server: Server, model: str, images: list[bytes], **options: Any) -> Iterator[Outcome]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call: Any = channel.stream_stream(
                "/convoy.v1.Classifier/ClassifyStream",
                pb.ClassifyStreamRequest.SerializeToString,
                pb.ClassifyStreamResponse.FromString,
            )
            requests = [pb.ClassifyStreamRequest(request=classify_request(model, image)) for image in images]
            for response in call(iter(requests), timeout=20):
                error = response.error
                yield (CODES[error.code], error.message) if response.HasField("error") else OK


class Infer(Surface):
    writer = ModelInferResponseWriter

    def ask(self, server: Server, model: str, images: list[bytes], **options: Any) -> Iterator[Outcome]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call: Any = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                oip.ModelInferRequest.SerializeToString,
                oip.ModelInferResponse.FromString,
            )
            for image in images:
                yield outcome(partial(call, infer_request(model, image, **options), timeout=20))


class InferStream(Surface):
    writer = ModelInferResponseWriter

    def ask(self, server: Server, model: str, images: list[bytes], **options: Any) -> Iterator[Outcome]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call: Any = channel.stream_stream(
                "/inference.GRPCInferenceService/ModelStreamInfer",
                oip.ModelInferRequest.SerializeToString,
                oip.ModelStreamInferResponse.FromString,
            )
            for response in call(iter([infer_request(model, image, **options) for image in images]), timeout=20):
                yield ("", response.error_message) if response.error_message else OK


class Rest(Surface):
    writer = "service.http.rest:select_outputs"

    def ask(self, server: Server, model: str, images: list[bytes], **options: Any) -> Iterator[Outcome]:
        document: dict[str, Any] = {}
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        if options:
            document["outputs"] = [{"name": "probabilities", "parameters": options}]
        requests = []
        for image in images:
            binary = struct.pack("<I", len(image)) + image
            inputs = [tensor | {"parameters": {"binary_data_size": len(binary)}}]
            head = json.dumps(document | {"inputs": inputs}).encode()
            requests.append((f"/v2/models/{model}/infer", head + binary, {"Inference-Header-Content-Length": str(len(head))}))
        yield from over_http(server, requests)


class Page(Surface):
    writer = "service.engine.classifier:Classifier.decode"

    def ask(self, server: Server, model: str, images: list[bytes], **options: Any) -> Iterator[Outcome]:
        yield from over_http(server, [(f"/page/classify/{model}", image, {}) for image in images])


SURFACES = [Classify(), ClassifyStream(), Infer(), InferStream(), Rest(), Page()]


def named(surfaces: list[Surface]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("surface", surfaces, ids=[type(each).__name__ for each in surfaces])


def outcome(call: Callable[[], object]) -> Outcome:
    try:
        call()
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code().name, failed.details()
    return OK


def over_http(server: Server, requests: list[tuple[str, bytes, dict[str, str]]]) -> Iterator[Outcome]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    try:
        for path, body, headers in requests:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            content = response.read()
            yield OK if response.status == 200 else (str(response.status), json.loads(content)["error"])
    finally:
        connection.close()


def classify_request(model: str, image: bytes) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, items=[pb.Item(encoded=image)])


def infer_request(model: str, image: bytes, **options: Any) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    request = oip.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[struct.pack("<I", len(image)) + image]
    )  # fmt: skip
    if options:
        output = request.outputs.add(name="probabilities")
        for name, value in options.items():
            output.parameters[name].CopyFrom(
                oip.InferParameter(string_param=value) if isinstance(value, str) else oip.InferParameter(int64_param=value)
            )
    return request


def counted(server: Server, model: str, answered: int, failed: dict[str, int]) -> None:
    """Waits until so many requests are counted as answered, and checks all other counts then."""
    deadline = time.monotonic() + 10
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
        connection.request("GET", f"/v2/models/{model}/stats")
        [statistics] = json.loads(connection.getresponse().read())["model_stats"]
        connection.request("GET", "/metrics")
        exposed = connection.getresponse().read().decode()
        connection.close()
        found = statistics["inference_stats"]
        if found["success"]["count"] == answered or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert found["success"]["count"] == statistics["inference_count"] == answered
    assert {reason: total["count"] for reason, total in found["fail_by_reason"].items()} == failed
    assert found["fail"]["count"] == sum(failed.values())
    rejections = {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        if sample.name == "convoy_rejections_total" and sample.labels["model"] == model and sample.value
    }
    assert rejections == failed


class FailingOnce:
    """A key that has the hash of another: the first look-up of the other meets it, and fails.

    A dict of a class of its own would not do: compiled code asks such a one as if it were a dict.
    """

    def __init__(self, other: type, error: Exception) -> None:
        self._hash = hash(other)
        self._errors = [error]

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self._errors:
            raise self._errors.pop()
        return self is other


def fail_once(monkeypatch: pytest.MonkeyPatch, writer: str, error: Exception) -> None:
    """Makes the next call of a function raise."""
    original = pkgutil.resolve_name(writer)
    errors = [error]

    def write(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return original(*arguments)

    monkeypatch.setattr(writer.replace(":", "."), write)


class Unwritable(InvalidRequest):
    """Listed in no table of statuses."""


ERRORS = {
    "a bug": (RuntimeError("/secret/path"), "INTERNAL", "500", "internal error; see the server's log", "failed"),
    "an error of the model": (ModelFailed("no answer"), "INTERNAL", "500", "no answer", "failed"),
    "a subclass": (Unwritable("not this output", "outputs[0]"), "INVALID_ARGUMENT", "400", "not this output", "invalid"),
}


def as_seen_on(surface: Surface, code: str, status: str, message: str) -> Outcome:
    if isinstance(surface, InferStream):
        return "", message  # the protocol has no code there
    return (status if isinstance(surface, Rest | Page) else code), message


@named(SURFACES)
@pytest.mark.parametrize("name", ERRORS)
def test_a_reply_that_cannot_be_written_fails_one_request(
    surface: Surface, name: str, server: Server, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, code, status, message, reason = ERRORS[name]
    images = [digits.test.encoded(index) for index in range(3)]
    if isinstance(surface.writer, str):
        fail_once(monkeypatch, surface.writer, error)
    else:
        server._repository.served["digits"][0].cache[FailingOnce(surface.writer, error)] = None  # type: ignore[index]
    found = list(surface.ask(server, "digits", images))
    assert sorted(found) == sorted([as_seen_on(surface, code, status, message), OK, OK])
    counted(server, "digits", answered=2, failed={reason: 1})


@pytest.fixture
def nan_server(tmp_path: Path, serve: Serve) -> Server:
    """A server of a model with a contract, whose scores are NaN for bright images and numbers for dark ones."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "rows"], ["flat"]),
        helper.make_node("Sub", ["half", "flat"], ["difference"]),
        helper.make_node("Sqrt", ["difference"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes, "nan", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, 2, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("probabilities", "logits")],
        [numpy_helper.from_array(np.array([-1, 2]), "rows"), numpy_helper.from_array(np.array(128, np.float32), "half")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    contract = Contract(
        schema=2, name="nan", input=InputSpec(height=1, width=2, channels=1), heads=(own_head(("a", "b")),),
        precision="fp32", training=Training(data="none", network="none", epochs=0, seed=0), golden=(),
    )  # fmt: skip
    model.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    path = tmp_path / "models" / "nan" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save_model(model, path)
    return serve(tmp_path / "models")


def pgm(pixels: bytes) -> bytes:
    """A file of 1 x 2 gray pixels."""
    return b"P5 2 1 255\n" + pixels


@named([Classify(), ClassifyStream(), Rest(), Page()])
def test_nan_scores_fail_one_request(surface: Surface, nan_server: Server) -> None:
    bright, dark = pgm(bytes([255, 200])), pgm(bytes([100, 50]))
    found = sorted(surface.ask(nan_server, "nan", [bright, dark, dark]))
    message = "model 'nan' gave NaN for this request"
    if isinstance(surface, Rest):
        message = "the model gave NaN or infinity, for which JSON has no number: ask for binary data"
    assert found == sorted([as_seen_on(surface, "INTERNAL", "500", message), OK, OK])
    counted(nan_server, "nan", answered=2, failed={"failed": 1})


@named([Infer(), InferStream()])
def test_binary_scores_may_be_nan(surface: Surface, nan_server: Server) -> None:
    assert list(surface.ask(nan_server, "nan", [pgm(bytes([255, 200])), pgm(bytes([100, 50]))])) == [OK, OK]
    counted(nan_server, "nan", answered=2, failed={})


@pytest.fixture
def server(repository: Path, serve: Serve) -> Server:
    """A server of `repository`, in this process, with shared memory."""
    return serve(repository, shared_memory_prefix=("convoy-test-",))


@pytest.fixture
def region(server: Server) -> Iterator[str]:
    """The name of a region of shared memory of REGION_BYTES."""
    path = Path(f"/dev/shm/convoy-test-{server.grpc_port}")
    path.write_bytes(bytes(REGION_BYTES))
    server.control.register("region", f"/{path.name}", 0, REGION_BYTES)
    yield "region"
    path.unlink()


@named([Infer(), InferStream(), Rest()])
def test_no_room_in_shared_memory_fails_one_request(surface: Surface, server: Server, digits: Dataset, region: str) -> None:
    image = digits.test.encoded(0)
    # How long labels are is known when they are written.
    options = {"classification": 1, "shared_memory_region": region}
    [failed] = surface.ask(server, "digits", [image], **options, shared_memory_byte_size=3)
    assert failed[1].startswith("output 'probabilities' has ")
    assert failed[0] == as_seen_on(surface, "INVALID_ARGUMENT", "400", "")[0]
    counted(server, "digits", answered=0, failed={"invalid": 1})
    assert list(surface.ask(server, "digits", [image], **options, shared_memory_byte_size=REGION_BYTES)) == [OK]
    counted(server, "digits", answered=1, failed={"invalid": 1})
