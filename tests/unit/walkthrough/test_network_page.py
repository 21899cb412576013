"""The page of a network: every layer down to the probabilities, and a worked example."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from PIL import Image

from export.walkthrough import (
    network_page,
    subject,
)
from service.errors import UserError
from service.model.contract import Head
from service.model.input_spec import InputSpec
from tests.unit.evaluation.colors import color_model
from tests.unit.model import foreign_graphs
from tests.unit.walkthrough.models import (
    COLOUR,
    GRAY,
    added_up,
    equations,
    is_true,
    normalised,
    subject_of,
    untrained,
    without_contract,
)


@pytest.mark.parametrize(
    ("text", "spec", "classes"),
    [
        ("article-cnn", GRAY, 10), ("article-cnn:head=sigmoid,pool=average,activation=tanh", COLOUR, 2),
        ("twelve-filters:kernel=5", COLOUR, 10), ("step-by-step:activation=sigmoid", GRAY, 10), ("resnet18", COLOUR, 10),
        ("resnet18:head=sigmoid,stem=imagenet", InputSpec(height=64, width=64, channels=1), 2), ("speed-net:width=32", COLOUR, 10),
    ],
)  # fmt: skip
def test_every_network_is_shown_down_to_its_probabilities(text: str, spec: InputSpec, classes: int, photo: np.ndarray) -> None:
    network = untrained(text, spec, classes)
    image = Image.fromarray(photo).resize((spec.width, spec.height)).convert("L" if spec.channels == 1 else "RGB")
    pixels = np.asarray(image).reshape(spec.shape)
    page = network_page.build_page(subject_of(network, 1.7), pixels, photo, "photo.png")
    expected = (network.network(normalised(network, pixels)) / 1.7).softmax(1)[0].detach().numpy()
    last = page.steps[-1]
    assert last.title == ("Sigmoid" if "head=sigmoid" in text else "Softmax")
    np.testing.assert_allclose(last.value[0], expected, atol=1e-5)
    assert [bar.name for bar in last.bars] == list(network.labels)
    np.testing.assert_allclose([bar.share for bar in last.bars], expected / expected.max(), atol=1e-4)
    assert [is_true(each) for each in equations(last.text)] == ([True] if "head=sigmoid" in text else [])
    best = int(expected.argmax())
    assert page.answers[0].name == network.labels[best]
    assert page.answers[0].share == pytest.approx(float(expected[best]), abs=1e-5)
    learned = sum(value.numel() for value in network.network.parameters())
    folded = sum(step.parameters for step in page.steps)  # batch norms are folded into convolutions, where that can be done
    assert folded == learned if "resnet" not in text and "speed" not in text else 0.99 * learned < folded < learned
    first = next(step for step in page.steps if step.title == "Convolution")
    assert [figure.name.endswith("filters") for figure in first.figures] == [True, False]
    assert page.sections[0].title == f"Which pixels mattered for “{network.labels[best]}”"


def test_the_worked_example_of_a_network_adds_up(photo: np.ndarray) -> None:
    page = network_page.build_page(subject_of(untrained("article-cnn", COLOUR, 10)), photo, photo, "photo.png")
    step = next(step for step in page.steps if step.example)
    assert step.example is not None
    assert [line[0][0] for line in step.example.lines] == ["red", "+ green", "+ blue"]
    assert added_up(step.example) == step.example.result
    strongest = step.value.ravel()[np.abs(step.value).argmax()]
    assert float(step.example.result.split()[-1]) == pytest.approx(float(strongest), rel=5e-3)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixels_may_be_fractions_and_several_labels_true(tmp_path: Path, dtype: Literal["uint8", "float32"]) -> None:
    path = color_model(tmp_path / "model.onnx", threshold=0.5)
    found = subject.load_subject(path)
    [last] = [node for node in found.model.graph.node if "probabilities" in node.output]
    last.CopyFrom(onnx.helper.make_node("Sigmoid", last.input, last.output))
    spec = found.spec.model_copy(update={"dtype": dtype})
    kind = onnx.TensorProto.FLOAT if dtype == "float32" else onnx.TensorProto.UINT8
    found.model.graph.input[0].type.tensor_type.elem_type = kind
    pixels = (np.full((4, 4, 3), (200, 100, 20)) + (0.4 if dtype == "float32" else 0)).astype(dtype)
    page = network_page.build_page(replace(found, spec=spec), pixels, np.zeros((4, 4, 3), np.uint8), "photo.png")
    expected = 1 / (1 + np.exp(-pixels[0, 0].astype(np.float64) / 50))
    assert [bar.name for bar in page.answers] == ["red", "green", "blue"]
    assert [bar.share for bar in page.answers] == pytest.approx(expected.tolist(), abs=1e-5)
    assert ("each a whole number from 0" in page.steps[0].text) == (dtype == "uint8")
    assert "“red” has 9" in page.sections[0].figures[-1].caption


def test_labels_must_be_as_many_as_scores(tmp_path: Path, photo: np.ndarray) -> None:
    path = without_contract(tmp_path / "net.onnx", "NCHW", shape=["N", 3, 32, 32])
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="5 scores, but there are 2 labels"):
        network_page.build_page(subject.load_subject(path), photo, photo, "photo.png")


def test_steps_of_one_head_alone_have_its_name(tmp_path: Path) -> None:
    further = [Head(name=name, output=f"{name}_p", labels=(f"{name}-r", f"{name}-g"), activation="softmax") for name in ("a", "b")]
    found = subject.load_subject(color_model(tmp_path / "model.onnx", further=further))
    pixels = np.full((4, 4, 3), (200, 100, 20), np.uint8)
    page = network_page.build_page(found, pixels, pixels, "photo.png")
    titles = [step.title for step in page.steps]
    assert titles[-3:] == ["Softmax (head probabilities)", "Softmax (head a)", "Softmax (head b)"]
    assert not any("head" in title for title in titles[:-3]), "the slice is of both"
    assert [bar.name for bar in page.steps[-1].bars] == ["b-r", "b-g"]
    assert "several answers: probabilities, a, b. The answer above is that of probabilities." in page.notes[0]


def test_outputs_of_a_file_without_contract_are_heads_unless_one_is_made_of_another(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    for write, titles in (
        (
            foreign_graphs.two_heads,
            ["Dense layer (head color)", "Softmax (head color)", "Dense layer (head shape)", "Softmax (head shape)"],
        ),
        (foreign_graphs.features_first, ["Dense layer", "Softmax"]),
    ):
        found = subject.load_subject(write(tmp_path / write.__name__ / "model.onnx"))
        page = network_page.build_page(found, pixels, pixels, "photo.png")
        assert [step.title for step in page.steps][-len(titles) :] == titles
