"""No answer of a server says where its files are: every way in which a version can fail to load, on every surface."""

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper

from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from tests.conftest import Serve
from tests.integration.test_repository import eventually


@pytest.fixture
def transport_name() -> str:
    """The messages are the same on both: once is enough."""
    return "fast"


def write_model(path: Path, weights: str = "", nodes: list[onnx.NodeProto] | None = None) -> None:
    """float32[N,2] to scores of two classes, with `weights` in a file of that name."""
    path.parent.mkdir(parents=True)
    values = [onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")]
    [x, scores] = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "scores")]
    graph = helper.make_graph(nodes or [helper.make_node("MatMul", ["x", "w"], ["scores"])], "m", [x], [scores], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path, save_as_external_data=bool(weights), location=weights or None, size_threshold=0)


def external_constant() -> list[onnx.NodeProto]:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1, 2], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "w.bin"
    return [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["x", "c"], ["scores"])]


def replaced(folder: Path, how: Callable[[Path], object]) -> None:
    """A version whose file of weights is replaced by something else."""
    write_model(folder / "1" / "model.onnx", "w.bin")
    weights = folder / "1" / "w.bin"
    weights.unlink()
    how(weights)


def no_model(folder: Path, how: Callable[[Path], object]) -> None:
    """A version with something else in the place of its model file."""
    (folder / "1").mkdir(parents=True)
    how(folder / "1" / "model.onnx")


def beside(folder: Path, name: str, content: bytes | None) -> None:
    """A version with a file beside it, or a folder."""
    write_model(folder / "1" / "model.onnx")
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)


WARMUP = b"model_warmup { inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 input_data_file: 'none' } } }"

BROKEN: dict[str, Callable[[Path], object]] = {
    "junk": lambda folder: no_model(folder, lambda path: path.write_bytes(b"nonsense")),
    "empty": lambda folder: no_model(folder, lambda path: path.write_bytes(b"")),
    "folder": lambda folder: no_model(folder, lambda path: path.mkdir()),
    "broken-link": lambda folder: no_model(folder, lambda path: path.symlink_to(path.parent.absolute() / "nothing")),
    "loop": lambda folder: no_model(folder, lambda path: path.symlink_to(path)),
    "no-weights": lambda folder: replaced(folder, lambda path: None),
    "short-weights": lambda folder: replaced(folder, lambda path: path.write_bytes(b"1")),
    "folder-weights": lambda folder: replaced(folder, lambda path: path.mkdir()),
    "link-weights": lambda folder: replaced(folder, lambda path: path.symlink_to("/etc/hostname")),
    "loop-weights": lambda folder: replaced(folder, lambda path: path.symlink_to(path)),
    "constant": lambda folder: write_model(folder / "1" / "model.onnx", nodes=external_constant()),
    "operator": lambda folder: write_model(folder / "1" / "model.onnx", nodes=[helper.make_node("Nope", ["x"], ["scores"])]),
    "raises": lambda folder: write_model(
        folder / "1" / "model.onnx",
        nodes=[helper.make_node("Cast", ["w"], ["s"], to=TensorProto.INT64), helper.make_node("Expand", ["x", "s"], ["scores"])],
    ),
    "policy": lambda folder: beside(folder, "serving.toml", b"x = ["),
    "policy-key": lambda folder: beside(folder, "serving.toml", b"x = 1"),
    "policy-utf16": lambda folder: beside(folder, "serving.toml", "x = 1".encode("utf-16")),
    "policy-folder": lambda folder: beside(folder, "serving.toml", None),
    "policy-versions": lambda folder: beside(folder, "serving.toml", b'versions = "1,7"'),
    "config": lambda folder: beside(folder, "config.pbtxt", b"x: ["),
    "config-folder": lambda folder: beside(folder, "config.pbtxt", None),
    "config-shape": lambda folder: beside(folder, "config.pbtxt", b"max_batch_size: 8 output { name: 'y' dims: 2 }"),
    "config-labels": lambda folder: beside(
        folder, "config.pbtxt", b"output { name: 'scores' data_type: TYPE_FP32 dims: [-1, 2] label_filename: 'none' }"
    ),
    "config-warmup": lambda folder: beside(folder, "config.pbtxt", WARMUP),
    "provider": lambda folder: beside(folder, "serving.toml", b'provider = "tensorrt"'),
    "labels": lambda folder: beside(folder, "labels.txt", b"one"),
    "labels-folder": lambda folder: beside(folder, "labels.txt", None),
    "no-version": lambda folder: write_model(folder / "v1" / "model.onnx"),
}


def test_no_answer_has_the_path_of_the_repository(repository: Path, serve: Serve) -> None:
    for name, make in BROKEN.items():
        make(repository / name)
    server = serve(repository)
    answers: list[str] = []

    def ask(method: str, path: str, body: str | None = None) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=120)
        connection.request(method, path, body)
        answers.append(connection.getresponse().read().decode())
        connection.close()
        return answers[-1]

    def call(method: str, request: Message) -> None:
        try:
            answers.append(str(ask_grpc(method)(request.SerializeToString(), timeout=120)))
        except grpc.RpcError as error:
            answers.append(f"{error.details()} {error.trailing_metadata()}")

    eventually(lambda: "LOADING" not in ask("POST", "/v2/repository/index", "{}"))
    failed = {each["name"] for each in json.loads(answers[-1]) if each["reason"]}
    assert failed >= set(BROKEN) - {"broken-link", "loop", "no-version"}, answers[-1]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        ask_grpc: Callable[..., Any] = channel.unary_unary
        for name in (*BROKEN, "digits", "nothing"):
            ask("POST", f"/v2/repository/models/{name}/load", "{}")
            ask("POST", f"/v2/models/{name}/infer", "{}")
            for path in ("", "/ready", "/config", "/stats"):
                ask("GET", f"/v2/models/{name}{path}")
            call("/inference.GRPCInferenceService/RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=name))
            call("/inference.GRPCInferenceService/ModelConfig", oip.ModelConfigRequest(name=name))
            call("/convoy.v1.Classifier/GetModel", pb.GetModelRequest(model=name))
        call("/inference.GRPCInferenceService/RepositoryIndex", oip.RepositoryIndexRequest())
        call("/convoy.v1.Classifier/ListModels", pb.ListModelsRequest())
    for path in ("/v2", "/metrics", "/page/models", "/v2/models", "/readyz", "/livez"):
        ask("GET", path)
    assert len(answers) > 10 * len(BROKEN)
    told = [answer for answer in answers if str(repository) in answer or str(repository.parent) in answer]
    assert told == []
