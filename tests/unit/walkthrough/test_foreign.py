"""Walkthroughs of strangers' models: the same scores as a server takes, and what is assumed is said."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from PIL import Image

from export.cli.walkthrough import walkthrough
from export.walkthrough import network_page, subject
from service.errors import UserError
from tests.unit.model import foreign_graphs as foreign

PHOTO = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("write", "output", "labels", "shown"),
    [
        (foreign.old_ir, "p", "", [f"class {index}" for index in range(5)]),
        (foreign.features_first, "p", "a\nb\nc\nd\ne", list("abcde")),
        (foreign.sigmoid_unit, "p", "cat\ndog", ["cat", "dog"]),
        (foreign.uint8_logits, "scores", "", ["cat", "dog", "cow", "ant", "bee"]),
    ],
)
def test_the_answer_is_that_of_the_scores(
    write: Callable[[Path], Path], output: str, labels: str, shown: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "model.onnx")
    if labels:
        (tmp_path / "labels.txt").write_text(labels)
    session = ort.InferenceSession(path)
    picture = PHOTO[np.newaxis] if write is foreign.uint8_logits else PHOTO.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / 255
    [scores] = session.run([output], {"x": picture})
    expected = {"scores": np.exp(scores[0] - scores[0].max()), "p": scores[0]}[output]
    expected = np.concatenate([1 - expected, expected]) if len(expected) == 1 else expected / expected.sum()
    found = subject.load_subject(path)
    page = network_page.build_page(found, PHOTO, PHOTO, "photo.png")
    assert [bar.name for bar in page.answers] == [shown[index] for index in np.argsort(-expected)]
    assert page.answers[0].share == pytest.approx(float(expected.max()), abs=1e-4)
    assert page.notes[0].startswith(
        "Nothing in the file says how a picture becomes its input: assumed are a picture stretched to 8x8"
    )


def test_what_a_top_k_gives_is_not_taken_for_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the best 2 scores, 'values', and their classes"):
        network_page.build_page(subject.load_subject(foreign.top_k(tmp_path / "model.onnx")), PHOTO, PHOTO, "photo.png")


def test_sides_of_minus_one_are_free(tmp_path: Path) -> None:
    model = onnx.load(foreign.old_ir(tmp_path / "model.onnx"))
    for side in (0, 2, 3):
        next(value for value in model.graph.input if value.name == "x").type.tensor_type.shape.dim[side].dim_value = -1
    onnx.save(model, tmp_path / "model.onnx")
    assert subject.load_subject(tmp_path / "model.onnx").spec.height == 224


def test_what_is_assumed_is_said_on_stderr_too(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    path = foreign.old_ir(tmp_path / "model.onnx")
    result = CliRunner().invoke(walkthrough, [f"{tmp_path}/photo.png", "--model", str(path), "--output", f"{tmp_path}/tour"])
    assert result.exit_code == 0, result.output
    assert "stretched to 8x8, red, green, blue, its values scaled to 0..1 (--scaling)" in result.stderr
    assert "Nothing in the file says how a picture becomes its input" in (tmp_path / "tour" / "index.html").read_text()
