"""Classifiers of strangers: the scores that are found in them, what is said where nothing tells, and what helps."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import InvalidModel
from service.model.contract import PRODUCER
from service.model.declared import Declared
from service.model.inferred_signature import _output_labels
from service.model.loading import load_model
from service.model.signature import Signature, TensorSpec
from tests.unit.model import foreign_graphs as foreign
from tests.unit.model.graphs import node

NUMBERS = ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("write", "how", "output", "labels", "probabilities"),
    [
        (foreign.features_first, {}, "p", NUMBERS, True),
        (foreign.features_first, {"declared": Declared(output="features")}, "features", NUMBERS[:3], False),
        (foreign.features_first, {"labels": ("a", "b", "c")}, "features", ("a", "b", "c"), False),
        (foreign.top_k, {"declared": Declared(output="values")}, "values", NUMBERS[:2], False),
        (foreign.two_heads, {}, "color", NUMBERS, True),
        (foreign.two_heads, {"declared": Declared(output="shape")}, "shape", NUMBERS[:2], True),
        (foreign.two_heads, {"labels": ("a", "b")}, "shape", ("a", "b"), True),
        (foreign.two_heads, {"declared": Declared(labels={"": ("a", "b")})}, "shape", ("a", "b"), True),
        (foreign.sigmoid_unit, {}, "p", ("0",), False),
        (foreign.sigmoid_unit, {"labels": ("cat", "dog")}, "p", ("cat", "dog"), True),
        (foreign.sigmoid_unit, {"declared": Declared(scores="sigmoid")}, "p", ("0", "1"), True),
        (foreign.unit_logit, {"declared": Declared(scores="logits")}, "z", ("0", "1"), True),
        (foreign.old_ir, {}, "p", NUMBERS, True),
        (foreign.uint8_logits, {}, "scores", ("cat", "dog", "cow", "ant", "bee"), False),
        (foreign.uint8_logits, {"labels": NUMBERS}, "scores", NUMBERS, False),
        (foreign.uint8_logits, {"declared": Declared(scores="logits")}, "scores", ("cat", "dog", "cow", "ant", "bee"), True),
        (foreign.named_like_ours, {}, "probabilities", ("cat", "dog", "cow", "ant", "bee"), True),
    ],
)
def test_the_scores_and_their_labels_are_found(
    write: Callable[[Path], Path], how: dict[str, Any], output: str, labels: tuple[str, ...], probabilities: bool, tmp_path: Path
) -> None:
    model = load_model(write(tmp_path / "model.onnx"), "cpu", 1, **how)
    assert (model.outputs[0].name, model.labels, model.gives_probabilities) == (output, labels, probabilities)
    items = np.zeros((3, *model.input.shape), model.input.dtype)
    scores = model.predict(items)[0]
    found = scores if model.to_probabilities is None else model.to_probabilities(scores)
    assert found.shape == (3, len(labels))
    assert not probabilities or np.allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("write", "how", "said"),
    [
        (
            foreign.top_k,
            {},
            r"the best 2 scores, 'values', and their classes, .*: export it without TopK\. With output = \"values\" in",
        ),
        (
            foreign.top_k,
            {"declared": Declared(output="indices")},
            r"output = 'indices' .* gives it no floats, .*; accepted are values",
        ),
        (foreign.two_heads, {"declared": Declared(output="size")}, r"the graph does not give it; accepted are color, shape"),
        (
            foreign.two_heads,
            {"declared": Declared(labels={"size": ("a",)})},
            r"the graph gives no 'size'; accepted are color, shape",
        ),
        (foreign.two_heads, {"declared": Declared(labels={"shape": ("a",)})}, r"1 of 'shape', of which the graph gives 2"),
        (
            foreign.features_first,
            {"declared": Declared(labels={"": ("a",)})},
            r"serving\.toml has 1 labels; the graph gives 5 classes",
        ),
        (foreign.unit_logit, {"labels": ("cat", "dog")}, r"two labels; the graph gives one number, 'z', which is no probability"),
        (foreign.without_batch, {}, r"takes one item, \[3, 8, 8\], without a dimension of the batch; .*: \[N, 3, 8, 8\]"),
        (foreign.old_ir, {"declared": Declared(input_shape=(9, 9))}, r"input_shape = \[9, 9\]: the graph takes \['N', 3, 8, 8\]"),
    ],
)
def test_what_cannot_be_known_is_refused_with_what_to_say(
    write: Callable[[Path], Path], how: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidModel, match=said):
        load_model(write(tmp_path / "model.onnx"), "cpu", 1, **how)


@pytest.mark.parametrize(
    ("declared", "of_shape"),
    [
        (Declared(), ("a", "b")),
        (Declared(labelled=("color", "shape")), ()),
        (Declared(labelled=("color", "shape"), labels={"shape": ("c", "d")}), ("c", "d")),
    ],
)
def test_an_output_of_as_many_numbers_has_the_labels_of_the_scores_unless_it_has_its_own(
    declared: Declared, of_shape: tuple[str, ...]
) -> None:
    outputs = tuple(TensorSpec(name, np.dtype(np.float32), (2,)) for name in ("color", "shape"))
    signature = Signature(TensorSpec("x", np.dtype(np.float32), (3,)), outputs, 0)
    assert _output_labels(signature, ("a", "b"), declared) == {"color": ("a", "b"), "shape": of_shape}


@pytest.mark.parametrize("shape", [(16, 12), (3, 16, 12)])
def test_open_sizes_are_bound_by_the_policy(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = foreign.save(
        tmp_path / "model.onnx",
        [*foreign.FEATURES, *foreign.probabilities("five", "p")],
        {"p": foreign.FLOAT},
        shape=("N", 3, "H", "W"),
    )
    with pytest.raises(
        InvalidModel, match=r"must be there and be fixed: input_shape = \[224, 224\] in serving\.toml, with the sizes"
    ):
        load_model(path, "cpu", 1)
    model = load_model(path, "cpu", 1, declared=Declared(input_shape=shape))
    assert model.input.shape == (3, 16, 12)
    assert model.predict(np.ones((2, 3, 16, 12), np.float32))[0].shape == (2, 5)


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (foreign.INT64, ("N", 16), r"takes tensor\(int64\) 'x'; float16, .* are accepted\. Such numbers are those of words"),
        (TensorProto.INT32, ("N", 3, 8, 8), r"takes tensor\(int32\) 'x'; .* are accepted\. A Cast in the graph"),
        (
            foreign.UINT8,
            ("bytes",),
            r"takes uint8 'x' \['bytes'\], and no batch: .* picture file that it decodes, but two files of the",
        ),
        (foreign.BF16, ("N", 3, 8, 8), r"takes tensor\(bfloat16\) 'x'; .* are accepted\. A Cast in the graph"),
    ],
)
def test_inputs_of_other_numbers_are_refused_with_the_way_out(kind: int, shape: foreign.Shape, said: str, tmp_path: Path) -> None:
    path = foreign.save(
        tmp_path / "model.onnx", [node("Cast", "x", "y", to=foreign.FLOAT)], {"y": foreign.FLOAT}, kind=kind, shape=shape
    )
    with pytest.raises(InvalidModel, match=said):
        load_model(path, "cpu", 1)


@pytest.mark.parametrize(("keys", "values"), [("keys_int64s", [7, 8]), ("keys_strings", ["cat", "dog"])])
def test_scikit_learns_default_is_refused_with_the_option_that_helps(keys: str, values: list[Any], tmp_path: Path) -> None:
    classes: dict[str, Any] = {"classlabels_ints" if keys == "keys_int64s" else "classlabels_strings": values}
    weights: dict[str, Any] = {"coefficients": [0.5] * 8, "intercepts": [0.0, 0.1], "post_transform": "SOFTMAX"}
    maps: dict[str, Any] = {"classlabels_int64s" if keys == "keys_int64s" else "classlabels_strings": values}
    nodes = [
        helper.make_node("LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", **classes, **weights),
        helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", **maps),
    ]
    is_int = keys == "keys_int64s"
    map_type = helper.make_map_type_proto(
        TensorProto.INT64 if is_int else TensorProto.STRING, helper.make_tensor_type_proto(1, None)
    )
    graph = helper.make_graph(
        nodes, "sklearn", [helper.make_tensor_value_info("x", foreign.FLOAT, ["N", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64 if is_int else TensorProto.STRING, ["N"]),
            helper.make_value_info("maps", helper.make_sequence_type_proto(map_type)),
        ],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match=r"a scikit-learn export with zipmap=False gives a tensor"):
        load_model(tmp_path / "model.onnx", "cpu", 1)


def test_one_of_ours_that_has_lost_its_contract_is_not_taken_for_a_strangers(tmp_path: Path) -> None:
    path = foreign.named_like_ours(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.producer_name = PRODUCER
    onnx.save(model, path)
    with pytest.raises(InvalidModel, match="the graph is one of Convoy's, but the file has no"):
        load_model(path, "cpu", 1)


@pytest.mark.parametrize("domain", ["ai.onnx.contrib", "com.microsoft.extensions"])
def test_operators_of_a_package_that_is_not_installed_are_named(
    domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    nodes = [*foreign.FEATURES, helper.make_node("NegPos", ["features"], ["neg", "p"], domain=domain)]
    path = foreign.save(tmp_path / "model.onnx", nodes, {"p": foreign.FLOAT})
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, path)
    with pytest.raises(InvalidModel, match="operators of the package onnxruntime-extensions: install that where the server runs"):
        load_model(path, "cpu", 1)
