"""Predictions of a loaded model in batches of any size, and which sizes are measured."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.data.datasets import Dataset
from service.model.inference import Model, batch_sizes
from service.model.loading import load_model
from service.model.model_files import ModelContent
from service.model.session import Bucket, open_session
from service.model.signature import contract_signature
from tests.unit.model.graphs import FLOAT, PRODUCT, node, write


def with_buckets(path: Path, max_items: int) -> Model:
    """A model that computes as on a GPU, with buffers that lie in main memory."""
    opened = open_session(ModelContent(path.read_bytes()), "cpu", 1)
    contract = load_model(path, "cpu", 1).contract
    signature = contract_signature(opened, contract)
    buckets = [Bucket(opened, signature, "cpu", items) for items in batch_sizes(max_items)]
    for bucket in buckets:
        bucket.warm_up(cuda_graphs=True)
    return Model(opened, signature, contract.labels, contract, "cpu", 1, "", buckets)


def test_buckets_of_a_few_sizes_serve_batches_of_any_size(model_file: Path, digits: Dataset) -> None:
    plain, bucketed = load_model(model_file, "cpu", 1), with_buckets(model_file, 6)
    assert [bucket.items for bucket in bucketed._buckets] == [1, 2, 4, 6]
    pixels = digits.test.pixels
    for items in (1, 3, 6, 5, 2, 13):  # fewer after more, so that old items lie behind them; and more than the largest holds
        outputs = [output.copy() for output in bucketed.predict(pixels[:items])]
        for output, expected in zip(outputs, plain.predict(pixels[:items]), strict=True):
            np.testing.assert_allclose(output, expected, atol=1e-6)


def test_padding_holds_no_items_of_an_earlier_batch(model_file: Path, digits: Dataset) -> None:
    bucketed = with_buckets(model_file, 8)
    for items in (7, 5):
        bucketed.predict(digits.test.pixels[:items])
    staging = bucketed._buckets[-1]._staging
    assert staging[:5].any()
    assert not staging[5:].any()


def test_a_shape_that_depends_on_the_data_fails_that_batch(tmp_path: Path) -> None:
    nodes = [
        PRODUCT, node("ReduceMax", "x", "most", keepdims=0), node("Cast", "most", "width", to=TensorProto.INT64),
        node("Reshape", "width one_number", "widths"), node("Shape", "x", "batch", end=1),
        node("Concat", "batch widths", "shape", axis=0), node("Expand", "one shape", "extra"),
    ]  # fmt: skip
    constants = {"one": np.float32(1), "one_number": [1]}
    loaded = load_model(write(tmp_path / "model.onnx", nodes, {"product": FLOAT, "extra": FLOAT}, constants), "cpu", 1)
    assert loaded.predict(np.zeros((2, 4), np.float32))[1].shape == (2, 0)
    with pytest.raises(ValueError, match=r"the graph gave 'extra' \(2, 1\) for 2 items; each had \(0,\) when it was loaded"):
        loaded.predict(np.ones((2, 4), np.float32))


def test_batch_sizes_are_powers_of_two_and_the_largest() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(11) == [1, 2, 4, 8, 11]


Measure = Callable[..., dict[int, float]]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def of(
        nodes: Sequence[onnx.NodeProto] = (PRODUCT,), constants: Mapping[str, Any] | None = None, batch: str | int = "N"
    ) -> dict[int, float]:
        path = write(tmp_path / "model.onnx", nodes, {"product": FLOAT}, constants)
        graph = onnx.load(path)
        dimension = graph.graph.input[0].type.tensor_type.shape.dim[0]
        if isinstance(batch, int):
            dimension.dim_value = batch
            onnx.save(graph, path)
        return load_model(path, "cpu", 1).measure(64)

    return of


def test_a_graph_with_a_fixed_batch_gets_no_larger_ones(measure: Measure) -> None:
    assert list(measure(batch=1)) == [1]
    assert list(measure(batch=4)) == [1, 2, 4]


def test_batches_are_no_larger_than_the_model_can_run(measure: Measure, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [
        node("Shape", "x", "batch", end=1), node("Gather", "table batch", "zero", axis=0),
        node("MatMul", "x weight", "before"), node("Add", "before zero", "product"),
    ]  # fmt: skip
    assert list(measure(nodes, {"table": np.zeros(8, np.float32)})) == [1, 2, 4]
    assert "model.onnx: batches of 8 items failed; the largest batch is now 4" in caplog.text


def test_a_slow_model_is_not_measured_in_batches_that_are_no_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(write(tmp_path / "model.onnx", [PRODUCT], {"product": FLOAT}), "cpu", 1)
    now = 0.0

    def predict(images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        nonlocal now
        now += 0.3 * len(images)
        return []

    monkeypatch.setattr(loaded, "predict", predict)
    monkeypatch.setattr("service.model.inference.time", SimpleNamespace(perf_counter=lambda: now))
    assert list(loaded.measure(64)) == [1, 2, 4]
