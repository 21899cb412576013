"""`convoy inspect`: which files it reads, and which it refuses."""

from pathlib import Path

import onnx
import pytest
from onnx import helper

from export.inspection.model_file import inspect
from export.inspection.outputs import UNKNOWN
from service.errors import InvalidModel, UserError
from service.model.loading import load_model
from tests.conftest import convoy
from tests.unit.inspection.graphs import ones, save
from tests.unit.model import foreign_graphs as foreign


def test_external_weights_may_be_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], ["N", 300], {"w": ones(300, 20)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert inspect(path).digest == load_model(path, "cpu", 1).digest, "that which a server shows"
    (tmp_path / "weights.bin").unlink()
    found = inspect(path)
    assert (found.parameters, found.macs, found.external) == (6000, 6000, ("weights.bin",))
    assert (found.digest, found.problem) == ("", "weights file 'weights.bin' is missing")
    shown = convoy("inspect", path)
    assert "bytes, no sha256: weights file 'weights.bin' is missing\nweights are outside the file, in weights.bin\n" in shown.stdout


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path, model_file: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.onnx: No such file"):
        inspect(tmp_path / "missing.onnx")
    with pytest.raises(UserError, match="is a folder; expected an ONNX file"):
        inspect(tmp_path)
    text = tmp_path / "text.onnx"
    text.write_text("nonsense")
    with pytest.raises(UserError, match="not a valid ONNX model"):
        inspect(text)
    text.write_bytes(b"")
    with pytest.raises(UserError, match="not a valid ONNX model"):
        inspect(text)
    text.write_bytes(model_file.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a valid ONNX model"):
        inspect(text)
    model = onnx.load(model_file)
    model.metadata_props[0].value = "{}"
    onnx.save(model, text)
    with pytest.raises(InvalidModel, match="contract"):
        inspect(text)


@pytest.mark.parametrize(
    ("last", "numbers"),
    [
        (["Softmax"], "probabilities of which one is true (by Softmax)"),
        (["LogSoftmax", "Identity"], "logarithms of probabilities (by LogSoftmax)"),
        (["Sigmoid", "Flatten"], "probabilities, each by itself (by Sigmoid)"),
        (["Relu"], UNKNOWN),
        ([], UNKNOWN),
        (["ArgMax"], "no scores"),
    ],
)
def test_a_file_without_contract_says_what_its_numbers_are(tmp_path: Path, last: list[str], numbers: str) -> None:
    names = [*(f"v{at}" for at in range(len(last))), "y"]
    nodes = [helper.make_node("MatMul", ["x", "w"], [names[0]])]
    nodes += [helper.make_node(kind, [names[at]], [names[at + 1]]) for at, kind in enumerate(last)]
    path = save(tmp_path / "m.onnx", nodes, ["N", 4], {"w": ones(4, 3)})
    model = onnx.load(path)
    kind = onnx.TensorProto.INT64 if last == ["ArgMax"] else onnx.TensorProto.FLOAT
    model.graph.output[0].type.tensor_type.elem_type = kind
    onnx.save(model, path)
    [output] = inspect(path).outputs
    assert (output.name, output.numbers) == ("y", numbers)


def test_a_graph_that_decodes_a_picture_file_is_known_by_its_input(tmp_path: Path, model_file: Path) -> None:
    assert inspect(foreign.save_picture_file_classifier(tmp_path / "model.onnx")).decodes
    assert not inspect(model_file).decodes


def test_a_file_with_a_contract_says_it_there(model_file: Path) -> None:
    assert inspect(model_file).outputs == ()


def test_the_parameters_of_the_trained_network_are_shown_beside_those_of_the_file(model_file: Path, tmp_path: Path) -> None:
    assert "Params of the trained network: 93,322\n" in convoy("inspect", model_file).stdout
    model = onnx.load(model_file)
    text = model.metadata_props[0].value
    model.metadata_props[0].value = text.replace('"parameters":93322,', '"parameters":93400,')
    next(node for node in model.graph.node if node.op_type == "Conv").metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'network', 'network.norm', '_native_batch_norm_legit_no_training']"
    )
    del next(node for node in model.graph.node if node.op_type == "Conv").metadata_props[:-1]
    onnx.save(model, tmp_path / "folded.onnx")
    shown = convoy("inspect", tmp_path / "folded.onnx").stdout
    assert "Params of the trained network: 93,400 (the batch norm is folded into the layer before it: the filters take" in shown
    model.metadata_props[0].value = text.replace('"parameters":93322,', "")
    onnx.save(model, tmp_path / "older.onnx")
    assert "trained network" not in convoy("inspect", tmp_path / "older.onnx").stdout
