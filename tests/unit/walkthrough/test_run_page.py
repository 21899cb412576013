"""The page of a run: its network as it was trained, with its batch norms, and how many weights its file will have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.convert.onnx_conversion import to_onnx
from export.inspection.folded_norms import why
from export.inspection.layers import layer_table
from export.networks import architectures
from export.training.checkpoint import Checkpoint, save_checkpoint
from export.walkthrough import network_page, subject
from service.model.input_spec import InputSpec
from tests.unit.walkthrough.models import COLOUR, GRAY, qdq, subject_of, untrained

NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.SiLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
        self.c = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.GroupNorm(2, 8))
        self.d = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.a(x)
        return self.d(self.c(x + self.b(x)).mean((2, 3)))
"""


@pytest.fixture
def network(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NETWORK)
    return f"{tmp_path / 'net.py'}:Net"


@pytest.mark.parametrize(
    ("name", "spec", "norms", "folded"),
    [("own", GRAY, 3, 2), ("speed-net:width=32", COLOUR, 6, 3)],
)
def test_a_run_is_shown_as_it_was_trained(
    network: str, name: str, spec: InputSpec, norms: int, folded: int, tmp_path: Path, photo: np.ndarray
) -> None:
    text = network if name == "own" else name
    found = untrained(text, spec, 3)
    save_checkpoint(replace(found, code=architectures.code(text)), tmp_path)
    shown = subject.load_subject(tmp_path)
    assert [output.name for output in shown.model.graph.output] == ["probabilities", "logits"]
    pixels = photo[: spec.height, : spec.width, : spec.channels].copy()
    page = network_page.build_page(shown, pixels, pixels, "photo.png", 1)
    steps = {step.name: step for step in page.steps}
    assert [step.title for step in page.steps].count("Batch norm") == norms
    for step in page.steps:
        module = dict(found.network.named_modules()).get(step.name)
        if step.title == "Convolution" and module is not None:
            assert ("and a bias" in step.text) == (module.bias is not None), step.text
    learned = [bar.name for bar in page.sections[-1].bars]
    assert set(learned) <= set(steps), "what has a gradient is a step of the page"
    assert page.facts["trained weights"] == f"{trained(found):,}"
    rows = layer_table(to_onnx(found), has_contract=True)
    exported = sum(row.parameters - row.statistics for row in rows)
    assert sum(row.folds_norm for row in rows) == folded
    assert page.facts["in an exported file"] == f"{exported:,}: {why(trained(found), exported, folded)}"


def test_a_file_says_where_its_norms_are_in_int8_too(network: str, tmp_path: Path, photo: np.ndarray) -> None:
    own = untrained(network, COLOUR, 3)
    file = replace(subject_of(own), trained_parameters=trained(own))
    for model in (file.model, qdq(file.model, np.stack([photo] * 2), tmp_path)):
        page = network_page.build_page(replace(file, model=model), photo, photo, "p")
        first, second, third = (step.text for step in page.steps if step.title == "Convolution")
        assert "a bias, the export having folded the batch norm that follows" in first
        assert "a bias, the export having folded the batch norm that follows" in second
        assert "bias" not in third
        assert page.facts["in an exported file"].endswith(why(1, 2, 2))


def test_why_there_are_fewer() -> None:
    assert why(5, 5, 0) == ""
    assert why(11_173_962, 11_169_162, 20).startswith("20 batch norms are folded into the layers before them: the filters take")
    assert why(9, 8, 1).startswith("the batch norm is folded into the layer before it")
    assert "once for several" in why(9, 8, 0)


def trained(found: Checkpoint) -> int:
    return sum(weights.numel() for weights in found.network.parameters())
