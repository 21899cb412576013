"""A model with several heads, of unrounded pixels, on every surface that answers pictures."""

import hashlib
import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.cli.classify import classify
from service.client import CallFailed, Classification, Client
from service.errors import GoldenMismatch
from service.model.contract import METADATA_KEY, Contract, Golden, Head, Origin
from service.model.input_spec import InputSpec
from service.model.loading import load_model
from service.server import Server
from tests.conftest import Serve

BRIGHT = Head(name="brightness", output="probabilities", labels=("dark", "bright"), activation="sigmoid")
COLORS = Head(name="colors", output="colors", labels=("red", "green", "blue"), activation="multilabel", threshold=0.75)


def write_model(path: Path, golden: tuple[Golden, ...] = ()) -> None:
    """Two heads of a picture of 4x4: its brightness, and for each colour whether it is there, as its mean / 255."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "sides"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "full"], ["colors"]),
        helper.make_node("ReduceMean", ["colors", "last"], ["p"], keepdims=1),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"], ["probabilities"], axis=1),
        helper.make_node("Log", ["probabilities"], ["logits"]),
    ]
    outputs = {"probabilities": 2, "logits": 2, "colors": 3}
    graph = helper.make_graph(
        nodes, "two", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in outputs.items()],
        [
            numpy_helper.from_array(np.array([1, 2]), "sides"), numpy_helper.from_array(np.array([1]), "last"),
            numpy_helper.from_array(np.array(255, np.float32), "full"), numpy_helper.from_array(np.array(1, np.float32), "one"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    contract = Contract(
        schema=2, name="two", input=InputSpec(height=4, width=4, channels=3, dtype="float32"), heads=(BRIGHT, COLORS),
        precision="fp32", origin=Origin(source="two.onnx", digest="ab"), golden=golden,
    )  # fmt: skip
    model.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    path.parent.mkdir(parents=True)
    onnx.save_model(model, path)


@pytest.fixture
def server(tmp_path: Path, serve: Serve) -> Server:
    write_model(tmp_path / "models" / "two" / "1" / "model.onnx")
    return serve(tmp_path / "models")


def picture(*color: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(content, "PNG")
    return content.getvalue()


def post(server: Server, path: str, body: bytes) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}{path}", body, timeout=20) as response:
        return json.loads(response.read())


def test_a_multilabel_model_that_gives_nan_for_one_label_fails(tmp_path: Path, serve: Serve) -> None:
    """With NaN among them the others are in no order."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "sides"], ["means"], keepdims=0),
        helper.make_node("Sub", ["means", "hundred"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["logits"]),
        helper.make_node("Identity", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes, "nan", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("probabilities", "logits")],
        [numpy_helper.from_array(np.array([1, 2]), "sides"), numpy_helper.from_array(np.array(100, np.float32), "hundred")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    contract = Contract(
        schema=2, name="nan", input=InputSpec(height=4, width=4, channels=3, dtype="float32"),
        heads=(COLORS.model_copy(update={"output": "probabilities"}),), precision="fp32",
        origin=Origin(source="nan.onnx", digest="ab"), golden=(),
    )  # fmt: skip
    model.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    path = tmp_path / "models" / "nan" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save_model(model, path)
    server = serve(tmp_path / "models")
    pixels = np.full((1, 4, 4, 3), (120, 80, 110), np.uint8)
    with Client(f"127.0.0.1:{server.grpc_port}") as client, pytest.raises(CallFailed, match=r"INTERNAL.*gave NaN"):
        client.classify(pixels, "nan", top_k=1)
    body = {
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 4, 4, 3], "data": pixels.ravel().tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}],
    }
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, "/v2/models/nan/infer", json.dumps(body).encode())
    assert (refused.value.code, b"NaN" in refused.value.read()) == (500, True)


