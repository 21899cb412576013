"""Mistakes of files and of people that an import must find: each is refused in one line, or read as it was meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import export
from export.importing.labels import labels_in
from service.errors import UserError
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import load, run

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
    outputs: list[tuple[str, int, list[Any]]] = [("scores", TensorProto.FLOAT, [1, 5]), ("boxes", TensorProto.FLOAT, ["k", 4])]
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


@pytest.mark.parametrize("mean", ["[1e999, 0, 0]", f"[{10**400}, 0, 0]", "[nan, 0, 0]", "[]", "{}", "['red', 0, 0]"])
def test_a_mean_that_is_none_is_not_taken(tmp_path: Path, mean: str) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", metadata={"mean": mean, "std": "[0.2, 0.2, 0.2]"})
    with pytest.raises(UserError, match=r"nothing says how the pixels of .* are scaled"):
        run(source, tmp_path / "models")


def test_what_a_flag_says_is_not_said_to_be_taken_from_the_file(tmp_path: Path) -> None:
    said = {"names": "['a', 'b', 'c', 'd', 'e']", "imgsz": "[32, 32]", **MEAN_AND_STD}
    source = graphs.classifier(tmp_path / "net.onnx", shape=("n", 3, "h", "w"), metadata=said)
    (tmp_path / "labels.txt").write_text("v\nw\nx\ny\nz\n")
    flags = ("--scale", 255, "--input-shape", "40,40", "--labels", tmp_path / "labels.txt")
    assert "in the file" not in run(source, tmp_path / "models", *flags)
    assert "in the file" not in (tmp_path / "models" / "pets" / "1" / "README.md").read_text()
    printed = run(source, tmp_path / "models", "--dry-run")
    for taken in ("5 labels from 'names' in the file", "size 32x32 from 'imgsz' in the file", "(from 'mean' and 'std' in the file"):
        assert taken in printed
    closed = graphs.classifier(tmp_path / "closed.onnx", metadata=said)
    assert "imgsz" not in run(closed, tmp_path / "models", "--dry-run")
    own = f"scores={tmp_path / 'labels.txt'}"
    assert "names" not in run(closed, tmp_path / "models", "--output", own, "--dry-run")


@pytest.mark.parametrize(
    ("channels", "flags", "message"),
    [
        (3, ("--threshold", "0.9"), r"--threshold 0.9 is for labels that are each true or not, .* --scores multilabel"),
        (3, ("--resize", "short:40", "--crop", "24"), r"--crop 24: the graph takes a height of 32"),
        (3, ("--pad-color", "1,2,3"), r"--pad-color is of the border that --resize pad makes, and the resize is stretch"),
        (3, ("--pad-align", "start", "--resize", "cover"), r"--pad-align is of the border .* the resize is cover"),
        (1, ("--channels", "bgr"), r"--channels bgr: the network takes gray images, of 1 channel"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(tmp_path: Path, channels: int, flags: tuple[str, ...], message: str) -> None:
    source = graphs.classifier(tmp_path / "net.onnx", shape=("n", channels, 32, 32), channels=channels)
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "models", "--scale", 255, *flags)
    assert not (tmp_path / "models").exists()


def test_pictures_that_are_not_resized_are_tried_at_the_size_of_the_input(tmp_path: Path) -> None:
    source = graphs.classifier(tmp_path / "net.onnx")
    assert "of 32x32" in run(source, tmp_path / "models", "--scale", 255, "--resize", "none")
    assert load(tmp_path / "models").contract.input.resize == "none"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"minimum_accuracy": 0.9}, "--minimum-accuracy needs --data"),
        ({"minimum_accuracy": 90, "data": "pets"}, "minimum_accuracy 90: a fraction from 0 to 1 is accepted"),
        ({"precision": "fp8"}, "precision 'fp8': fp32, int8, fp16 are accepted"),
        ({"scores": "softmax"}, "scores 'softmax': auto, logits, .* are accepted"),
        ({"input_shape": 32}, "input_shape 32: .height, width. from 1 to 4096 is accepted"),
        ({"input_shape": (0, 32)}, "input_shape .0, 32.: .height, width. from 1 to 4096 is accepted"),
        ({"labels": {"cat", "dog", "hen", "cow", "fox"}}, "labels: a list of names"),
    ],
)
def test_python_is_told_what_is_accepted_as_the_command_line_is(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    model = onnx.load(graphs.classifier(tmp_path / "net.onnx"))
    with pytest.raises(UserError, match=message):
        export.publish(model, name="pets", repository=tmp_path / "models", transforms="torchvision", **given)
    assert not (tmp_path / "models").exists()
