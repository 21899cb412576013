"""The figures, with few and with many classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.evaluation import figures
from export.evaluation.scores import Scores
from service.model.input_spec import InputSpec
from service.model.preprocessing import encode_png
from tests.unit.evaluation.answers import scores_of


@pytest.mark.parametrize("classes", [2, 30, 130])
def test_figures_of_few_and_many_classes(classes: int, tmp_path: Path) -> None:
    labels = ("$x$ < $y", "猫", *(f"class {index} with a name that is long" for index in range(2, classes)))
    random = np.random.default_rng(0)
    truth = random.integers(0, classes, 500)
    probabilities = random.dirichlet(np.full(classes, 0.1), 500).astype(np.float32)
    spec = InputSpec(height=8, width=6, channels=3)
    found = Scores(labels, truth, probabilities, temperature=1.5)
    names = figures.draw(found, lambda index: encode_png(np.full((9, 7, 3), index % 256, np.uint8)), spec, tmp_path)
    assert names == ["confusion.png", "reliability.png", "mistakes.png"]
    for name in ("confusion.png", "reliability.png", "mistakes.png"):
        picture = Image.open(tmp_path / name)
        assert 250 <= min(picture.size) <= max(picture.size) <= 2000
        assert len(picture.convert("L").getcolors() or []) > 10, "something is drawn"


def test_labels_that_are_cut_can_be_told_apart() -> None:
    given = {
        "exactly-twenty-chars": "exactly-twenty-chars",
        "Chesapeake-Bay-retriever dog": "Chesapeake…iever dog",
        "Chesapeake-Bay-retriever cat": "Chesapeake…iever cat",
        30 * "a": "aaaaaaaaaa…aaaaaaaaa (3)",
        31 * "a": "aaaaaaaaaa…aaaaaaaaa (4)",
        "日本語のとても長いラベルの名前": "日本語のと…ルの名前",
    }
    assert figures._shortened(list(given), 20) == list(given.values())


def test_without_mistakes_there_is_no_figure_of_them(tmp_path: Path) -> None:
    names = figures.draw(scores_of([0, 1], [0, 1]), lambda index: b"", InputSpec(height=1, width=1, channels=1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names) == ["confusion.png", "reliability.png"]
