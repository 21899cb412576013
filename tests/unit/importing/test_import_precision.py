"""What `convoy import --precision` makes of graphs, and what its card says of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.convert.publish import write_model
from export.importing.fp16 import to_fp16
from service.errors import UserError
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import answers, load, run


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
