"""A Triton repository, served as it stands and asked as Triton is."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.pb.inference import open_inference_pb2 as pb
from service.server import Server
from tests.conftest import Serve
from tests.integration.test_repository import eventually
from tests.unit.triton import configs

pytestmark = pytest.mark.usefixtures("settings_taken_at_once")

SIDE, CLASSES = 4, 10
WEIGHT = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, CLASSES)).astype(np.float32)
SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
def transport_name() -> str:
    """What a model's files say is nothing to a transport: once is enough."""
    return "fast"


def shrunk(config: str) -> str:
    """For pictures of 4 x 4 and ten classes."""
    return config.replace("224", str(SIDE)).replace("1000", str(CLASSES))


def write(
    path: Path, taken: str, given: str, *, batch: str | int = "N", column: bool = False, side: str | int = SIDE, second: str = ""
) -> None:
    """A classifier of pictures, float32[N,3,4,4], that gives scores as [N,10] or [N,10,1,1]; `second` are those of 3 channels."""
    shape = (-1, CLASSES, 1, 1) if column else (-1, CLASSES)
    nodes = [
        helper.make_node("Reshape", [taken, "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], [given]),
        *([helper.make_node("ReduceMean", [taken, "axes"], [second], keepdims=0)] if second else []),
    ]
    constants = {"rows": np.array([-1, WEIGHT.shape[0]]), "weight": WEIGHT, "shape": np.array(shape), "axes": np.array([2, 3])}
    graph = helper.make_graph(
        nodes, "triton", [helper.make_tensor_value_info(taken, TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (second, given) if name],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Public classifiers, small, as their Triton repositories have them."""
    folder = tmp_path / "models"
    write(folder / "densenet" / "1" / "model.onnx", "data_0", "fc6_1", batch=1, column=True)
    (folder / "densenet" / "densenet_labels.txt").write_text("\n".join(f"class {index}" for index in range(CLASSES)))
    for version in (1, 2, 3):
        write(folder / "resnet" / str(version) / "resnet50.onnx", "input", "output")
    (folder / "resnet" / "labels.txt").write_text("\n".join(f"kind {index}" for index in range(CLASSES)))
    write(folder / "mobilenet" / "1" / "model.onnx", "input", "output")
    write(folder / "two_heads" / "1" / "model.onnx", "input", "article", side="S", second="color")
    (folder / "two_heads" / "colors.txt").write_text("red\ngreen\nblue\n")
    (folder / "two_heads" / "articles.txt").write_text("\n".join(f"article {index}" for index in range(CLASSES)))
    write(folder / "on_tensorrt" / "1" / "model.onnx", "input", "output")
    write(folder / "yolo_cls" / "1" / "model.onnx", "images", "output0", batch=1)
    (folder / "ensemble").mkdir(parents=True)  # a clone has no empty folders
    (folder / "python" / "1").mkdir(parents=True)
    (folder / "python" / "1" / "model.py").write_text("raise SystemExit")
    given = {
        "densenet": configs.DENSENET, "resnet": configs.RESNET, "mobilenet": configs.MOBILENET, "yolo_cls": configs.YOLO_CLS,
        "ensemble": configs.ENSEMBLE, "python": configs.PYTHON, "on_tensorrt": configs.MOBILENET, "two_heads": configs.TWO_HEADS,
    }  # fmt: skip
    for name, config in given.items():
        (folder / name / "config.pbtxt").write_text(shrunk(config))
    (folder / "mobilenet" / "serving.toml").write_text('provider = "cpu"\n')  # its config names TensorRT
    return folder


@pytest.fixture
def triton(models: Path, serve: Serve) -> Iterator[tuple[Server, grpc.Channel]]:
    server = serve(models)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield server, channel


def call(channel: grpc.Channel, method: str, request: Any, response: Any) -> Any:
    ask = channel.unary_unary(SERVICE + method, type(request).SerializeToString, response.FromString)
    return ask(request, timeout=30)


def infer(
    channel: grpc.Channel, model: str, name: str, items: NDArray[np.float32], output: str = "", classes: int = 0
) -> tuple[list[int], bytes]:
    """Shape and bytes of the first output."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[items.tobytes()])
    request.inputs.add(name=name, datatype="FP32", shape=items.shape)
    if output:
        request.outputs.add(name=output).parameters["classification"].int64_param = classes
    response = call(channel, "ModelInfer", request, pb.ModelInferResponse)
    return list(response.outputs[0].shape), response.raw_output_contents[0]


def test_every_model_answers_in_the_shapes_of_its_config(triton: tuple[Server, grpc.Channel]) -> None:
    server, channel = triton
    items = np.random.default_rng(1).random((2, 3, SIDE, SIDE)).astype(np.float32)
    expected = items.reshape(2, -1) @ WEIGHT
    for model, name, sent, shape in (
        ("densenet", "data_0", items[0], [CLASSES]),
        ("resnet", "input", items, [2, CLASSES]),
        ("mobilenet", "input", items, [2, CLASSES]),
        ("yolo_cls", "images", items[:1], [1, CLASSES]),
    ):
        given, content = infer(channel, model, name, sent)
        assert given == shape, model
        np.testing.assert_allclose(np.frombuffer(content, np.float32), expected[: len(content) // 4 // CLASSES].ravel(), rtol=1e-4)
        metadata = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name=model), pb.ModelMetadataResponse)
        assert [abs(size) for size in metadata.inputs[0].shape] == [1, *sent.shape[1:]] if shape[0] != CLASSES else [*sent.shape]
        with pytest.raises(grpc.RpcError) as refused:
            infer(channel, model, name, sent[..., :2])
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    best = int(expected[0].argmax())
    assert infer(channel, "densenet", "data_0", items[0], "fc6_1", 2)[0] == [2]
    assert infer(channel, "densenet", "data_0", items[0], "fc6_1", 1)[1][4:].decode().endswith(f":{best}:class {best}")
    assert infer(channel, "resnet", "input", items, "output", 1)[1][4:].decode().split(":", 1)[1].startswith(f"{best}:kind {best}")
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port)
    body = {"inputs": [{"name": "data_0", "datatype": "FP32", "shape": list(items[0].shape), "data": items[0].tolist()}]}
    connection.request("POST", "/v2/models/densenet/infer", json.dumps(body))
    [output] = json.loads(connection.getresponse().read())["outputs"]
    connection.close()
    assert output["shape"] == [CLASSES]
    np.testing.assert_allclose(output["data"], expected[0], rtol=1e-4)


def test_each_output_has_the_labels_of_its_file_and_the_config_fixes_what_the_graph_leaves_open(
    triton: tuple[Server, grpc.Channel],
) -> None:
    server, channel = triton
    items = np.zeros((1, 3, SIDE, SIDE), np.float32)
    items[0, 1] = 1
    assert infer(channel, "two_heads", "input", items, "color", 1)[1][4:] == b"1.000000:1:green"
    best = int((items.reshape(1, -1) @ WEIGHT).argmax())
    assert infer(channel, "two_heads", "input", items, "article", 1)[1].endswith(f":{best}:article {best}".encode())
    assert server._repository.served["two_heads"][0].model.labels[0] == "article 0", "of the first output that has labels"


def test_what_is_served_and_why_others_are_not_is_told(models: Path, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = serve(models)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check_what_is_told(channel)
    assert "model resnet: config.pbtxt: not used: parameters.execution_mode, parameters.intra_op_thread_count" in caplog.text
    assert "repository: " not in caplog.text, "nothing is misplaced"
    server._repository.scan()
    assert caplog.text.count("model ensemble is not served anew: ensemble/config.pbtxt: it is an ensemble") == 1


def check_what_is_told(channel: grpc.Channel) -> None:
    index = call(channel, "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse).models
    ready = [(model.name, model.version) for model in index if model.state == "READY"]
    assert ready == [("densenet", "1"), ("mobilenet", "1"), ("resnet", "1"), ("resnet", "3"), ("two_heads", "1"), ("yolo_cls", "1")]
    versions = {model.name: model.version for model in index if model.state != "READY"}
    assert versions == {"ensemble": "", "on_tensorrt": "1", "python": "1", "resnet": "2"}
    reasons = {model.name: model.reason for model in index if model.state != "READY"}
    assert reasons == {
        "ensemble": "ensemble/config.pbtxt: it is an ensemble (`convoy import` makes a model that takes pictures itself), which "
        "Convoy does not serve",
        "on_tensorrt": "provider 'tensorrt' is not in the installed ONNX Runtime, which has cpu (cuda and tensorrt need Convoy's "
        "extra 'gpu' instead of 'cpu'); config.pbtxt names it as an accelerator: provider = \"auto\" in serving.toml takes what "
        "there is",
        "python": "python/config.pbtxt: backend 'python': Convoy serves ONNX models; accepted is onnxruntime",
        "resnet": "nothing asks for it to be served",
    }
    config = call(channel, "ModelConfig", pb.ModelConfigRequest(name="densenet"), pb.ModelConfigResponse).config
    assert (config.max_batch_size, list(config.input[0].dims), list(config.input[0].reshape.shape)) == (
        0, [3, SIDE, SIDE], [1, 3, SIDE, SIDE],
    )  # fmt: skip
    assert (config.output[0].label_filename, list(config.output[0].dims)) == ("densenet_labels.txt", [CLASSES])
    config = call(channel, "ModelConfig", pb.ModelConfigRequest(name="resnet"), pb.ModelConfigResponse).config
    assert (config.max_batch_size, config.default_model_filename, config.instance_group[0].count) == (128, "resnet50.onnx", 2)
    assert list(config.version_policy.specific.versions) == [1, 3]
    config = call(channel, "ModelConfig", pb.ModelConfigRequest(name="mobilenet"), pb.ModelConfigResponse).config
    batching = config.dynamic_batching
    assert (config.max_batch_size, batching.max_queue_delay_microseconds, batching.priority_levels) == (32, 2000, 3)
    assert batching.default_queue_policy.default_timeout_microseconds == 500000


def test_a_changed_config_is_noticed_and_a_broken_one_takes_nothing_away(models: Path, triton: tuple[Server, grpc.Channel]) -> None:
    _, channel = triton
    items = np.zeros((2, 3, SIDE, SIDE), np.float32)

    def ask_config() -> Any:
        return call(channel, "ModelConfig", pb.ModelConfigRequest(name="resnet"), pb.ModelConfigResponse).config

    path = models / "resnet" / "config.pbtxt"
    path.write_text(shrunk(configs.RESNET).replace("max_batch_size: 128", "max_batch_size: 16").replace("[ 1, 3 ]", "[ 2 ]"))
    eventually(lambda: (ask_config().max_batch_size, list(ask_config().version_policy.specific.versions)) == (16, [2]))
    path.write_text("max_batch_size: many")

    def reasons() -> str:
        index = call(channel, "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse).models
        return " ".join(model.reason for model in index if model.name == "resnet")

    eventually(lambda: "resnet/config.pbtxt: line 1: Couldn't parse integer: many" in reasons())
    assert infer(channel, "resnet", "input", items)[0] == [2, CLASSES]
    path.write_text(shrunk(configs.RESNET).replace("dims: 3 dims", "dims: 1 dims"))
    eventually(lambda: "config.pbtxt: input 'input' has dims [1, 4, 4]; in the graph it is [3, 4, 4] an item" in reasons())
    assert infer(channel, "resnet", "input", items)[0] == [2, CLASSES]


def test_a_priority_level_has_the_timeout_of_its_queue_policy(tmp_path: Path, serve: Serve) -> None:
    write(tmp_path / "levels" / "1" / "model.onnx", "input", "output")
    (tmp_path / "levels" / "config.pbtxt").write_text(
        "max_batch_size: 8 dynamic_batching { priority_levels: 2 "
        "priority_queue_policy { key: 1 value { default_timeout_microseconds: 1 } } }"
    )
    server = serve(tmp_path)
    request = pb.ModelInferRequest(model_name="levels", raw_input_contents=[np.ones((1, 3, SIDE, SIDE), np.float32).tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 3, SIDE, SIDE])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert call(channel, "ModelInfer", request, pb.ModelInferResponse).model_version == "1", "the lowest level is the default"
        request.parameters["priority"].int64_param = 1
        with pytest.raises(grpc.RpcError) as late:
            call(channel, "ModelInfer", request, pb.ModelInferResponse)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        request.parameters["timeout"].int64_param = 20_000_000
        assert call(channel, "ModelInfer", request, pb.ModelInferResponse).model_version == "1", "a request may set its own"
        config = call(channel, "ModelConfig", pb.ModelConfigRequest(name="levels"), pb.ModelConfigResponse).config
    assert config.dynamic_batching.priority_queue_policy[1].default_timeout_microseconds == 1
