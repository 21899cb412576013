"""ONNX files that Convoy did not write: served by tensor, as their graphs say."""

import http.client
import json
import platform
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from service.engine import registry
from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import Query
from service.engine.repository import Repository
from service.errors import InvalidModel, InvalidRequest, RequestError
from service.model.loading import load_model
from service.observability.metrics import Metrics
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.server import Server
from tests.conftest import Serve, Spawn
from tests.integration.test_classify import classify_on, refused
from tests.integration.test_edges import samples
from tests.unit.model import foreign_graphs, graphs


@pytest.fixture
def transport_name() -> str:
    """What a model's file holds is nothing to a transport: once is enough."""
    return "fast"


FLOAT, UINT8, INT64, BOOL = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL
WEIGHT = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def write(
    path: Path, kind: int = FLOAT, shape: tuple[str | int, ...] = ("N", 3, 2, 2), column: bool = False,
    weight: NDArray[np.float32] = WEIGHT,
) -> Path:  # fmt: skip
    """A linear classifier of 12 numbers an item into 3 classes, with the features as a second output, given first."""
    nodes = [
        helper.make_node("Cast", ["data"], ["numbers"], to=FLOAT),
        helper.make_node("Reshape", ["numbers", "rows"], ["flat"]),
        helper.make_node("Reshape", ["numbers", "grid"], ["features"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Reshape", ["product", "scores_shape"], ["scores"]),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "rows": np.array([-1, 12]), "grid": np.array([-1, 3, 4]), "weight": weight,
        "scores_shape": np.array([-1, 3, 1, 1] if column else [-1, 3]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "foreign", [helper.make_tensor_value_info("data", kind, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("features", "scores")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def expected(items: NDArray[np.generic]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = items.reshape(len(items), 12).astype(np.float32) @ WEIGHT
    return scores


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_a_batch_of_any_size_is_answered_whatever_size_the_graph_takes(tmp_path: Path, batch: str | int) -> None:
    loaded = load_model(write(tmp_path / "model.onnx", shape=(batch, 3, 2, 2)), "cpu", 1)
    assert (str(loaded.input), loaded.input.name) == ("float32 3 x 2 x 2", "data")
    assert [(output.name, output.shape) for output in loaded.outputs] == [("scores", (3,)), ("features", (3, 4))]
    assert loaded.labels == ("0", "1", "2")
    items = np.random.default_rng(1).normal(size=(6, 3, 2, 2)).astype(np.float32)
    scores, features = loaded.predict(items)
    np.testing.assert_allclose(scores, expected(items), rtol=1e-5)
    np.testing.assert_array_equal(features, items.reshape(6, 3, 4))
    assert not loaded.has_contract
    with pytest.raises(InvalidModel, match="no contract: Convoy did not write this file"):
        _ = loaded.contract


def test_a_tensor_query_is_answered_with_every_output_and_labels_from_the_file(tmp_path: Path) -> None:
    write(tmp_path / "foreign" / "1" / "model.onnx", column=True)
    (tmp_path / "foreign" / "labels.txt").write_text("cat\ndog\ncow\n\n")
    metrics = Metrics(CollectorRegistry())
    repository = Repository(tmp_path, "cpu", metrics)
    repository.start()
    classifier = Classifier(repository, metrics)
    items = np.random.default_rng(2).normal(size=(5, 3, 2, 2)).astype(np.float32)
    answers: list[Answer | RequestError] = []
    classifier.classify(Query("foreign", (), tensor=items), answers.append)
    classifier.pump()
    [answer] = answers
    assert isinstance(answer, Answer)
    assert answer.served.model.labels == ("cat", "dog", "cow")
    assert answer.outputs["scores"].shape == (5, 3, 1, 1)
    np.testing.assert_allclose(answer.scores, expected(items), rtol=1e-5)
    assert [row[0][0] for row in answer.best()] == expected(items).argmax(axis=1).tolist()
    for wrong, message in (
        (items.astype(np.float64), "the tensor's items are float64 3 x 2 x 2; the model takes float32 3 x 2 x 2"),
        (items[:, :2], "items are float32 2 x 2 x 2"),
        (items[:0], "no items"),
        (np.zeros((513, 3, 2, 2), np.float32), "513 items; at most 512"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            classifier.classify(Query("foreign", (), tensor=wrong), answers.append)
    assert classifier.drain(1)
    classifier.close()
    repository.stop()


def test_pixels_go_where_the_graph_takes_pictures_and_everything_else_is_told_to_send_tensors(tmp_path: Path, serve: Serve) -> None:
    write(tmp_path / "pictures" / "1" / "model.onnx", UINT8, ("N", 2, 2, 3))
    write(tmp_path / "floats" / "1" / "model.onnx")
    server = serve(tmp_path)
    picture = np.arange(12, dtype=np.uint8)
    pixels = [pb.Item(pixels=picture.tobytes())]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = classify_on(channel)
        [found] = stub(pb.ClassifyRequest(model="pictures", items=pixels), timeout=10).results
        assert [p.index for p in found.predictions] == np.argsort(-expected(picture[np.newaxis])[0]).tolist()
        assert [p.score for p in found.predictions] == pytest.approx(sorted(expected(picture[np.newaxis])[0], reverse=True))
        assert {p.probability for p in found.predictions} == {0}, "scores are no probabilities"
        code, message, field = refused(stub, pb.ClassifyRequest(model="pictures", items=[*pixels, pb.Item(encoded=b"png")]))
        assert (code, field) == ("INVALID_ARGUMENT", "items[1].encoded")
        assert message == (
            "model 'pictures' was not exported by Convoy and takes no picture files: nothing says how one becomes its input "
            "'data', uint8 2 x 2 x 3. Send it raw pixels of exactly that shape, or tensors over the Open Inference Protocol; "
            "`convoy import FILE --repository DIR --name NAME --resize stretch:2x2` makes a model of it that does"
        )
        code, message, field = refused(stub, pb.ClassifyRequest(model="floats", items=pixels))
        assert (code, field) == ("INVALID_ARGUMENT", "items[0].pixels")
        assert message == (
            "model 'floats' was not exported by Convoy and takes no pictures: nothing says how one becomes its input 'data', "
            "float32 3 x 2 x 2. Send it tensors over the Open Inference Protocol; `convoy import FILE --repository DIR --name NAME "
            "--preset torchvision|timm|keras|caffe` (or --resize stretch:2x2 --scale 255 ...) makes a model of it that does"
        )
        assert "4 bytes of pixels; the model takes 12" in refused(
            stub, pb.ClassifyRequest(model="pictures", items=[pb.Item(pixels=b"1234")])
        )[1]  # fmt: skip
    found = samples(server)
    assert found["convoy_items_total", "pictures", "1"] == 1
    assert found["convoy_confidence_count", "pictures", "1"] == 0, "a foreign score is no probability"


def test_a_picture_of_which_the_model_says_nan_has_no_labels(tmp_path: Path, serve: Serve) -> None:
    write(tmp_path / "broken" / "1" / "model.onnx", UINT8, ("N", 2, 2, 3), weight=np.full_like(WEIGHT, np.nan))
    server = serve(tmp_path)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = pb.ClassifyRequest(model="broken", items=[pb.Item(pixels=bytes(12))])
        assert refused(classify_on(channel), request) == ("INTERNAL", "model 'broken' gave NaN for this request", "")
    assert samples(server)["convoy_rejections_total", "broken", "failed"] == 1
    assert sum(value for key, value in samples(server).items() if key[0] == "convoy_predictions_total") == 0


def test_one_nan_among_scores_leaves_no_order(tmp_path: Path, serve: Serve) -> None:
    weight = WEIGHT.copy()
    weight[:, 1] = np.nan
    write(tmp_path / "partly" / "1" / "model.onnx", UINT8, ("N", 2, 2, 3), weight=weight)
    server = serve(tmp_path)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = pb.ClassifyRequest(model="partly", items=[pb.Item(pixels=bytes(range(12)))])
        assert refused(classify_on(channel), request)[:2] == ("INTERNAL", "model 'partly' gave NaN for this request")


def infer_over_http(server: Server, model: str, items: NDArray[np.floating], *, binary: bool = True) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the response; the input is binary or JSON, the outputs are JSON."""
    tensor: dict[str, Any] = {"name": "data", "datatype": "FP32", "shape": list(items.shape)}
    data = items.tobytes() if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(data)}} if binary else {"data": items.ravel().tolist()}
    head = json.dumps({"inputs": [tensor]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port)
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    connection.request("POST", f"/v2/models/{model}/infer", head + data, headers)
    response = connection.getresponse()
    try:
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def infer_request(model: str, items: NDArray[np.float32], *, typed: bool = False) -> oip.ModelInferRequest:
    data = oip.ModelInferRequest.InferInputTensor(name="data", datatype="FP32", shape=items.shape)
    if typed:
        data.contents.fp32_contents.extend(items.ravel().tolist())
    return oip.ModelInferRequest(model_name=model, inputs=[data], raw_input_contents=[] if typed else [items.tobytes()])


def infer_on(channel: grpc.Channel) -> Callable[[oip.ModelInferRequest], oip.ModelInferResponse]:
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
    )
    return lambda request: infer(request, timeout=10)


NOT_FINITE = "input 'data' holds NaN or infinite values, and the model gave no numbers for them"


def failures(server: Server, model: str) -> dict[str, float]:
    """How many requests were refused, by reason, and how many responses of the HTTP port say that the server failed."""
    found = samples(server)
    counted = {key[2]: value for key, value in found.items() if key[:2] == ("convoy_rejections_total", model) and value}
    errors = sum(
        value for key, value in found.items() if key[0] == "http_server_request_duration_seconds_count" and "500" in key
    )  # fmt: skip
    return counted | ({"500": errors} if errors else {})


def test_a_score_that_is_no_number_is_no_json_and_at_fault_is_the_input_that_is_none(tmp_path: Path, serve: Serve) -> None:
    write(tmp_path / "floats" / "1" / "model.onnx")
    write(tmp_path / "broken" / "1" / "model.onnx", weight=np.full_like(WEIGHT, np.nan))
    write(tmp_path / "huge" / "1" / "model.onnx", weight=np.full_like(WEIGHT, 3e38))
    server = serve(tmp_path)
    ones = np.ones((1, 3, 2, 2), np.float32)
    assert infer_over_http(server, "floats", ones)[0] == 200
    for value in (np.nan, np.inf, -np.inf):
        items = ones.copy()
        items[0, 1, 0, 1] = value
        assert infer_over_http(server, "floats", items) == (400, {"error": NOT_FINITE})
    status, body = infer_over_http(server, "floats", np.full((1, 3, 2, 2), 1e39), binary=False)
    assert (status, body) == (400, {"error": NOT_FINITE}), "beyond FP32"
    assert failures(server, "floats") == {"invalid": 4}
    # The model's own failure, whatever the size of the input.
    for model in ("broken", "huge"):
        status, body = infer_over_http(server, model, ones)
        assert status == 500
        assert body["error"].startswith("the model gave NaN or infinity, for which JSON has no number")
        assert failures(server, model)["failed"] == 1
    # Bytes have a form for NaN.
    items = np.full((1, 3, 2, 2), np.nan, np.float32)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for typed in (False, True):
            response = infer_on(channel)(infer_request("floats", items, typed=typed))
            scores = (
                response.outputs[0].contents.fp32_contents if typed else np.frombuffer(response.raw_output_contents[0], np.float32)
            )
            assert np.isnan(scores).any()
    found = samples(server)
    assert found["convoy_items_total", "floats", "1"] == 3
    assert sum(value for key, value in found.items() if key[0] == "convoy_predictions_total") == 1


def write_lookup(path: Path) -> Path:
    """A model that looks its scores up in a table of two rows, by its input: any but 0 and 1 makes it raise."""
    nodes = [
        helper.make_node("Cast", ["data"], ["row"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["row", "axis"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(np.array([[1, 2, 3], [3, 2, 1]], np.float32), "table"),
    ]
    graph = helper.make_graph(
        nodes, "lookup", [helper.make_tensor_value_info("data", FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", 3])], constants,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_a_model_that_raises_on_nan_refuses_it_on_every_surface(tmp_path: Path, serve: Serve) -> None:
    write_lookup(tmp_path / "lookup" / "1" / "model.onnx")
    server = serve(tmp_path)
    nan, seven, one = (np.array([[value]], np.float32) for value in (np.nan, 7, 1))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = infer_on(channel)
        for typed in (False, True):
            with pytest.raises(grpc.RpcError) as caught:
                infer(infer_request("lookup", nan, typed=typed))
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, NOT_FINITE)
        with pytest.raises(grpc.RpcError) as caught:
            infer(infer_request("lookup", seven))
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "model 'lookup' failed on this request")
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer", oip.ModelInferRequest.SerializeToString,
            oip.ModelStreamInferResponse.FromString,
        )  # fmt: skip
        said = [answer.error_message for answer in stream(iter([infer_request("lookup", x) for x in (nan, one)]), timeout=10)]
        assert said == [NOT_FINITE, ""]
        assert infer(infer_request("lookup", one)).outputs[0].shape == [1, 3]
    assert infer_over_http(server, "lookup", nan) == (400, {"error": NOT_FINITE})
    assert infer_over_http(server, "lookup", seven)[0] == 500
    assert failures(server, "lookup") == {"invalid": 4, "failed": 2, "500": 1}


def test_nan_in_a_batch_hurts_only_its_own_request(tmp_path: Path) -> None:
    write(tmp_path / "linear" / "1" / "model.onnx")
    write_lookup(tmp_path / "lookup" / "1" / "model.onnx")
    metrics = Metrics(CollectorRegistry())
    repository = Repository(tmp_path, "cpu", metrics)
    repository.start()
    classifier = Classifier(repository, metrics)
    good = np.random.default_rng(3).normal(size=(2, 3, 2, 2)).astype(np.float32)
    for model, tensors in (
        ("linear", [good, np.full_like(good, np.nan), good[:1]]),
        ("lookup", [np.array([[x]], np.float32) for x in (0, np.nan, 1)]),
    ):
        outcomes: dict[int, Answer | RequestError] = {}
        for index, tensor in enumerate(tensors):
            classifier.classify(Query(model, (), tensor=tensor), partial(outcomes.__setitem__, index))
        while len(outcomes) < len(tensors):
            classifier.pump()
        for index in (0, 2):
            answer = outcomes[index]
            assert isinstance(answer, Answer)
            assert np.isfinite(answer.scores).all()
        assert isinstance(outcomes[1], Answer if model == "linear" else InvalidRequest)
    assert classifier.drain(5)
    classifier.close()
    repository.stop()


def test_a_model_that_takes_nan_for_a_missing_value_answers(tmp_path: Path, serve: Serve) -> None:
    nodes = [
        helper.make_node("IsNaN", ["data"], ["missing"]),
        helper.make_node("Where", ["missing", "instead", "data"], ["known"]),
        helper.make_node("Softmax", ["known"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "missing", [helper.make_tensor_value_info("data", FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", 3])], [numpy_helper.from_array(np.array(5, np.float32), "instead")],
    )  # fmt: skip
    path = tmp_path / "missing" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    server = serve(tmp_path)
    status, body = infer_over_http(server, "missing", np.array([[np.nan, 0, 0]], np.float32))
    assert status == 200
    assert body["outputs"][0]["data"][0] > 0.9
    assert failures(server, "missing") == {}


def test_what_cannot_be_served_by_tensor_says_why(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for kind, shape, message in (
        (TensorProto.INT64, ("N", 3, 2, 2), r"takes tensor\(int64\) 'data'; float16, float32, float64 and uint8 are accepted"),
        (FLOAT, ("N", 3, "H", 2), "every dimension but the first, of the batch, must be there and be fixed"),
        (FLOAT, (12,), "every dimension but the first"),
        (FLOAT, ("N", 5), "the graph fails on a batch of 1, all zeros: .* cannot be reshaped"),
        (FLOAT, ("N", 24), r"the graph gives '\w+' \(2, .*\) for a batch of 1; one row an item is accepted"),
    ):
        with pytest.raises(InvalidModel, match=message):
            load_model(write(path, kind, shape), "cpu", 1)
    with pytest.raises(InvalidModel, match=r"labels\.txt has 2 labels; the graph gives 3 classes in 'scores'"):
        load_model(write(path), "cpu", 1, ("cat", "dog"))


def write_loop(path: Path) -> None:
    """A model whose one loop goes round as often as the input's largest number says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["again"], ["more"]), helper.make_node("Abs", ["sum"], ["next"])], "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("round", INT64), ("again", BOOL), ("sum", FLOAT))],
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("more", BOOL), ("next", FLOAT))],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["data"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "", "most"], ["last"], body=body),
        helper.make_node("Add", ["data", "last"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "loop", [helper.make_tensor_value_info("data", FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", 2])],
    )  # fmt: skip
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def go_round(channel: grpc.Channel, rounds: float, timeout_seconds: float) -> list[float]:
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
    )
    data = oip.ModelInferRequest.InferInputTensor(name="data", datatype="FP32", shape=[1, 2])
    items = np.array([[0, rounds]], np.float32).tobytes()
    request = oip.ModelInferRequest(model_name="loop", inputs=[data], raw_input_contents=[items])
    return list(np.frombuffer(infer(request, timeout=timeout_seconds).raw_output_contents[0], np.float32))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_takes_denormal_numbers_for_zero(workers: str, tmp_path: Path, spawn: Spawn) -> None:
    graphs.write(
        tmp_path / "models" / "half" / "1" / "model.onnx", [graphs.node("Mul", "x half", "y")], {"y": FLOAT},
        {"half": np.float32(0.5)},
    )  # fmt: skip
    server = spawn(tmp_path / "models", "--workers", workers)
    x = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    items = np.array([[2e-38, -2e-38, 4e-38, 1]], np.float32).tobytes()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
        )
        answer = infer(oip.ModelInferRequest(model_name="half", inputs=[x], raw_input_contents=[items]), timeout=30)
    halves = np.frombuffer(answer.raw_output_contents[0], np.float32)
    kept = platform.machine() != "x86_64"
    np.testing.assert_array_equal(halves, np.array([1e-38 * kept, -1e-38 * kept, 2e-38, 0.5], np.float32))


def test_a_model_that_never_ends_cannot_keep_the_server(tmp_path: Path, spawn: Spawn) -> None:
    write_loop(tmp_path / "models" / "loop" / "1" / "model.onnx")
    server = spawn(tmp_path / "models", "--drain-seconds", "0.2")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        assert go_round(channel, 5, 10) == [5, 10]
        with pytest.raises(grpc.RpcError) as refused:
            go_round(channel, 1e18, 0.5)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 1
    assert "perhaps because a model is still computing: exiting at once" in server.log.read_text()


def test_a_model_that_holds_up_all_calls_is_told_by_livez(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "STUCK_SECONDS", 0.2)
    write_loop(tmp_path / "loop" / "1" / "model.onnx")
    server = serve(tmp_path)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel, ThreadPoolExecutor() as pool:
        start = time.monotonic()
        go_round(channel, 2000, 60)  # what is quick enough to run on the transport's thread again
        rounds = 2000 / (time.monotonic() - start)
        assert live(server) == (200, "ok\n")
        going = pool.submit(go_round, channel, 2 * rounds, 60)
        seen = set()
        while not going.done():
            seen.add(live(server))
        going.result()
        assert (503, "model 'loop' blocks the gRPC thread: a batch has been running for over 0.2 s\n") in seen
        assert live(server) == (200, "ok\n")


def live(server: Server) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/livez", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_classification_is_offered_on_every_output_of_one_number_a_class(tmp_path: Path, serve: Serve) -> None:
    foreign_graphs.two_heads(tmp_path / "heads" / "1" / "model.onnx")
    (tmp_path / "heads" / "serving.toml").write_text('[labels]\nshape = ["round", "square"]\n')
    foreign_graphs.sigmoid_unit(tmp_path / "unit" / "1" / "model.onnx")
    (tmp_path / "unit" / "labels.txt").write_text("cat\ndog")
    foreign_graphs.features_first(tmp_path / "features" / "1" / "model.onnx")
    server = serve(tmp_path)
    picture = np.ones((1, 3, 8, 8), np.float32)

    def best(model: str, output: str) -> list[str]:
        """`value:index:label` of each class, without the value."""
        asked = {"name": output, "parameters": {"classification": 9}}
        given = {"name": "x", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": picture.ravel().tolist()}
        body = json.dumps({"inputs": [given], "outputs": [asked]}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/v2/models/{model}/infer", body, 10) as response:
            return sorted(text.partition(":")[2] for text in json.load(response)["outputs"][0]["data"])

    assert best("heads", "shape") == ["0:round", "1:square"]
    assert best("heads", "color") == ["0:0", "1:1", "2:2", "3:3", "4:4"]
    assert best("unit", "p") == ["0:cat", "1:dog"]
    assert best("features", "features") == ["0", "1", "2"], "nobody has named these"
    status, said = post(server, "features", b"\xff\xd8\xff\xe0 a photograph")
    assert status == 400
    assert said.startswith(
        "model 'features' was not exported by Convoy and takes no pictures: nothing says how one becomes its input"
    )
    assert "--name NAME --preset torchvision|timm|keras|caffe` (or --resize stretch:8x8 " in said
    assert "has 5 bytes" in post(server, "features", b"12345")[1]


def post(server: Server, model: str, content: bytes) -> tuple[int, str]:
    """Status and error of a request whose body is the input alone."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port)
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    connection.request("POST", f"/v2/models/{model}/infer", content, headers)
    response = connection.getresponse()
    try:
        return response.status, json.loads(response.read())["error"]
    finally:
        connection.close()


def test_what_the_scores_are_is_said(tmp_path: Path, serve: Serve) -> None:
    said = {
        "unknown": (foreign_graphs.uint8_logits, "", ("", "unknown")),
        "logits": (foreign_graphs.uint8_logits, 'scores = "logits"', ("softmax", "logits")),
        "each": (foreign_graphs.uint8_logits, 'scores = "multilabel"', ("multilabel", "logits")),
        "unit": (foreign_graphs.sigmoid_unit, 'scores = "sigmoid"', ("sigmoid", "probabilities")),
        "found": (foreign_graphs.old_ir, "", ("softmax", "probabilities")),
    }
    for name, (write_graph, policy, _) in said.items():
        write_graph(tmp_path / name / "1" / "model.onnx")
        (tmp_path / name / "serving.toml").write_text(policy)
    server = serve(tmp_path)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/page/models", timeout=10) as response:
        on_page = {model["name"]: model["versions"][0] for model in json.load(response)["models"]}
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        get: Any = channel.unary_unary(
            "/convoy.v1.Classifier/GetModel", pb.GetModelRequest.SerializeToString, pb.GetModelResponse.FromString
        )
        infos = {name: get(pb.GetModelRequest(model=name), timeout=20) for name in said}
    for name, (_, _, expected) in said.items():
        info = infos[name]
        [head] = info.heads
        assert (head.activation, head.scores) == expected, name
        assert (head.output, list(head.labels)) == (info.outputs[0].name, list(info.labels)), name
        assert (on_page[name]["activation"], on_page[name]["scores"]) == expected, name
        assert on_page[name]["labels_are_numbers"] == (info.labels[0] == "0"), name
