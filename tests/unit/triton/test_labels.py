"""Which labels an output has, of those that a `config.pbtxt`, a `serving.toml` and a labels.txt have for it."""

from pathlib import Path

import pytest

from service.errors import InvalidModel
from service.triton.labels import declared_labels
from service.triton.settings import read_settings

COLORS, SHAPES, OTHERS = ("red", "blue"), ("round", "square"), ("light", "dark")
CONFIG = """
output { name: "color" label_filename: "colors.txt" dims: 2 }
output { name: "shape" label_filename: "shapes.txt" dims: 2 }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "colors.txt").write_text("\n".join(COLORS))
    (folder / "shapes.txt").write_text("\n".join(SHAPES))
    return folder


@pytest.mark.parametrize(
    ("version_labels", "serving", "of_scores", "by_output", "whence"),
    [
        ("", "", None, {"color": COLORS, "shape": SHAPES}, "config.pbtxt"),
        ("light\ndark", "", OTHERS, {"color": COLORS, "shape": SHAPES}, "config.pbtxt"),
        ("", 'labels = ["light", "dark"]', None, {"": OTHERS, "color": COLORS, "shape": SHAPES}, "config.pbtxt or serving.toml"),
        ("", 'labels.shape = ["light", "dark"]', None, {"color": COLORS, "shape": OTHERS}, "config.pbtxt or serving.toml"),
    ],
)
def test_labels_replace_those_of_the_same_output_alone(
    version_labels: str,
    serving: str,
    of_scores: tuple[str, ...] | None,
    by_output: dict[str, tuple[str, ...]],
    whence: str,
    model: Path,
) -> None:
    if version_labels:
        (model / "1" / "labels.txt").write_text(version_labels)
    (model / "serving.toml").write_text(serving)
    labels, declared = declared_labels(model.parent, "pets", 1, read_settings(model.parent, "pets"))
    assert (labels, declared.labels, declared.labels_from) == (of_scores, by_output, whence)


def test_a_file_that_the_config_names_is_missed_whatever_else_has_labels(model: Path) -> None:
    (model / "1" / "labels.txt").write_text("light\ndark")
    (model / "shapes.txt").unlink()
    with pytest.raises(InvalidModel, match=r"config\.pbtxt: there is no file 'shapes\.txt' in the model's folder"):
        declared_labels(model.parent, "pets", 1, read_settings(model.parent, "pets"))
