"""`logits` of an imported file: their softmax, or the sigmoid of each where labels are true by themselves, is its probabilities."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from export.importing import network_input, onnx_graph, wrapping
from export.importing.recipe import Recipe
from export.importing.score_head import ScoreHead, Scores, decide
from export.walkthrough import network_page, subject
from service.model.contract import LOGITS_NAME, PROBABILITIES_NAME
from service.model.input_spec import InputSpec
from service.model.session import OpenGraph
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import answers, load, photo, run

SPEC = InputSpec(height=1, width=1, channels=3, resize="stretch")


def network(ends: tuple[str, ...], units: int, reach: float, kind: int) -> onnx.ModelProto:
    """One pixel of three colours to `units` scores, of magnitudes up to about 255 `reach`, then the operators `ends`."""
    random = np.random.default_rng(units)
    names = ["z", *(f"after {at}" for at in range(len(ends)))]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], [names[0]]),
        *(helper.make_node(end, [names[at]], [names[at + 1]]) for at, end in enumerate(ends)),
    ]
    nodes[-1].output[0] = "scores"
    weights = onnx.numpy_helper.from_array((random.uniform(-reach, reach, (3, units))).astype(dtype), "w")
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, ["n", 3, 1, 1])],
        [helper.make_tensor_value_info("scores", kind, ["n", units])], [weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def wrapped(ends: tuple[str, ...], units: int, asked: Scores, reach: float, kind: int) -> tuple[OpenGraph, ScoreHead]:
    """The wrapped file, and what its scores are taken for."""
    model = network(ends, units, reach, kind)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 1, 1)).astype(helper.tensor_dtype_to_np_dtype(kind))
    raw = OpenGraph(model.SerializeToString(), 1).run(pixels)["scores"]
    last = onnx_graph.deciding_node(model, "scores")
    assert last is not None
    head = decide("scores", raw, last.op_type, asked, None)
    taken = network_input.read_input(model, "nchw", None)
    recipe = Recipe(SPEC, 1.0, (0.0,) * 3, (1.0,) * 3, "rgb", "")
    head = replace(head, labels=("",) * (2 if head.activation == "sigmoid" else units))
    heads = [wrapping.WrappedHead(head, PROBABILITIES_NAME)]
    return OpenGraph(wrapping.wrap(model, taken, recipe, heads).SerializeToString(), 1), head


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize(
    ("ends", "units", "asked", "activation"),
    [
        ((), 5, "logits", "softmax"),
        (("Softmax",), 5, "probabilities", "softmax"),
        (("LogSoftmax",), 5, "log-probabilities", "softmax"),
        ((), 1, "logits", "sigmoid"),
        (("Sigmoid",), 1, "auto", "sigmoid"),
        (("Sigmoid", "Identity"), 1, "auto", "sigmoid"),
        (("HardSigmoid",), 1, "probabilities", "sigmoid"),
        ((), 5, "multilabel", "multilabel"),
        (("Sigmoid",), 5, "auto", "multilabel"),
        (("Sigmoid", "Flatten"), 5, "multilabel", "multilabel"),
        (("HardSigmoid",), 5, "multilabel", "multilabel"),
    ],
)
def test_the_activation_of_the_logits_is_the_probabilities(
    kind: int, ends: tuple[str, ...], units: int, asked: Scores, activation: str
) -> None:
    sharp = 0.3 if kind == TensorProto.FLOAT16 else 1.0  # up to probabilities that are rounded to 0 and 1
    tolerance = 1e-3 if kind == TensorProto.FLOAT16 else 1e-6
    files = [wrapped(ends, units, asked, reach, kind) for reach in (0.002, 0.05, sharp)]
    assert {head.activation for _, head in files} == {activation}
    # of one unit the logits are a pair, and their softmax is its sigmoid
    turn = ScoreHead("", units, "multilabel" if activation == "multilabel" else "softmax", "logits")

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=8))
    def holds(rows: list[tuple[int, ...]]) -> None:
        for session, _ in files:
            found = session.run(np.array(rows, np.uint8).reshape(-1, 1, 1, 3))
            assert np.isfinite(found[LOGITS_NAME]).all()
            np.testing.assert_allclose(turn.probabilities(found[LOGITS_NAME]), found[PROBABILITIES_NAME], atol=tolerance)

    holds()


def test_log_odds_go_on_where_a_probability_is_rounded_to_one() -> None:
    session, _ = wrapped(("Sigmoid",), 5, "auto", 1.0, TensorProto.FLOAT)
    given_back = session.run(np.full((1, 1, 1, 3), 255, np.uint8))
    certain = given_back[PROBABILITIES_NAME][0] == 1
    assert certain.any()
    assert len(set(given_back[LOGITS_NAME][0, certain].tolist())) == certain.sum()
    assert np.abs(given_back[LOGITS_NAME]).max() > 20


def test_a_walkthrough_shows_what_is_served_whatever_the_logits_are(tmp_path: Path) -> None:
    """Files that were imported before have the logarithm of a label's probability for its logit."""
    run(graphs.classifier(tmp_path / "net.onnx", end="Sigmoid"), tmp_path / "models", "--scale", 255)
    path = tmp_path / "models" / "pets" / "1" / "model.onnx"
    before = onnx.load(path)
    for node in before.graph.node:
        for at, name in enumerate(node.output):
            if name == LOGITS_NAME:
                node.output[at] = "log_odds"
    before.graph.node.append(helper.make_node("Log", [PROBABILITIES_NAME], [LOGITS_NAME], name="as_before"))
    (path.parent.parent / "2").mkdir()
    onnx.save(before, path.parent.parent / "2" / "model.onnx")
    image = np.asarray(Image.open(io.BytesIO(photo())).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    expected = answers(load(tmp_path / "models", 2))[PROBABILITIES_NAME]
    page = network_page.build_page(subject.load_subject(path.parent.parent / "2"), image, image, "photo.png")
    np.testing.assert_allclose([bar.share for bar in page.answers], np.sort(expected)[::-1], atol=1e-6)
