"""Clients that we did not write drive a real server, from processes and an environment of their own (`make clients`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from export.data.datasets import Dataset
from service.pb.inference import open_inference_pb2 as ours
from tests.conftest import Spawn, put
from tests.integration.test_foreign import write

FOLDER = Path(__file__).parent / "clients"
PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"
FOREIGN = {"floats": (TensorProto.FLOAT, np.float32), "halves": (TensorProto.FLOAT16, np.float16),
           "doubles": (TensorProto.DOUBLE, np.float64), "bytes": (TensorProto.UINT8, np.uint8)}  # fmt: skip


BATCHLESS = """
platform: "onnxruntime_onnx"
max_batch_size: 0
input [ { name: "data" data_type: TYPE_FP32 dims: [ 3, 2, 2 ] reshape { shape: [ 1, 3, 2, 2 ] } } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 3 ] reshape { shape: [ 1, 3 ] } label_filename: "names.txt" } ]
"""
"""A `config.pbtxt` by which tensors have no batch dimension."""


def run(*scripts: str, arguments: tuple[str, ...] = (), timeout: float = 140, **environment: str) -> str:
    assert PYTHON.exists(), "the clients' environment is missing: make clients"
    done = subprocess.run(
        [PYTHON, *arguments, *(FOLDER / script for script in scripts)],
        capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, "PYTHONPATH": "", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]
    return done.stdout


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture
def everything(tmp_path: Path, model_file: Path, slow_file: Path, digits: Dataset) -> tuple[Path, Path]:
    """A repository with a model of each kind, and what ONNX Runtime answers for them in this process."""
    repository = tmp_path / "models"
    put(model_file, repository, "digits", 1)
    put(model_file, repository, "digits", 2)
    (repository / "digits" / "serving.toml").write_text('versions = "all"\n[aliases]\nstable = 1\n')
    put(model_file, repository, "spare", 7)
    put(slow_file, repository, "slow", 1)
    (repository / "slow" / "serving.toml").write_text("max_batch_size = 4\nmax_queue_items = 8\nmax_request_items = 8\n")
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"nonsense")
    images = digits.test.pixels[:40]
    digits_session = session(model_file)
    alone = [digits_session.run(["probabilities", "logits"], {"image": image[np.newaxis]}) for image in images]
    probabilities, logits = (np.concatenate(outputs) for outputs in zip(*alone, strict=True))
    encoded = [digits.test.encoded(index) for index in range(40)]
    expected: dict[str, Any] = {
        "images": images, "probabilities": probabilities, "logits": logits,
        "pngs": np.frombuffer(b"".join(encoded), np.uint8), "png_sizes": [len(image) for image in encoded],
    }  # fmt: skip
    for name, (kind, dtype) in FOREIGN.items():
        path = write(repository / name / "1" / "model.onnx", kind)
        items = np.random.default_rng(3).uniform(0, 9, (6, 3, 2, 2)).astype(dtype)
        scores, features = session(path).run(["scores", "features"], {"data": items})
        expected |= {f"{name}_data": items, f"{name}_scores": scores, f"{name}_features": features}
    (repository / "floats" / "labels.txt").write_text("cat\ndog\ncow\n")
    write(repository / "batchless" / "1" / "model.onnx")
    (repository / "batchless" / "names.txt").write_text("cat\ndog\ncow\n")
    (repository / "batchless" / "config.pbtxt").write_text(BATCHLESS)
    np.savez(tmp_path / "expected.npz", **expected)
    return repository, tmp_path / "expected.npz"


# As in .ci/freeze, which marks its pin so.
needs_kserve = pytest.mark.skipif(sys.version_info >= (3, 14), reason="KServe 0.21 cannot be installed on Python 3.14")


@pytest.mark.timeout(300)  # three programs, one after the other
def test_clients_get_every_answer_right(everything: tuple[Path, Path], spawn: Spawn) -> None:
    """Each is a process of its own: two clients' copies of the messages cannot be in one."""
    repository, expected = everything
    server = spawn(repository, "--shared-memory-prefix", "convoy-")
    given = {"grpc_port": server.grpc_port, "http_port": server.http_port, "expected": str(expected)}
    configuration = ("-c", FOLDER / "pytest.ini", "--confcutdir", FOLDER)
    clients: list[tuple[str, ...]] = [("triton_streams.py", "triton.py")]
    if sys.version_info < (3, 14):  # for which KServe has no packages; .ci/freeze marks its pin so
        clients.append(("kserve_clients.py",))
    for scripts in clients:
        run(*scripts, arguments=("-m", "pytest", *map(str, configuration)), CONVOY_UNDER_TEST=json.dumps(given))
    assert server.terminate() == 0, server.log.read_text()
    assert "Traceback" not in server.log.read_text()


# KServe gives the model's name the number that the repository's name has in Triton. Its inference client does not call these.
NUMBERED_OTHERWISE_BY_KSERVE = ("inference.RepositoryModelLoadRequest", "inference.RepositoryModelUnloadRequest")


@pytest.mark.parametrize(("client", "methods"), [("triton", 20), pytest.param("kserve", 8, marks=needs_kserve)])
def test_our_messages_are_those_of_the_clients_on_the_wire(client: str, methods: int) -> None:
    theirs = json.loads(run("descriptors.py", CLIENT=client))
    file = ours.DESCRIPTOR
    found = {method.name: method for method in file.services_by_name["GRPCInferenceService"].methods}
    assert found.keys() >= theirs["methods"].keys()
    assert len(theirs["methods"]) == methods
    for name, form in theirs["methods"].items():
        method = found[name]
        assert form == [method.input_type.full_name, method.output_type.full_name, method.client_streaming, method.server_streaming]
    messages = list(file.message_types_by_name.values())
    while messages:
        message = messages.pop()
        messages += message.nested_types
        if client == "kserve" and message.full_name in NUMBERED_OTHERWISE_BY_KSERVE:
            continue
        known = theirs["messages"].get(message.full_name, {})
        for field in message.fields:
            if field.name in known:
                assert known[field.name] == [field.number, field.type, field.is_repeated], f"{message.full_name}.{field.name}"
            else:
                assert field.number not in {number for number, *_ in known.values()}, f"{message.full_name}.{field.name}"
    values = theirs["enums"].get("inference.DataType")
    assert values in (None, {value.name: value.number for value in file.enum_types_by_name["DataType"].values})
