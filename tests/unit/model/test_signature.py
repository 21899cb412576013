"""Graphs without a contract that look like classifiers, and graphs that differ from their contract."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import InvalidModel
from service.model.declared import Declared
from service.model.loading import load_model
from tests.unit.model.graphs import FLOAT, PRODUCT, WEIGHT, node, write

AS_WIDE_AS_THE_BATCH = [
    node("Shape", "x", "batch", end=1), node("Concat", "batch batch", "shape", axis=0), node("Expand", "one shape", "scores")
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("Squeeze", "product", "scores")], r"gives 'scores' \(3,\) for a batch of 1; one row an item is accepted"),
        ([node("Transpose", "product", "scores")], r"gives 'scores' \(3, 1\) for a batch of 1"),
        (AS_WIDE_AS_THE_BATCH, "gives 'scores' as float32 1 for one item, and as float32 2 for several"),
        ([node("Slice", "product from from last", "scores")], r"not a classifier: outputs scores \(float32 0\)"),
    ],
    ids=["squeezed", "transposed", "as wide as the batch", "no classes"],
)
def test_a_graph_whose_output_shape_depends_on_the_batch_is_refused(nodes: list[onnx.NodeProto], said: str, tmp_path: Path) -> None:
    constants = {"one": np.float32(1), "from": [0], "last": [1]}
    with pytest.raises(InvalidModel, match=said):
        load_model(write(tmp_path / "model.onnx", [PRODUCT, *nodes], {"scores": FLOAT}, constants), "cpu", 1)


def test_of_two_outputs_the_one_with_as_many_classes_as_labels_holds_the_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [node("Identity", "x", "embedding"), PRODUCT], {"embedding": FLOAT, "product": FLOAT})
    with pytest.raises(
        InvalidModel, match=r"several outputs may be the scores: embedding \(4\), product \(3\)\. Say which in serving"
    ):
        load_model(path, "cpu", 1)
    assert load_model(path, "cpu", 1, declared=Declared(output="embedding")).outputs[0].name == "embedding"
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
    assert "both.onnx: outputs that are not tensors of numbers are not served: tensor(string) 'label'" in caplog.text
    with pytest.raises(InvalidModel, match=r"the graph gives tensor\(string\) 'label'; tensors of numbers are accepted"):
        load_model(write(tmp_path / "label.onnx", [classifier], {"label": TensorProto.STRING}), "cpu", 1)


@pytest.mark.parametrize(("axis", "warned"), [(0, True), (1, False)])
def test_scores_that_depend_on_the_rest_of_the_batch_are_warned_of(
    axis: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "model.onnx", [PRODUCT, node("Softmax", "product", "scores", axis=axis)], {"scores": FLOAT})
    load_model(path, "cpu", 1)
    assert ("an item's scores depend on its batch" in caplog.text) == warned


@pytest.mark.parametrize(
    ("operator", "attributes", "said"),
    [
        ("Cast", {"to": onnx.TensorProto.FLOAT16}, r"gives probabilities as tensor\(float16\) \[.*\]; tensor\(float\) \[N, K\] is"),
        ("ReduceMax", {"keepdims": 0}, r"gives probabilities as tensor\(float\) \[\]"),
    ],
)
def test_outputs_of_another_type_or_shape_are_refused(
    operator: str, attributes: dict[str, Any], said: str, model_file: Path, tmp_path: Path
) -> None:
    graph = onnx.load(model_file)
    for each in graph.graph.node:
        each.output[:] = ["before" if name == "probabilities" else name for name in each.output]
    graph.graph.node.append(onnx.helper.make_node(operator, ["before"], ["probabilities"], **attributes))
    [output] = [output for output in graph.graph.output if output.name == "probabilities"]
    output.type.CopyFrom(onnx.TypeProto())
    output.type.tensor_type.elem_type = attributes.get("to", onnx.TensorProto.FLOAT)
    onnx.save_model(graph, tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match=said):
        load_model(tmp_path / "model.onnx", "cpu", 1)
