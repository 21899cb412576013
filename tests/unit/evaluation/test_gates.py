"""The gates: which files pass parity and accuracy, and the figures in a refusal."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from export.convert import pipeline
from export.data import datasets
from export.evaluation.gates import PARITY_TOLERANCE, Comparison, Reference, check_accuracy, check_parity, compare
from export.networks.architectures import Network, ZeroLogit
from export.training.checkpoint import load_checkpoint
from service.errors import UserError
from service.model.loading import load_model
from tests.unit.evaluation.answers import scores_of


def comparison(wrong: int = 1, **changes: float) -> Comparison:
    truth = [0] * 100
    values = {"reference_accuracy": 0.99, "max_difference": 1e-6, "same_top1": 1.0, "changed_labels": 0}
    return Comparison(scores_of(truth, [1] * wrong + [0] * (100 - wrong)), **(values | changes))  # type: ignore[arg-type]


def check(found: Comparison, minimum: float) -> None:
    check_parity(found)
    check_accuracy(found, minimum)


def test_good_files_pass_the_gates() -> None:
    check(comparison(), 0.98)
    check(comparison(same_top1=0.99), 0.98)  # ties alone
    check_accuracy(comparison(wrong=2), minimum=0.0, max_loss=0.01)


@pytest.mark.parametrize(
    ("found", "minimum", "message"),
    [
        (comparison(max_difference=2e-4), 0.0, "parity gate: ONNX and PyTorch differ by up to 0.0002"),
        (comparison(max_difference=float("nan")), 0.0, "parity gate"),
        (comparison(same_top1=0.99, changed_labels=1), 0.0, "agree on 99.00% of 100 images; 1 labels changed"),
        (comparison(wrong=2), 0.0, r"98.00% as served against 99.00% in PyTorch, on 100 images: 1.00 points lost .allowed: 0.5"),
        (comparison(), 0.995, "accuracy gate: 99.00% on 100 images is below the minimum of 99.50%"),
    ],
)
def test_gates_refuse_with_the_figures(found: Comparison, minimum: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(found, minimum)


def sigmoid_head(features: int) -> Network:
    """Undecided about everything, but for 1e-5: logits [0, z]."""
    unit = torch.nn.Linear(features, 1)
    torch.nn.init.zeros_(unit.weight)
    torch.nn.init.constant_(unit.bias, 1e-5)
    network = Network(torch.nn.Flatten(), unit, ZeroLogit())
    network.head = "sigmoid"
    return network


def test_a_tie_may_go_either_way_and_a_lead_may_not(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    """A sigmoid head exported, and compared with networks whose answers differ from its own by less than the parity gate allows."""
    two = dataclasses.replace(
        digits, labels=("even", "odd"), **{
            name: dataclasses.replace(getattr(digits, name), labels=getattr(digits, name).labels % 2)
            for name in ("training", "validation", "test")
        },
    )  # fmt: skip
    checkpoint = dataclasses.replace(load_checkpoint(run), network=sigmoid_head(28 * 28).eval(), labels=two.labels)
    exported = pipeline.export(checkpoint, two, tmp_path, "parity")
    served = load_model(exported.path, "cpu", 1)
    assert served.contract.head == "sigmoid"
    assert exported.comparison.same_top1 == 1.0

    def network(lead: float) -> Reference:
        """Answers `even`, by so much."""
        return lambda pixels: np.tile(np.array([0.5 + lead / 2, 0.5 - lead / 2], np.float32), (len(pixels), 1))

    tie = compare(served, network(5e-5), two.test, two.labels)
    assert (tie.same_top1, tie.changed_labels) == (0.0, 0)
    check_parity(tie)
    lead = compare(served, network(1.5e-4), two.test, two.labels)
    assert lead.max_difference < PARITY_TOLERANCE
    assert lead.changed_labels == 360
    with pytest.raises(UserError, match="360 labels changed"):
        check_parity(lead)
