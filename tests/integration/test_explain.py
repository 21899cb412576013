"""Explanations and embeddings on every surface: what they show, what is refused, and that others' requests do not notice them."""

import asyncio
import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service import Local
from service.cli.classify import classify
from service.client import AsyncClient, CallFailed, Client, Explanation
from service.config import ServerConfig
from service.engine import explain
from service.engine.answer import Answer
from service.engine.entry import Entry
from service.engine.query import Item, Query
from service.engine.queue import RequestQueue
from service.engine.quotas import Quotas
from service.engine.request import Request
from service.errors import Cancelled, InvalidRequest, QueueFull, QuotaExceeded, RequestError, UserError
from service.model.contract import METADATA_KEY, Contract, Origin, own_head
from service.model.input_spec import InputSpec
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.requests.principal import UNIX, UNKNOWN
from service.server import Server
from tests.integration.test_foreign import write as write_foreign
from tests.unit.model.foreign_graphs import save_picture_file_classifier

SIDE, PLACES = 32, 8
WEIGHTS = np.array([[4, -1, 0], [0, 3, 0], [-1, 0, 5]], np.float32)
"""Of the labels red, green and blue, by the mean of each colour."""


def write_model(path: Path, *, hidden: bool) -> None:
    """Averages of 4x4 places of each colour, 0 to 1, then global average pooling and a linear layer."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["nchw", "full"], ["scaled"]),
        helper.make_node("AveragePool", ["scaled"], ["activations"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["activations"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "weights"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("Identity", ["weights"], ["class_weights"]),
    ]
    outputs: dict[str, list[Any]] = {"probabilities": ["N", 3], "logits": ["N", 3]}
    if hidden:
        outputs |= {"activations": ["N", 3, PLACES, PLACES], "embedding": ["N", 3], "class_weights": [3, 3]}
    graph = helper.make_graph(
        nodes, "colors", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.array(255, np.float32), "full"), numpy_helper.from_array(WEIGHTS, "weights")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    contract = Contract(
        schema=2, name="colors", input=InputSpec(height=SIDE, width=SIDE, channels=3), heads=(own_head(("red", "green", "blue")),),
        precision="fp32", origin=Origin(source="colors.onnx", digest="ab"), golden=(),
        activations=(3, PLACES, PLACES) if hidden else None, embedding=3 if hidden else None,
    )  # fmt: skip
    model.metadata_props.add(key=METADATA_KEY, value=contract.to_json())
    path.parent.mkdir(parents=True)
    onnx.save_model(model, path)


def pixels() -> np.ndarray:
    """Black, with a red square at the top left and a green one, smaller, at the bottom right."""
    found = np.zeros((SIDE, SIDE, 3), np.uint8)
    found[:12, :12, 0] = 255
    found[-8:, -8:, 1] = 255
    return found


def photo() -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels()).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain") / "models"
    for name in ("open", "many"):
        write_model(folder / name / "1" / "model.onnx", hidden=True)
    for name in ("closed", "dear", "off"):
        write_model(folder / name / "1" / "model.onnx", hidden=False)
    write_model(folder / "listed" / "1" / "model.onnx", hidden=False)
    (folder / "listed" / "config.pbtxt").write_text(
        'name: "listed"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n'
        f'input [{{ name: "image" data_type: TYPE_UINT8 dims: [{SIDE}, {SIDE}, 3] }}]\n'
        'output [{ name: "probabilities" data_type: TYPE_FP32 dims: [3, 1] reshape { shape: [3] } }]\n'
    )
    (folder / "many" / "serving.toml").write_text("max_explain_items = 400\n")
    (folder / "dear" / "serving.toml").write_text("max_explain_items = 10000\nmax_batch_size = 1\n")
    (folder / "off" / "serving.toml").write_text("max_explain_items = 0\n")
    write_foreign(folder / "foreign" / "1" / "model.onnx")
    save_picture_file_classifier(folder / "decodes" / "1" / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    """One for all: nothing here depends on the transport."""
    settings = {"repository": models, "grpc_port": 0, "http_port": 0, "provider": "cpu"}
    started = Server(ServerConfig.model_validate(settings))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


def count(server: Server, name: str, **labels: str) -> float:
    """A counter, or the sum of a histogram, by its sample's name; 0 if there is none."""
    return sum(
        sample.value
        for metric in server.metrics()
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize(("model", "method"), [("open", "class_activation"), ("closed", "occlusion")])
def test_the_heat_map_shows_where_the_label_is(server: Server, client: Client, model: str, method: str) -> None:
    before = count(server, "grpc_server_handled_total", grpc_method="Explain", grpc_code="OK")
    [found] = client.explain([photo()], model)
    [[best, *_]] = client.classify([photo()], model).results
    assert found.prediction == best
    assert found.prediction.label == "red"
    assert found.method == method == client.model(model).explanation
    heat = np.asarray(found.heat)
    assert heat.shape == (SIDE, SIDE)
    assert heat.dtype == np.float32
    assert heat[3:9, 3:9].min() > 5 * np.abs(heat[16:, :8]).max(), "red is at the top left alone"
    assert heat[-6:-2, -6:-2].max() < 0, "green speaks against red"
    [other] = client.explain([photo()], model, "green")
    assert other.prediction.label == "green"
    assert np.asarray(other.heat)[-6:-2, -6:-2].min() > 0
    overlay = np.asarray(Image.open(io.BytesIO(found.overlay)).convert("RGB")).astype(int)
    scale = len(overlay) // SIDE
    red_shown, green_shown = overlay[6 * scale, 6 * scale], overlay[-4 * scale, -4 * scale]
    assert red_shown[0] > red_shown[2] + 50
    assert green_shown[2] > green_shown[0] + 10
    wait_until(lambda: count(server, "convoy_items_total", model=model) == 3)  # the explained pictures; no hidden copies
    assert count(server, "convoy_predictions_total", model=model, label="red") == 3
    batched = count(server, "convoy_batch_items_sum", model=model)
    assert batched == 3 if method == "class_activation" else 2 * 50 < batched <= 2 * 200 + 1
    assert count(server, "grpc_server_handled_total", grpc_method="Explain", grpc_code="OK") == before + 2


def test_an_asyncio_client_explains_several_at_a_time(server: Server) -> None:
    async def explain() -> list[Explanation]:
        async with AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
            return await client.explain([photo(), pixels()[:, ::-1].copy()], "many")

    found = asyncio.run(explain())
    assert [each.prediction.label for each in found] == ["red", "red"]
    np.testing.assert_allclose(np.asarray(found[0].heat), np.asarray(found[1].heat)[:, ::-1], atol=1e-5)


def test_what_cannot_be_explained_is_refused(client: Client) -> None:
    for model, label, pictures, code, field, message in (
        ("open", None, 5, "INVALID_ARGUMENT", "items", "1 to 4 are explained at a time"),
        ("open", None, 0, "INVALID_ARGUMENT", "items", "0 items"),
        ("open", "purple", 1, "INVALID_ARGUMENT", "label", "its labels are red, green, blue"),
        ("foreign", None, 1, "INVALID_ARGUMENT", "items[0]", "was not exported by Convoy"),
        ("off", None, 1, "UNIMPLEMENTED", "", "max_explain_items = 0"),
        ("none", None, 1, "NOT_FOUND", "", "none"),
    ):
        with pytest.raises(CallFailed, match=message) as refused:
            client.explain([photo()] * pictures, model, label)
        assert (refused.value.code, refused.value.field) == (code, field)
    with pytest.raises(CallFailed, match="its graph decodes picture files by itself") as refused:
        client.explain([photo()], "decodes")
    assert (refused.value.code, refused.value.field) == ("INVALID_ARGUMENT", "items[0]")
    with pytest.raises(CallFailed, match="item 1") as refused:
        client.explain([photo(), b"no picture"], "closed")
    assert (refused.value.code, refused.value.field) == ("INVALID_ARGUMENT", "items[1].encoded")
    with pytest.raises(CallFailed) as refused:
        client.explain([photo()], "dear", timeout_seconds=0.01)
    assert refused.value.code == "DEADLINE_EXCEEDED"


def test_an_explanation_ends_with_its_call(server: Server, channel: grpc.Channel) -> None:
    explain = channel.unary_unary(
        "/convoy.v1.Classifier/Explain", pb.ExplainRequest.SerializeToString, pb.ExplainResponse.FromString
    )
    request = pb.ExplainRequest(model="dear", items=[pb.Item(encoded=photo())] * 150)
    wait_until(lambda: not server._explainer._running)
    cancelled = count(server, "convoy_rejections_total", model="dear", reason="cancelled")
    before = count(server, "convoy_batch_items_sum", model="dear")
    call = explain.future(request)
    wait_until(lambda: count(server, "convoy_batch_items_sum", model="dear") > before + 150)
    call.cancel()
    wait_until(lambda: not server._explainer._running)
    assert count(server, "convoy_batch_items_sum", model="dear") < before + 9_000
    wait_until(lambda: count(server, "convoy_rejections_total", model="dear", reason="cancelled") == cancelled + 1)
    assert count(server, "convoy_inflight_requests", model="dear") == 0


def test_the_logits_need_not_be_listed(client: Client) -> None:
    """config.pbtxt says which outputs clients see, and in which shapes."""
    [listed], [closed] = client.explain([photo()], "listed"), client.explain([photo()], "closed")
    np.testing.assert_allclose(np.asarray(listed.heat), np.asarray(closed.heat), atol=1e-5)


class Outcome:
    """Of one explanation in the server's process."""

    def __init__(self, server: Server, model: str, pictures: int = 1) -> None:
        self.ended = threading.Event()
        query = Query(model, [Item(photo(), encoded=True)] * pictures)
        self.cancel = server._explainer.explain(query, "", self._respond)

    def _respond(self, outcome: Answer | RequestError, found: Sequence[Any]) -> None:
        self.outcome, self.found = outcome, list(found)
        self.ended.set()

    def wait(self) -> Answer | RequestError:
        assert self.ended.wait(30)
        return self.outcome


def test_a_call_may_be_cancelled_after_its_end(server: Server) -> None:
    explained = Outcome(server, "open")
    assert isinstance(explained.wait(), Answer)
    wait_until(lambda: not server._explainer._running)
    explained.cancel()


def test_others_have_their_turn_between_two_pictures(server: Server) -> None:
    """All drawing is one thread's, one picture at a time: an explanation that is cancelled ends after the one that is drawn."""
    threads, busy, free = server._explainer.threads, threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        free.wait(30)

    threads.submit(UNKNOWN, occupy)
    assert busy.wait(30)
    explained = Outcome(server, "many", 8)
    wait_until(lambda: bool(threads._waiting))
    threads.submit(UNIX, explained.cancel)
    free.set()
    assert isinstance(explained.wait(), Cancelled)
    assert len(explained.found) == 1


def waiting() -> int:
    """Explanations that wait for room in a queue."""
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    return sum(timer.function.__name__ == "_then" for timer in timers)


def test_a_full_queue_is_waited_for(server: Server) -> None:
    served = server._classifier.acquire("closed", "")
    filling = Entry(served.policy.max_queue_items)
    served.batcher.reserve(filling)
    try:
        explained, given_up = Outcome(server, "closed"), Outcome(server, "closed")
        wait_until(lambda: waiting() == 2)
        given_up.cancel()
        assert isinstance(given_up.wait(), Cancelled)
        assert not explained.ended.is_set()
    finally:
        served.batcher.release(filling)
        server._classifier.release(served)
    assert isinstance(explained.wait(), Answer)
    assert len(explained.found) == 1


def test_whoever_asks_is_served_before_all_explanations(server: Server) -> None:
    served = server._classifier.acquire("closed", "")
    images = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    queue = RequestQueue(100)
    try:
        policy = served.policy
        for background, query in (
            (True, Query("closed", (), deadline=time.monotonic() + 1, tensor=images)),
            (False, Query("closed", (), priority=policy.priority_levels, tensor=images)),
        ):
            entry = Request(server._classifier, served, query, lambda _: None, background=background)._entry
            queue.push(entry)
        assert [part.entry.priority for part in queue.take(100)] == [policy.priority_levels, policy.priority_levels + 1]
        with pytest.raises(InvalidRequest, match="above the lowest level"):
            Request(server._classifier, served, query._replace(priority=policy.priority_levels + 1), lambda _: None)
    finally:
        server._classifier.release(served)


def test_drawings_and_copies_count_for_quotas(server: Server) -> None:
    limits = SimpleNamespace(requests_per_second=0.0, bytes_per_second=100_000.0, burst_seconds=1.0, queue_items=0)
    for model in ("open", "closed"):
        server._classifier.quotas = Quotas(lambda _: limits, lambda: 0.0)
        try:
            assert isinstance(Outcome(server, model).wait(), Answer)
            with pytest.raises(QuotaExceeded):
                Outcome(server, model)
        finally:
            server._classifier.quotas = None
    wait_until(lambda: not server._explainer._running)


def test_an_explanation_that_finds_no_room_costs_no_quota(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = SimpleNamespace(requests_per_second=0.0, bytes_per_second=100_000.0, burst_seconds=1.0, queue_items=0)
    monkeypatch.setattr(server._classifier, "quotas", Quotas(lambda _: limits, lambda: 0.0))
    with monkeypatch.context() as full:
        full.setattr(explain, "RUNNING", 0)
        for _ in range(3):
            with pytest.raises(QueueFull, match="explanations are being made"):
                Outcome(server, "closed")
    assert isinstance(Outcome(server, "closed").wait(), Answer)
    with pytest.raises(QuotaExceeded):
        Outcome(server, "closed")
    wait_until(lambda: not server._explainer._running)


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


def wait_until(true: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(3000):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come")


def test_the_page_gets_the_picture(server: Server) -> None:
    url = f"http://127.0.0.1:{server.http_port}"
    with urllib.request.urlopen(f"{url}/page/explain/open", photo(), timeout=20) as response:
        found = json.loads(response.read())
    assert (found["label"], found["method"]) == ("red", "class_activation")
    assert found["overlay"].startswith("data:image/png;base64,")
    with urllib.request.urlopen(f"{url}/page/models", timeout=20) as response:
        listed = {each["name"]: each["versions"][0]["explains"] for each in json.loads(response.read())["models"]}
    assert listed == {
        "open": "class_activation", "many": "class_activation", "closed": "occlusion", "dear": "occlusion", "off": None,
        "foreign": None, "listed": "occlusion", "decodes": None,
    }  # fmt: skip


def test_embeddings_are_for_those_who_ask(client: Client) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3)).astype(np.uint8)
    plain, asked = client.classify(images, "open"), client.classify(images, "open", embeddings=True)
    assert plain.embeddings == []
    assert plain.results == asked.results
    np.testing.assert_allclose(np.stack(asked.embeddings), images.mean((1, 2)) / 255, rtol=1e-5)
    assert client.model("open").embedding_size == 3
    assert client.model("closed").embedding_size == 0
    with pytest.raises(CallFailed, match="gives no embeddings: export or import it with --embeddings") as refused:
        client.classify(images, "closed", embeddings=True)
    assert (refused.value.code, refused.value.field) == ("INVALID_ARGUMENT", "embeddings")


def test_each_of_many_images_has_its_embedding(server: Server, models: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, SIDE, SIDE, 3)).astype(np.uint8)
    images[7] = 0
    batches = [images[:40], images[40:]]

    async def over_asyncio() -> tuple[list[Any], dict[int, Any]]:
        async with AsyncClient(f"127.0.0.1:{server.grpc_port}") as client:
            many = [each.answer async for each in client.classify_many(images, "open", embeddings=True)]
            return many, {number: answer async for number, answer in client.classify_stream(batches, "open", embeddings=True)}

    found: list[tuple[list[Any], dict[int, Any]]] = [asyncio.run(over_asyncio())]
    with Client(f"127.0.0.1:{server.grpc_port}") as client, Local(models / "open", cpus=1) as local:
        for asked in (client, local):
            answered: list[Any] = [each.answer for each in asked.classify_many(images, "open", embeddings=True)]
            found.append((answered, dict(asked.classify_stream(batches, "open", embeddings=True))))
            assert [each.answer.embeddings for each in asked.classify_many(images[:2], "open")] == [[], []]  # type: ignore[union-attr]
    for many, streamed in found:
        for answers in (many, [streamed[0], streamed[1]]):
            rows = np.concatenate([each.embeddings for each in answers])
            np.testing.assert_allclose(rows, images.mean((1, 2)) / 255, rtol=1e-5)


