"""Versions that come and go while requests are in hand, for long."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.data.datasets import Dataset
from service.client import CallFailed, Client
from service.pb.inference import open_inference_pb2 as oip
from tests.conftest import Serve, Spawn, put
from tests.integration.test_edges import samples
from tests.integration.test_repository import BROKEN, eventually


@pytest.fixture
def transport_name() -> str:
    """Versions are chosen behind the transport: once is enough."""
    return "fast"


SWAPS = 20


def put_labelled(model_file: Path, repository: Path, version: int, spoil: Callable[[Path], object] = lambda path: None) -> None:
    """Puts a version there whose labels say which it is, so that no other's answer can be taken for its own."""
    model = onnx.load(model_file)
    contract = json.loads(model.metadata_props[0].value)
    head = contract["heads"][0]
    head["labels"] = [f"{version}/{label}" for label in head["labels"]]
    model.metadata_props[0].value = json.dumps(contract)
    staging = repository.parent / f"version-{version}.onnx"
    onnx.save(model, staging)
    spoil(staging)  # before it can be noticed
    put(staging, repository, "digits", version)


def test_twenty_swaps_under_load_with_broken_versions_between_them_fail_no_request(
    tmp_path: Path, model_file: Path, serve: Serve, digits: Dataset
) -> None:
    repository = tmp_path / "models"
    put_labelled(model_file, repository, 1)
    server = serve(repository)
    stop = threading.Event()
    answers: Counter[tuple[str, str]] = Counter()
    failures: list[CallFailed] = []

    def load(pixels: bool) -> None:
        image = digits.test.pixels[0] if pixels else digits.test.encoded(0)
        with Client(f"127.0.0.1:{server.grpc_port}") as client:
            while not stop.wait(0.002):
                try:
                    answer = client.classify([image] * 3, "digits")
                except CallFailed as error:
                    failures.append(error)
                    continue
                for result in answer.results:
                    answers[answer.version, result[0].label] += 1

    clients = [threading.Thread(target=load, args=(index % 2 == 0,)) for index in range(3)]
    for thread in clients:
        thread.start()
    names = list(BROKEN)
    good = [1]
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        for swap in range(SWAPS):
            bad, best = 2 * swap + 2, 2 * swap + 3
            name = names[swap % len(names)]
            put_labelled(model_file, repository, bad, BROKEN[name][0])
            server._repository.scan()
            reasons = {entry.version: entry.reason for entry in server._repository.index() if entry.state == "UNAVAILABLE"}
            assert BROKEN[name][2] in reasons[bad]
            assert client.classify([digits.test.encoded(0)], "digits").version == str(good[-1]), "the old version stays"
            put_labelled(model_file, repository, best)
            server._repository.scan()
            good.append(best)
            assert client.classify([digits.test.encoded(0)], "digits").version == str(best)
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    assert len({label.split("/")[1] for _, label in answers}) == 1, "the same picture has the same answer"
    assert all(label.startswith(f"{version}/") for version, label in answers), "no answer is half of one version, half of another"
    assert {int(version) for version, _ in answers} <= set(good)
    found = samples(server)
    assert found["convoy_model_loads_total", "digits", "ready"] == SWAPS + 1
    bad_loads = [
        value for key, value in found.items() if key[0] == "convoy_model_loads_total" and key[2] in ("invalid", "golden_mismatch")
    ]
    assert sum(bad_loads) == SWAPS
    assert len([key for key in found if key[0] == "convoy_model_info"]) == 1


SOAK = """
import gc, sys, time
from pathlib import Path
from prometheus_client import CollectorRegistry
from service.engine.classifier import Classifier
from service.engine.query import Item, Query
from service.observability.metrics import Metrics
from service.engine.repository import Repository

def resident_kilobytes():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

metrics = Metrics(CollectorRegistry())
repository = Repository(Path(sys.argv[1]), "cpu", metrics)
repository.start()
gc.collect(); gc.freeze()  # as the server does
classifier = Classifier(repository, metrics)
answers = []
for cycle in range(50):
    for _ in range(20):
        classifier.classify(Query("digits", [Item(bytes(784), False)] * 8), answers.append)
        while classifier.pump() == float("-inf"):
            pass
    repository.wait_until_idle(10)
    assert len(answers) == 20 and not any(isinstance(answer, Exception) for answer in answers), answers
    del answers[:]
    repository.unload("digits")
    time.sleep(0.05)  # its thread ends by itself
    print(resident_kilobytes())
    repository.load("digits")
repository.stop()
classifier.close()
"""


