"""What `convoy import --precision` makes of graphs, and what its card says of them."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.convert.publish import write_model
from export.importing.fp16 import to_fp16
from service.errors import UserError
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import answers, folder_of, load, run


@pytest.mark.parametrize("end", ["", "LogSoftmax", "Sigmoid"])
def test_fp16_is_made_whatever_the_scores_are(end: str, tmp_path: Path) -> None:
    """Of logits both `probabilities` and `logits` are made, in float32, so that two nodes read one fp16 value."""
    source = graphs.classifier(tmp_path / "net.onnx", end=end)
    run(source, tmp_path / "models", "--scale", 255)
    run(source, tmp_path / "models", "--scale", 255, "--precision", "fp16")
    fp32, fp16 = answers(load(tmp_path / "models")), answers(load(tmp_path / "models", 2))
    for name, expected in fp32.items():
        np.testing.assert_allclose(fp16[name], expected, atol=5e-3)


def test_the_range_gate_looks_at_every_picture_however_large_the_batch() -> None:
    """The last picture is the only one whose product leaves the range, and is alone in a batch of two."""
    weight = onnx.numpy_helper.from_array(np.array(300, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "w"], ["product"]), helper.make_node("Identity", ["product"], ["probabilities"])],
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 1, 1, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [2, 1, 1, 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for pixels in (np.array([1, 2, 255], np.float32), np.array([255], np.float32)):
        with pytest.raises(UserError, match=r"fp16 range gate: .* reaches 7.65e\+04, half precision ends at 65504"):
            to_fp16(model, pixels.reshape(-1, 1, 1, 1))
    graph.node[0].op_type = "NoSuchOperator"
    model.graph.CopyFrom(graph)
    with pytest.raises(UserError, match="fp16 range gate: the values inside the graph cannot be seen"):
        to_fp16(model, np.ones((2, 1, 1, 1), np.float32))


def test_a_graph_that_is_not_valid_is_refused_in_one_line(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx")
    run(source, tmp_path / "models", "--scale", 255)
    model = onnx.load(tmp_path / "models" / "pets" / "1" / "model.onnx")
    model.graph.node.append(model.graph.node[0])
    with pytest.raises(UserError, match="fp32: the graph is not valid ONNX: Graph must be") as refused:
        write_model(model, load(tmp_path / "models").contract, tmp_path / "broken.onnx")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "broken.onnx").exists()


def test_a_source_in_a_lower_precision_keeps_it(tmp_path: Path) -> None:
    """Its file's int8 is not halved, and its golden samples stay those of the source."""
    source = quantised(tmp_path / "int8.onnx")
    printed = run(source, tmp_path / "models", "--scale", 255, "--precision", "fp16")
    assert "--precision fp16: the source is int8, and keeps it" in printed
    assert "golden gate: 3 pictures give the source's own answers" in printed
    assert load(tmp_path / "models").precision == "int8"
    tensors = onnx.load(tmp_path / "models" / "pets" / "1" / "model.onnx").graph.initializer
    assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in tensors}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_card_of_a_lower_precision_says_whose_answers_it_holds_and_names_each_gate(precision: str, tmp_path: Path) -> None:
    source = graphs.two_heads(tmp_path / "net.onnx")
    heads = ("--scale", 255, "--output", "color", "--output", "shape")
    run(source, tmp_path / "models", *heads)
    data = folder_of(tmp_path / "data", load(tmp_path / "models"), pictures=20)
    printed = run(source, tmp_path / "models", *heads, "--data", data, "--precision", precision, "--max-accuracy-loss", 50)
    assert f"golden gate: 3 pictures give this {precision} file's own answers" in printed
    card = (tmp_path / "models" / "pets" / "2" / "README.md").read_text()
    assert f"the pixels that they become and this {precision} file's own answers" in card
    assert "source's own answers" not in card
    rows = re.findall(r"^\| ([\w ]+?) *\| (?:passed|not proved)", card, re.MULTILINE)
    assert len(rows) == len(set(rows)), rows
    assert {"accuracy", f"{precision} accuracy", "golden", precision} <= set(rows)
    if precision == "int8":
        assert re.search(r"\*\*int8 further heads\*\*: .* shape: the source's first label on \d+ of \d+ pictures", card)


def quantised(path: Path) -> Path:
    """A graph whose image goes through int8 on its way."""
    more = [
        helper.make_node("QuantizeLinear", ["z", "step"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step"], ["scores"]),
    ]
    return graphs.with_nodes(path, more, [("scores", TensorProto.FLOAT, ["n", 5])], step=np.array(0.05, np.float32))