def test_every_head_answers(server: Server) -> None:
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        answer = client.classify([picture(255, 204, 51), picture(0, 0, 0)], "two")
        [raw] = client.classify(np.full((1, 4, 4, 3), 51, np.uint8), "two").results
        [(_, streamed)] = client.classify_stream([[picture(0, 51, 0)]], "two")
        info = client.model("two")
    found = [[(p.label, p.index, round(p.probability, 4)) for p in each] for each in answer.results]
    assert found == [[("bright", 1, 0.6667), ("dark", 0, 0.3333)], [("dark", 0, 1.0), ("bright", 1, 0.0)]]
    first, second = ([(p.label, round(p.probability, 4)) for p in each] for each in answer.heads["colors"])
    assert first == [("red", 1.0), ("green", 0.8), ("blue", 0.2)]
    assert [probability for _, probability in second] == [0, 0, 0]
    assert (list(answer.heads), answer.thresholds) == (["colors"], {"colors": 0.75})
    assert [(p.label, round(p.probability, 4)) for p in raw] == [("dark", 0.8), ("bright", 0.2)]
    assert isinstance(streamed, Classification)
    assert streamed.heads["colors"][0][0].label == "green"
    assert {head["scores"] for head in info.heads} == {"probabilities"}
    assert [(head["name"], head["labels"]) for head in info.heads] == [
        ("brightness", ["dark", "bright"]), ("colors", ["red", "green", "blue"])
    ]  # fmt: skip
    assert info.contract is not None
    assert (info.contract["origin"]["source"], info.input.dtype) == ("two.onnx", "float32")
    assert "threshold" not in info.heads[0]


def test_convoy_classify_marks_what_is_true(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture(255, 204, 51))
    asked = [str(file), "--model", "two", "--server", f"127.0.0.1:{server.grpc_port}"]
    shown = CliRunner().invoke(classify, asked).stdout
    assert [line.split()[:2] for line in shown.splitlines()[4:]] == [["✓", "red"], ["✓", "green"], ["blue", "20.00%"]]
    found = json.loads(CliRunner().invoke(classify, [*asked, "--json"]).stdout)
    assert (found["thresholds"], found["heads"]["colors"][0]["label"]) == ({"colors": 0.75}, "red")


def test_the_page_shows_every_head(server: Server) -> None:
    answer = post(server, "/page/classify/two", picture(255, 204, 51))
    [head] = answer["heads"]
    assert answer["head"] == BRIGHT.name
    assert (head["name"], head["threshold"], [p["label"] for p in head["predictions"]]) == (
        "colors",
        0.75,
        ["red", "green", "blue"],
    )


def test_the_outputs_of_every_head_are_tensors(server: Server) -> None:
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 4, 4, 3], "data": [51.0] * 48}]}
    answer = post(server, "/v2/models/two/infer", json.dumps(body).encode())
    assert {output["name"]: output["shape"] for output in answer["outputs"]} == {
        "probabilities": [1, 2], "logits": [1, 2], "colors": [1, 3]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"probabilities": ((0.5, 0.5), (1.0, 0.8, 0.2))}, "largest difference 0.17"),
        ({"probabilities": ((1 / 3, 2 / 3), (1.0, 0.8, 0.3))}, "largest difference 0.1"),
        ({"pixels_sha256": "0" * 64}, "other pixels"),
    ],
)
def test_a_golden_sample_proves_every_head_and_the_pixels(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    pixels = np.full((4, 4, 3), (255, 204, 51), np.float32)
    right = {
        "image": picture(255, 204, 51),
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "probabilities": ((1 / 3, 2 / 3), (1.0, 0.8, 0.2)),
        "tolerance": {"cpu": 1e-4},
    }
    path = tmp_path / "1" / "model.onnx"
    write_model(path, (Golden.model_construct(**(right | change)),))
    if message:
        with pytest.raises(GoldenMismatch, match=message):
            load_model(path, "cpu", 1)
    else:
        assert load_model(path, "cpu", 1).heads == (BRIGHT, COLORS)