@pytest.mark.slow
def test_fifty_cycles_of_load_and_unload_leave_nothing_behind(repository: Path) -> None:
    result = subprocess.run([sys.executable, "-c", SOAK, str(repository)], capture_output=True, text=True, timeout=170, check=False)
    assert result.returncode == 0, result.stderr
    resident = [int(line) for line in result.stdout.split()]
    assert len(resident) == 50
    # The first cycles fill the allocators' own stores.
    assert max(resident[40:]) - max(resident[5:15]) < 20_000, resident


ROWS = 1 << 20
TABLES = ("first", "second")


def write_tables(folder: Path, value: float, order: tuple[str, ...] = ("model.onnx", *TABLES)) -> None:
    """A model whose three scores are `value`: one in the ONNX file, two in tables of 4 MiB, each in a file of its own beside it.

    The files are written in this order, in place, as `cp` does.
    """
    nodes = [
        helper.make_node("Cast", ["row"], ["index"], to=TensorProto.INT64),
        *(helper.make_node("Gather", [table, "index"], [f"of {table}"]) for table in TABLES),
        helper.make_node("Mul", ["row", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "value"], ["of graph"]),
        helper.make_node("Concat", ["of graph", *(f"of {table}" for table in TABLES)], ["scores"], axis=1),
    ]
    constants = {"zero": np.zeros(1, np.float32), "value": np.full(1, value, np.float32)}
    tensors = [numpy_helper.from_array(constant, name) for name, constant in constants.items()]
    for table in TABLES:
        tensor = TensorProto(name=table, dims=[ROWS], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=table)
        tensors.append(tensor)
    graph = helper.make_graph(
        nodes, "tables", [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content = dict.fromkeys(TABLES, np.full(ROWS, value, np.float32).tobytes()) | {"model.onnx": model.SerializeToString()}
    folder.mkdir(parents=True, exist_ok=True)
    for name in order:
        (folder / name).write_bytes(content[name])


def scores_of(channel: grpc.Channel, row: int) -> set[float]:
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
    )
    data = oip.ModelInferRequest.InferInputTensor(name="row", datatype="FP32", shape=[1, 1])
    request = oip.ModelInferRequest(
        model_name="tables", inputs=[data], raw_input_contents=[np.array([[row]], np.float32).tobytes()]
    )
    return set(np.frombuffer(infer(request, timeout=30).raw_output_contents[0], np.float32).tolist())


def test_weights_overwritten_in_place_under_load_are_answered_from_one_version_at_a_time(tmp_path: Path, spawn: Spawn) -> None:
    """ONNX Runtime by itself maps them: truncating a mapped file ends the process, and writing into it changes the answers."""
    folder = tmp_path / "models" / "tables" / "1"
    write_tables(folder, 1)
    server = spawn(tmp_path / "models")
    stop = threading.Event()
    answers: list[set[float]] = []
    failures: list[grpc.RpcError] = []

    def load(channel: grpc.Channel) -> None:
        while not stop.wait(0.002):
            try:
                answers.append(scores_of(channel, len(answers) * 4999 % ROWS))
            except grpc.RpcError as error:
                failures.append(error)

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        eventually(lambda: server.process.poll() is not None or scores_of(channel, 0) == {1})
        clients = [threading.Thread(target=load, args=(channel,)) for _ in range(2)]
        for thread in clients:
            thread.start()
        for value in range(2, 32):
            write_tables(folder, value, (("model.onnx", *TABLES), (*TABLES, "model.onnx"))[value % 2])
        eventually(lambda: server.process.poll() is not None or answers[-1] == {31})
        os.truncate(folder / "first", 1000)  # served on from memory
        message = "weights file 'first' has 1000 bytes, the graph needs 4194304"
        eventually(lambda: server.process.poll() is not None or message in server.log.read_text())
        write_tables(folder, 32)
        eventually(lambda: server.process.poll() is not None or answers[-1] == {32})
        stop.set()
        for thread in clients:
            thread.join()
    assert server.process.poll() is None
    assert failures == []
    assert {len(answer) for answer in answers} == {1}, "each is from one version"
    assert set.union(*answers) <= {1, *range(2, 33)}
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        content = b"".join((folder / name).read_bytes() for name in ("model.onnx", *TABLES))
        assert client.model("tables").digest == hashlib.sha256(content).hexdigest()
