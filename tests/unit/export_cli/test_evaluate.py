"""`convoy evaluate`, on a real model file."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.cli import evaluate as command
from service.errors import UserError
from service.model.contract import METADATA_KEY, Contract
from service.model.loading import load_model


def with_contract(model_file: Path, path: Path, **changes: object) -> Path:
    """A copy of a model file with another contract."""
    graph = onnx.load(model_file)
    contract = json.loads(graph.metadata_props[0].value) | changes
    del graph.metadata_props[:]
    if changes:
        graph.metadata_props.add(key=METADATA_KEY, value=json.dumps(contract))
    onnx.save_model(graph, path)
    return path


def evaluate(*arguments: str | Path) -> str:
    """What `convoy evaluate` prints on stdout."""
    result = CliRunner().invoke(command.evaluate, [*map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    return result.stdout


def test_evaluate_measures_the_held_out_pictures(model_file: Path, tmp_path: Path) -> None:
    training_facts = load_model(model_file, "cpu", 1).contract.measured
    shown = evaluate(model_file, "--data", "digits", "--output", tmp_path / "out")
    assert "on the test part of digits" in shown
    assert f"accuracy as served: {training_facts.accuracy:.2%} (" in shown
    assert "most frequent confusions: " in shown
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["accuracy"] == training_facts.accuracy
    assert content["calibration_error"] == pytest.approx(training_facts.calibration_error)
    assert np.trace(content["confusion"]) == content["correct"]
    assert sum(row["items"] for row in content["classes"]) == content["items"] == 360
    names = {"evaluation.json", "confusion.png", "reliability.png", "mistakes.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert json.loads(evaluate(model_file, "--data", "digits", "--json")) == content
    assert json.loads(evaluate(model_file, "--data", "digits", "--json", "--part", "training"))["items"] == 1257


def test_evaluate_warns_if_the_data_have_changed(model_file: Path, tmp_path: Path) -> None:
    facts = json.loads(onnx.load(model_file).metadata_props[0].value)["training"]
    assert facts["data_digest"] == "digits"
    other = with_contract(model_file, tmp_path / "other.onnx", training=facts | {"data_digest": "1f"})
    said = "digits has changed since the model was trained"
    assert said in " ".join(evaluate(other, "--data", "digits").split())
    assert said not in " ".join(evaluate(model_file, "--data", "digits").split())


def test_evaluate_refuses_what_cannot_be_measured(model_file: Path, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        with pytest.raises(UserError) as error:
            evaluate(*arguments)
        return str(error.value)

    assert "model.onnx: cannot read the model file: No such file" in refused(tmp_path / "model.onnx", "--data", "digits")
    foreign = with_contract(model_file, tmp_path / "foreign.onnx")
    assert re.search(r"foreign\.onnx: no contract", refused(foreign, "--data", "digits"))
    head = json.loads(onnx.load(model_file).metadata_props[0].value)["heads"][0] | {"labels": ["zero", *"123456789"]}
    words = with_contract(model_file, tmp_path / "words.onnx", heads=[head])
    assert "only the data has '0'; only the model has 'zero'" in refused(words, "--data", "digits")
    off = Contract.from_json(onnx.load(model_file).metadata_props[0].value).model_dump(mode="json", by_alias=True)["golden"]
    off[0]["probabilities"][0][0] += 0.1
    wrong = with_contract(model_file, tmp_path / "wrong.onnx", golden=off)
    assert "golden sample 0 mismatch on cpu: largest difference 0.1" in refused(wrong, "--data", "digits")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "nothing is overwritten" in refused(model_file, "--data", "digits", "--output", tmp_path / "full")
    assert "'nowhere'" in refused(model_file, "--data", "nowhere")


def test_evaluate_needs_neither_pytorch_nor_onnx(model_file: Path) -> None:
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in {'torch', 'onnx', 'onnxscript', 'grpc'}, name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from export.cli.evaluate import evaluate\n"
        "evaluate()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, model_file, "--data", "digits", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["items"] == 360
