"""The file of all predictions."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from export.data.labelled_pictures import LabelledPictures
from export.evaluation.folder import Measured
from export.evaluation.predictions import check_predictions_file, write_predictions
from service.errors import UserError
from service.model.contract import own_head

LABELS = ("a, b", 'c "d"', "e", "f", "g", "h")


def measured(*paths: str, broken: dict[int, str], classes: int = 6) -> Measured:
    """Answers whose probabilities fall from the first label to the last; the truth of all is the last."""
    pictures = LabelledPictures(
        "made up",
        "all",
        LABELS[:classes],
        np.full(len(paths), classes - 1),
        path=lambda index: paths[index],
        encoded=lambda index: b"",
    )
    kept = np.array([index for index in range(len(paths)) if index not in broken], np.int64)
    row = np.arange(classes, 0, -1, dtype=np.float32)
    probabilities = np.tile(row / row.sum(), (len(kept), 1))
    return Measured(pictures, own_head(LABELS[:classes]), pictures.classes, kept, probabilities, broken)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_picture_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    check_predictions_file(path)
    assert list(tmp_path.iterdir()) == []
    write_predictions(path, measured("1.png", "two\nlines.png", "\udcff.png", broken={1: "cut, short"}))
    first, second, third = rows(path)
    assert first == {
        "path": "1.png", "label": "h", "predicted": "a, b", "probability": "0.285714", "label_probability": "0.047619",
        "predicted_2": 'c "d"', "probability_2": "0.238095", "predicted_3": "e", "probability_3": "0.190476",
        "predicted_4": "f", "probability_4": "0.142857", "predicted_5": "g", "probability_5": "0.0952381", "error": "",
    }  # fmt: skip
    assert second == dict.fromkeys(first, "") | {"path": "two\nlines.png", "label": "h", "error": "cut, short"}
    assert os.fsencode(third["path"]) == b"\xff.png"
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_of_two_labels_has_no_third(tmp_path: Path) -> None:
    write_predictions(tmp_path / "rows.csv", measured("1.png", broken={}, classes=2))
    [row] = rows(tmp_path / "rows.csv")
    assert list(row) == ["path", "label", "predicted", "probability", "label_probability", "predicted_2", "probability_2", "error"]


def test_files_beside_it_are_kept(tmp_path: Path) -> None:
    beside = tmp_path / "rows.csv.partial"
    beside.write_text("of the user")
    check_predictions_file(tmp_path / "rows.csv")
    write_predictions(tmp_path / "rows.csv", measured("1.png", broken={}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows.csv.partial"]
    assert beside.read_text() == "of the user"


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").mkdir()
    (tmp_path / "rows.csv" / "inside").touch()
    with pytest.raises(UserError, match=r"cannot write .*rows.csv: "):
        write_predictions(tmp_path / "rows.csv", measured("1.png", broken={}))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    with pytest.raises(UserError, match="exists: nothing is overwritten"):
        check_predictions_file(tmp_path / "rows.csv")
