"""What belongs to a model file: its external weights."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from service.engine.instances import load_instances
from service.errors import InvalidModel
from service.model.loading import load_model
from service.policy import Policy
from tests.unit.model.graphs import FLOAT, PRODUCT, WEIGHT, node, write


def test_external_weights_are_found_in_the_models_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    paths = [
        write(tmp_path / name / "1" / "model.onnx", [PRODUCT], {"product": FLOAT}, {"weight": factor * WEIGHT}, **how)
        for name, factor in (("a", 1), ("b", 7))
    ]
    items = np.ones((1, 4), np.float32)
    for folder in (tmp_path, tmp_path / "a" / "1"):
        monkeypatch.chdir(folder)
        for path, factor in zip(paths, (1, 7), strict=True):
            for loaded in (load_model(path, "cpu", 1), load_instances(path, None, Policy(), "cpu", 1).instances[0]):
                np.testing.assert_allclose(loaded.predict(items)[0], factor * items @ WEIGHT, rtol=1e-5)


@pytest.mark.parametrize(("cpus", "sessions"), [(4, 1), (8, 4)])
def test_instances_with_one_thread_each_share_a_session(cpus: int, sessions: int, model_file: Path) -> None:
    instances = load_instances(model_file, None, Policy(instances=4), "cpu", cpus).instances
    assert len(instances) == 4
    assert len(set(map(id, instances))) == sessions
    batches = np.random.default_rng(0).integers(0, 256, (4, 8, 28, 28, 1), np.uint8)
    alone = [instances[0].predict(batch)[0] for batch in batches]

    def repeated(number: int) -> list[NDArray[np.float32]]:
        return [instances[number].predict(batches[number])[0] for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(alone, pool.map(repeated, range(4)), strict=True):
            np.testing.assert_array_equal(found, [expected] * 50)


def test_a_pipe_is_not_read_as_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match="not a regular file"):
        load_instances(tmp_path / "model.onnx", None, Policy(), "cpu", 1)


def test_log_lines_name_the_model_and_its_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [
        PRODUCT, node("Softmax", "product", "scores", axis=0), node("Cast", "product", "texts", to=TensorProto.STRING),
        node("Shape", "x", "batch", end=1), node("Gather", "table batch", "zero", axis=0), node("Add", "scores zero", "sum"),
    ]  # fmt: skip
    constants = {"table": np.zeros(8, np.float32)}
    path = write(tmp_path / "pets" / "3" / "model.onnx", nodes, {"sum": FLOAT, "texts": TensorProto.STRING}, constants)
    load_instances(path, None, Policy(), "cpu", 1)
    assert len(caplog.messages) == 3, caplog.messages
    assert all(message.startswith("model pets version 3: ") for message in caplog.messages)
