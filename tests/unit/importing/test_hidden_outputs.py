"""`--explainable` and `--embeddings`: what a file gives beside its answers, and that both add up to these."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.cli import export as export_command
from export.convert.publish import write_model
from service.errors import UserError
from service.model.class_activation import class_activation_map
from service.model.inference import Model
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import load
from tests.unit.importing.test_import_model import run as import_file

FLAGS = ("--scale", 255, "--explainable", "--embeddings")


def outputs_of(served: Model, images: np.ndarray) -> dict[str, np.ndarray]:
    names = [*(output.name for output in served.outputs), *served.hidden]
    return dict(zip(names, served.predict(images, with_hidden=True), strict=True))


@pytest.mark.parametrize(
    ("end", "classes", "precision"),
    [("", 5, "fp32"), ("Softmax", 5, "fp32"), ("Sigmoid", 1, "fp32"), ("Sigmoid", 5, "fp32"), ("", 5, "fp16")],
)
def test_the_mean_of_a_class_activation_map_is_the_score(end: str, classes: int, precision: str, tmp_path: Path) -> None:
    """Up to a constant for all pictures, and after a softmax for each picture."""
    source = graphs.classifier(tmp_path / "net.onnx", end=end, classes=classes)
    import_file(source, tmp_path / "models", *FLAGS, "--precision", precision)
    served = load(tmp_path / "models")
    assert served.contract.activations == (8, 30, 30)
    assert served.contract.embedding == 8
    found = outputs_of(served, np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8))
    assert found["activations"].shape == (3, 8, 30, 30)
    assert found["activations"].dtype == np.float32
    np.testing.assert_allclose(found["embedding"], found["activations"].mean((2, 3)), rtol=2e-3, atol=1e-3)
    classes_of = range(len(served.labels))
    maps = [[class_activation_map(each, served.class_weights, k).mean() for k in classes_of] for each in found["activations"]]
    between = np.diff(np.array(maps), axis=1), np.diff(found["logits"], axis=1)
    if classes == 1:
        between = between[0] / 2, between[1]  # the maps of both labels are those of z and -z
    np.testing.assert_allclose(*between, rtol=1e-2, atol=2e-2)


def test_a_file_gives_no_more_than_it_is_asked_for(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx")
    import_file(source, tmp_path / "models", "--scale", 255)
    import_file(source, tmp_path / "models", "--scale", 255, "--embeddings")
    plain, embedding = load(tmp_path / "models"), load(tmp_path / "models", 2)
    assert not plain.hidden
    assert "embedding" not in plain.contract.to_json(), "older servers read it"
    assert list(embedding.hidden) == ["embedding"]
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert [len(output) for output in embedding.predict(images)] == [2, 2], "the hidden output is not among them"


def test_what_a_network_does_not_have_is_refused(run: Path, tmp_path: Path) -> None:
    given = [str(run), "--repository", str(tmp_path / "models"), "--explainable"]
    refused = CliRunner().invoke(export_command.export, given, standalone_mode=False)
    assert isinstance(refused.exception, UserError)
    assert "does not end in global average pooling and a linear layer" in str(refused.exception)
    assert not (tmp_path / "models").exists()


def test_a_graph_that_does_not_give_what_its_contract_says_is_no_model(tmp_path: Path) -> None:
    import_file(graphs.classifier(tmp_path / "net.onnx"), tmp_path / "models", *FLAGS)
    contract = load(tmp_path / "models").contract
    graph = onnx.load(tmp_path / "models" / "pets" / "1" / "model.onnx")
    kept = [output for output in graph.graph.output if output.name != "embedding"]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    with pytest.raises(UserError, match="the contract says that the graph gives embedding"):
        write_model(graph, contract, tmp_path / "broken.onnx")
