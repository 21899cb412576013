"""`convoy evaluate`, on a real model file."""

import csv
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
from export.data import datasets
from service.errors import UserError
from service.model.contract import METADATA_KEY, Contract, Training
from service.model.loading import load_model
from tests.unit.evaluation.colors import color_model, foreign, paint, painted


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
    contract = Contract.from_json(onnx.load(model_file).metadata_props[0].value).model_dump(mode="json", by_alias=True)
    words = with_contract(model_file, tmp_path / "words.onnx", heads=[contract["heads"][0] | {"labels": ["zero", *"123456789"]}])
    assert "1 of the data's 10 classes is none of the model's 10 labels: '0';" in refused(words, "--data", "digits")
    contract["golden"][0]["probabilities"][0][0] += 0.1
    wrong = with_contract(model_file, tmp_path / "wrong.onnx", golden=contract["golden"])
    assert "golden sample 0 mismatch on cpu: largest difference 0.1" in refused(wrong, "--data", "digits")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "nothing is overwritten" in refused(model_file, "--data", "digits", "--output", tmp_path / "full")
    assert "'nowhere'" in refused(model_file, "--data", "nowhere")


def test_a_foreign_file_is_refused_with_the_command_that_imports_it(tmp_path: Path) -> None:
    model = foreign(color_model(tmp_path / "my net.onnx"))
    with pytest.raises(UserError) as raised:
        evaluate(model, "--data", tmp_path)
    said = str(raised.value)
    assert said.startswith(f"{model}: no contract: ")
    assert f"convoy import '{model}' --repository models --name my-net --labels " in said
    assert said.endswith(f" --data {tmp_path}")


def test_any_labelled_folder_is_measured(tmp_path: Path) -> None:
    model = color_model(tmp_path / "model.onnx")
    root = painted(tmp_path / "shapes", {"red": 3, "n1": 0})
    paint(root / "n1" / "a.png", "green")
    paint(root / "n1" / "b.png", "blue")
    (root / "n1" / "empty.png").touch()
    (tmp_path / "map.csv").write_text("folder,label\nn1,GREEN\n")
    rows, output = tmp_path / "rows.csv", tmp_path / "out"
    arguments = (model, "--data", root, "--labels-map", tmp_path / "map.csv")
    shown = evaluate(*arguments, "--predictions", rows, "--output", output)
    assert re.search(r"^colors \(fp32, sha256 \w{12}, on cpu\) on shapes\n2 of its 3 labels have pictures: 'red', 'green'\n", shown)
    assert "accuracy as served: 80.00% (4 of 5;" in shown
    assert "'green' as 'blue' (1)" in shown
    assert f"wrote {rows}\nwrote {output}: evaluation.json, confusion.png, reliability.png, mistakes.png\n" in shown
    with rows.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in found] == ["a.png", "b.png", "empty.png", "000.png", "001.png", "002.png"]
    assert [row["label"] for row in found] == ["green"] * 3 + ["red"] * 3
    assert [row["predicted"] for row in found] == ["green", "blue", "", "red", "red", "red"]
    assert [row["error"] for row in found] == ["", "", "the image is empty (0 bytes)", "", "", ""]
    content = json.loads(evaluate(*arguments, "--json"))
    assert content == json.loads((output / "evaluation.json").read_text())
    assert (content["part"], content["head"], content["labels"]) == ("all", "probabilities", ["red", "green", "blue"])
    assert content["left_out"] == [f"{root}/n1/empty.png: the image is empty (0 bytes)"]


def test_labels_of_which_a_picture_may_have_several_are_measured_each(tmp_path: Path) -> None:
    model = color_model(tmp_path / "model.onnx", threshold=0.4)
    root = painted(tmp_path / "shapes", {"red": 2, "green": 2})
    shown = evaluate(model, "--data", root, "--output", tmp_path / "out")
    assert (
        "2 of its 3 labels have pictures: 'red', 'green'\nmean average precision as served: 100.00% (2 labels, 4 images)" in shown
    )
    assert "from a probability of 0.4 on: precision 100.0%, recall 100.0%, F1 100.0%; all labels of an image right: 100.0%" in shown
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (content["precision"], content["micro_precision"]) == ("fp32", 1.0)
    assert content["classes"][1] == {
        "label": "green", "items": 2, "precision": 1.0, "recall": 1.0, "f1": 1.0, "average_precision": 1.0
    }  # fmt: skip


def test_a_model_is_not_measured_on_what_it_was_trained_on_unless_that_is_said(tmp_path: Path) -> None:
    root = painted(tmp_path / "shapes", {"red": 20, "green": 10, "blue": 10})
    dataset = datasets.load_dataset(str(root), 1)
    facts = Training(data="shapes", data_digest=dataset.digest, network="none", epochs=1, seed=1)
    model = color_model(tmp_path / "model.onnx", training=facts)
    assert "on the test part of shapes\naccuracy as served: 100.00% (4 of 4;" in evaluate(model, "--data", root)
    whole = evaluate(model, "--data", root, "--part", "all")
    assert "on shapes\nthe model was trained on some of these pictures\naccuracy as served: 100.00% (40 of 40;" in whole
    seen = evaluate(model, "--data", root, "--part", "training")
    assert "on the training part of shapes\nthe model was trained on these pictures\n" in seen
    paint(root / "red" / "new.png", "red")
    changed = evaluate(model, "--data", root)
    assert "shapes has changed since the model was trained: images were added, removed or changed. The model may" in changed
    assert "(41 of 41;" in changed
    other = root.rename(tmp_path / "other")
    assert "the model was trained on shapes, which may include some of these images" in evaluate(model, "--data", other)


def test_predictions_are_not_written_over_a_file_nor_left_by_halves(tmp_path: Path) -> None:
    def refused(path: Path, *more: str | Path) -> str:
        with pytest.raises(UserError) as raised:
            evaluate(model, "--data", root, "--predictions", path, *more)
        return str(raised.value)

    model, root = color_model(tmp_path / "model.onnx"), painted(tmp_path / "shapes", {"red": 1})
    (tmp_path / "rows.csv").write_text("kept")
    assert "exists: nothing is overwritten, choose another" in refused(tmp_path / "rows.csv")
    assert "a file named .csv is written" in refused(tmp_path / "rows.parquet")
    assert "No such file or directory" in refused(tmp_path / "nowhere" / "rows.csv")
    before = sorted(tmp_path.iterdir())
    (root / "lion").mkdir()
    assert "none of the model's 3 labels" in refused(tmp_path / "new.csv")
    assert sorted(tmp_path.iterdir()) == before


def test_predictions_may_be_in_the_folder_of_the_output(tmp_path: Path) -> None:
    model, root, output = (
        color_model(tmp_path / "model.onnx"),
        painted(tmp_path / "shapes", {"red": 1, "blue": 1}),
        tmp_path / "out",
    )
    evaluate(model, "--data", root, "--output", output, "--predictions", output / "rows.csv")
    assert {"evaluation.json", "rows.csv"} < {path.name for path in output.iterdir()}
    with pytest.raises(UserError, match="is where --output makes a folder"):
        evaluate(model, "--data", root, "--output", tmp_path / "a.csv" / "b", "--predictions", tmp_path / "a.csv")


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