def test_the_command_needs_no_server(models: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(photo())
    words = [str(tmp_path / "1.png"), "--model-file", str(models / "open"), "--explain", str(tmp_path / "why")]
    done = CliRunner().invoke(classify, words, standalone_mode=False)
    assert done.exception is None
    assert "1.png  red  " in done.stdout
    [written] = (tmp_path / "why").iterdir()
    assert written.read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_a_picture_for_each(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    out = folder / "why"
    for name in ("a/1.png", "b/1.png", "b/broken.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no picture" if "broken" in name else photo())
    words = [str(folder), "--model", "open", "--server", f"127.0.0.1:{server.grpc_port}", "--explain", str(out)]
    done = CliRunner().invoke(classify, words, standalone_mode=False)
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "1 of 3 images could not be classified"
    assert "broken.png: " in done.stderr
    assert done.stdout.count("  red  ") == 2
    written = sorted(out.iterdir())
    assert len(written) == 2
    assert [str(each) in done.stdout for each in written] == [True, True]
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in written)
    CliRunner().invoke(classify, words)
    assert sorted(out.iterdir()) == written, "a second run has made the same pictures"
    refused = CliRunner().invoke(classify, [*words, "--top-k", "2"], standalone_mode=False)
    assert "leave out --top-k" in str(refused.exception)
    for path in (out, next(out.iterdir())):
        itself = CliRunner().invoke(classify, [str(path), *words[1:]], standalone_mode=False)
        assert "choose another folder" in str(itself.exception)
    absent = CliRunner().invoke(classify, [*words[:2], "absent", *words[3:]], standalone_mode=False)
    assert isinstance(absent.exception, UserError)
    assert "NOT_FOUND" in str(absent.exception)
