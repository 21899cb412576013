"""Graphs that Convoy did not write, and that look more like a classifier than they are."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine.loader import load_instances
from service.errors import InvalidModel
from service.model.loading import load_model
from service.model.repository_layout import read_labels
from service.policy import Policy

FLOAT = TensorProto.FLOAT
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
PRODUCT = helper.make_node("MatMul", ["x", "weight"], ["product"])


def write(
    path: Path, nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, int], constants: Mapping[str, Any] | None = None, **how: Any
) -> Path:
    """A graph that takes `x`, float32[N,4]; `outputs` are the types of its outputs by name."""
    given = {"weight": WEIGHT, **(constants or {})}
    graph = helper.make_graph(
        nodes, "odd", [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path, **how)
    return path


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


AS_WIDE_AS_THE_BATCH = [
    node("Shape", "x", "batch", end=1), node("Concat", "batch batch", "shape", axis=0), node("Expand", "one shape", "scores")
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("Squeeze", "product", "scores")], r"gives 'scores' \(3,\) for a batch of 1; one row an item is accepted"),
        ([node("Transpose", "product", "scores")], r"gives 'scores' \(3, 1\) for a batch of 1"),
        (AS_WIDE_AS_THE_BATCH, "gives 'scores' as float32 1 for one item, and as float32 2 for several"),
        ([node("Slice", "product from from last", "scores")], r"not a classifier's: it gives scores \(float32 0\)"),
    ],
    ids=["squeezed", "transposed", "as wide as the batch", "no classes"],
)
def test_a_graph_whose_output_shape_depends_on_the_batch_is_refused(nodes: list[onnx.NodeProto], said: str, tmp_path: Path) -> None:
    constants = {"one": np.float32(1), "from": [0], "last": [1]}
    with pytest.raises(InvalidModel, match=said):
        load_model(write(tmp_path / "model.onnx", [PRODUCT, *nodes], {"scores": FLOAT}, constants), "cpu", 1)


def test_of_two_outputs_the_one_with_as_many_classes_as_labels_holds_the_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [node("Identity", "x", "embedding"), PRODUCT], {"embedding": FLOAT, "product": FLOAT})
    assert load_model(path, "cpu", 1).outputs[0].name == "embedding"
    assert load_model(path, "cpu", 1, ("cat", "dog", "cow")).outputs[0].name == "product"


def test_outputs_that_are_not_tensors_of_numbers_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attributes: dict[str, Any] = {
        "coefficients": WEIGHT.T.ravel().tolist(),
        "intercepts": [0.0] * 3,
        "classlabels_strings": ["a", "b", "c"],
        "multi_class": 1,
        "post_transform": "SOFTMAX",
    }
    classifier = helper.make_node("LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", **attributes)
    both = write(tmp_path / "both.onnx", [classifier], {"label": TensorProto.STRING, "scores": FLOAT})
    assert [output.name for output in load_model(both, "cpu", 1).outputs] == ["scores"]
    assert "only tensors of numbers are: tensor(string) 'label'" in caplog.text
    with pytest.raises(InvalidModel, match=r"the graph gives tensor\(string\) 'label'; tensors of numbers are accepted"):
        load_model(write(tmp_path / "label.onnx", [classifier], {"label": TensorProto.STRING}), "cpu", 1)


@pytest.mark.parametrize(("axis", "warned"), [(0, True), (1, False)])
def test_scores_that_depend_on_the_rest_of_the_batch_are_warned_of(
    axis: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "model.onnx", [PRODUCT, node("Softmax", "product", "scores", axis=axis)], {"scores": FLOAT})
    load_model(path, "cpu", 1)
    assert ("an item's scores change with what is in its batch" in caplog.text) == warned


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
    assert "batches of 8 items fail, so they have at most 4" in caplog.text


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


def test_labels_are_lines_with_any_line_end_or_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\nd\u2028og\r\ncow\n\n".encode())
    assert read_labels(path) == ("cat", "d\u2028og", "cow")


def test_a_pipe_is_not_read_as_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match="no regular file"):
        load_instances(tmp_path / "model.onnx", None, Policy(), "cpu", 1)


def test_errors_of_onnx_runtime_are_shown_without_its_source_location(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [PRODUCT], {"product": FLOAT})
    graph = onnx.load(path)
    graph.ir_version = 99
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(InvalidModel, match="Unsupported model IR version: 99"):
        load_model(path, "cpu", 1)
