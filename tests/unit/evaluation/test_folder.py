"""Measuring real model files on labelled pictures: what is answered, what is left out, and how much is held at a time."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from export.data.labelled_pictures import load_pictures
from export.evaluation.folder import measure, measure_folder
from export.evaluation.predictions import write_predictions
from service.errors import UserError
from service.model.contract import Head
from service.model.inference import Model
from service.model.loading import load_model
from tests.unit.evaluation.colors import color_model, paint, painted


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(color_model(tmp_path_factory.mktemp("colors") / "model.onnx"), "cpu", 1)


def test_a_folder_with_some_of_the_labels(colors: Model, tmp_path: Path) -> None:
    root = painted(tmp_path / "shapes", {"red": 3, "blue": 5})
    paint(root / "red" / "green.png", "green")
    steps: list[tuple[str, int, int]] = []
    found = measure_folder(colors, root, on_progress=lambda *step: steps.append(step))
    assert (found.scores.items, found.scores.correct, found.left_out, found.pictures.part) == (9, 8, [], "all")
    assert found.scores.confused(5) == [("red", "green", 1)]
    assert [score.recall for score in found.scores.classes] == [3 / 4, None, 1.0]
    assert [found.label(index) for index in range(9)] == ["blue"] * 5 + ["red"] * 4
    wrong = found.scores.mistakes(1)[0]
    assert found.encoded(wrong) == (root / "red" / "green.png").read_bytes()
    assert steps[-1] == ("measuring", 9, 9)
    assert found.scores.probabilities[wrong].argmax() == 1
    assert found.scores.temperature == 1.0


def test_names_and_a_map_say_the_label(colors: Model, tmp_path: Path) -> None:
    root = painted(tmp_path, {"red": 2, "green": 2, "blue": 2})
    for before, after in (("red", "RED"), ("green", "n1"), ("blue", "n2")):
        (root / before).rename(root / after)
    with pytest.raises(UserError, match="2 of the data's 3 classes are none of the model's 3 labels: 'n1', 'n2'"):
        measure_folder(colors, root)
    found = measure_folder(colors, root, labels_map={"n1": "Green", "n2": ""})
    assert (found.scores.items, found.scores.accuracy, found.left_out) == (4, 1.0, [])
    assert measure_folder(colors, root, labels_map={"n1": "blue", "n2": "blue"}).scores.correct == 4


def test_broken_pictures_are_left_out_and_counted(colors: Model, tmp_path: Path) -> None:
    root = painted(tmp_path, {"red": 2, "blue": 2})
    (root / "blue" / "empty.png").touch()
    (root / "blue" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "red" / "text.jpg").write_text("text")
    cut = root / "red" / "000.png"
    cut.write_bytes(cut.read_bytes()[:50])
    found = measure_folder(colors, root)
    assert (found.scores.items, found.scores.correct) == (3, 3)
    reasons = {Path(found.pictures.path(index)).name: reason.split(" (")[0] for index, reason in found.broken.items()}
    assert reasons.pop("text.jpg").startswith("not an image in a format accepted here")
    assert reasons == {
        "empty.png": "the image is empty", "gone.png": "No such file or directory",
        "000.png": "the image's data are broken or cut short",
    }  # fmt: skip
    assert len(found.left_out) == 4
    assert [found.pictures.path(int(index)) for index in found.measured] == [
        f"{root}/blue/000.png", f"{root}/blue/001.png", f"{root}/red/001.png",
    ]  # fmt: skip


def test_without_a_picture_that_can_be_decoded_there_is_no_measurement(colors: Model, tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "a.png").touch()
    with pytest.raises(UserError, match=r"no picture to measure on; left out: .*a.png: the image is empty \(0 bytes\)$"):
        measure_folder(colors, tmp_path)
    paint(tmp_path / "red" / "b.png", "red")
    with pytest.raises(UserError, match=r"no picture to measure on$"):
        measure_folder(colors, tmp_path, labels_map={"red": ""})


def test_the_head_is_chosen_by_name(tmp_path: Path) -> None:
    warm = Head(name="warm", output="warm", labels=("warm", "cold"), activation="softmax")
    served = load_model(color_model(tmp_path / "model.onnx", further=(warm,)), "cpu", 1)
    root = tmp_path / "shapes"
    for label, color in (("warm", "red"), ("cold", "green"), ("cold", "red")):
        paint(root / label / f"{color}.png", color)
    found = measure_folder(served, root, head="warm")
    assert (found.head, found.scores.labels) == (warm, ("warm", "cold"))
    assert found.scores.confusion.tolist() == [[1, 0], [1, 1]]
    with pytest.raises(UserError, match="none of the model's 3 labels"):
        measure_folder(served, root)
    with pytest.raises(UserError, match=r"--head size: the model has 'probabilities', 'warm'$"):
        measure_folder(served, root, head="size")


def test_where_a_picture_may_have_several_labels_it_has_those_of_all_its_folders(tmp_path: Path) -> None:
    served = load_model(color_model(tmp_path / "model.onnx", threshold=0.4), "cpu", 1)
    root = painted(tmp_path / "shapes", {"red": 2, "green": 1})
    both = paint(root / "red" / "yellow.png", "yellow")
    (root / "green" / "the same.png").write_bytes(both.read_bytes())
    paint(root / "green" / "wrong.png", "red", shade=7)
    (root / "green" / "empty.png").touch()
    found = measure_folder(served, root)
    scores = found.multilabel_scores
    assert (scores.labels, scores.items, len(found.measured), len(found.broken)) == (("red", "green"), 5, 6, 1)
    red, green = scores.classes
    assert (red.items, red.precision, red.recall) == (3, 3 / 4, 1.0)
    assert (green.items, green.precision, green.recall, green.f1) == (3, 1.0, 2 / 3, 4 / 5)
    assert scores.exact == 4 / 5
    write_predictions(tmp_path / "rows.csv", found)
    assert [line.split(",")[-2] for line in (tmp_path / "rows.csv").read_text().splitlines()] == [
        "said", "green", "", "red|green", "red", "red", "red", "red|green",
    ]  # fmt: skip


def test_few_pictures_are_held_at_a_time_and_interrupted_threads_end(colors: Model, tmp_path: Path) -> None:
    painted(tmp_path, {"red": 1})
    one = load_pictures(str(tmp_path), colors.contract)
    read = 0

    def encoded(index: int) -> bytes:
        nonlocal read
        read += 1
        return one.encoded(0)

    many = dataclasses.replace(one, classes=np.zeros(2000, np.int64), encoded=encoded)
    ahead: list[int] = []
    found = measure(colors, many, on_count=lambda done, total: ahead.append(read - done))
    assert (found.scores.items, read) == (2000, 2000)
    assert max(ahead) <= 256, "one batch"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    threads, read = threading.active_count(), 0
    with pytest.raises(KeyboardInterrupt):
        measure(colors, many, on_count=interrupt)
    assert (threading.active_count(), read < 1000) == (threads, True)


def test_a_model_that_fails_is_an_error_of_one_line(colors: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = painted(tmp_path, {"red": 3})
    monkeypatch.setattr(colors, "predict", lambda images: [np.full((len(images), 3), np.nan, np.float32)])
    with pytest.raises(UserError, match=r"the model's answer to .*red/000.png is not a number$"):
        measure_folder(colors, root)


def test_the_pictures_of_the_training_give_the_accuracy_of_the_contract(model_file: Path) -> None:
    served = load_model(model_file, "cpu", 1)
    found = measure(served, load_pictures("digits", served.contract))
    assert found.scores.accuracy == served.contract.measured.accuracy
    assert found.scores.reliability.error == pytest.approx(served.contract.measured.calibration_error)
    assert found.scores.items == 360
