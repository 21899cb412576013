"""Mistakes of files and of people that an import must find: each is refused in one line, or read as it was meant."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.importing.labels import labels_in
from service.errors import UserError
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import run

NAMES = tuple(sorted(map(str, range(12))))  # "0", "1", "10", "11", "2", ...: the folders of digits, as torchvision sorts them
MEAN_AND_STD = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}


def boxes(path: Path) -> Path:
    """Scores in a batch of exactly one, and beside them as many rows as a picture has numbers above 0."""
    more = [
        helper.make_node("Softmax", ["z"], ["scores"], axis=1),
        helper.make_node("Greater", ["c", "middle"], ["above"]),
        helper.make_node("NonZero", ["above"], ["at"]),
        helper.make_node("Transpose", ["at"], ["rows"], perm=[1, 0]),
        helper.make_node("Cast", ["rows"], ["boxes"], to=TensorProto.FLOAT),
    ]
    outputs = [("scores", TensorProto.FLOAT, [1, 5]), ("boxes", TensorProto.FLOAT, ["k", 4])]
    return graphs.with_nodes(path, more, outputs, batch=1, middle=np.array(0.1, np.float32))


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ({name: at for at, name in enumerate(NAMES)}, NAMES),
        ({"0": 7, "1": 5}, ("7", "5")),
        ({1: "dog", 0: "cat"}, ("cat", "dog")),
        ({"cat": "0", "dog": "1"}, ("cat", "dog")),
        ("{[1]: 'a'}", None),
        ("{'a': {'b': [1]}}", None),
    ],
)
def test_a_table_of_labels_is_read_by_its_numbers(content: object, labels: tuple[str, ...] | None) -> None:
    assert labels_in(content) == labels
    if isinstance(content, dict):
        assert labels_in(json.dumps(content)) == labels


def test_an_output_of_as_many_rows_as_a_picture_has_boxes_is_no_scores(tmp_path: Path) -> None:
    source = boxes(tmp_path / "net.onnx")
    assert "scores 'scores': softmax of probabilities" in run(source, tmp_path / "models", "--scale", 255, "--dry-run")
    with pytest.raises(UserError, match=r"--output boxes: it gives .*; one row of numbers, one a class, is accepted"):
        run(source, tmp_path / "models", "--scale", 255, "--output", "boxes")


def test_a_file_that_contradicts_itself_or_is_too_large_is_refused_in_one_line(tmp_path: Path) -> None:
    gray = graphs.classifier(tmp_path / "gray.onnx", shape=("n", 1, 32, 32), channels=1, metadata=MEAN_AND_STD)
    with pytest.raises(UserError, match="the file's mean: 3 numbers for 1 channel; one is accepted, or one a channel"):
        run(gray, tmp_path / "models")
    sound = graphs.classifier(tmp_path / "sound.onnx", shape=("n", 1, 64, 8000), channels=1)
    with pytest.raises(UserError, match=r"\[\?,1,64,8000\]; images of at most 4096 pixels a side are accepted"):
        run(sound, tmp_path / "models", "--scale", 255)
    odd = graphs.classifier(tmp_path / "odd.onnx", metadata={"names": "{[1]: 'a'}", "imgsz": "{[1]: 32}"})
    assert "labels of 'scores': numbers from 0 to 4" in run(odd, tmp_path / "models", "--scale", 255, "--dry-run")
