"""The parts of the export stage, on small real work."""

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch

from export import data, evaluation, onnx_export, training
from service import model
from service.errors import UserError


def test_the_exported_file_is_the_network_with_its_contract(run: Path, model_file: Path, digits: data.Dataset) -> None:
    checkpoint = training.load(run)
    loaded = model.load(model_file, "cpu", 1)
    contract = loaded.contract
    pixels = digits.test.pixels
    expected = training.predict(checkpoint, pixels)
    found = evaluation.predict(loaded, pixels)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert contract.name == "digits"
    assert contract.labels == digits.labels
    assert contract.training.epochs == checkpoint.epoch
    assert contract.training.accuracy == pytest.approx((found.argmax(1) == digits.test.labels).mean())
    assert contract.training.accuracy_interval is not None
    assert contract.training.versions["torch"] == torch.__version__
    assert len(contract.golden) == 4
    assert {sample.tolerance["cpu"] for sample in contract.golden} == {1e-4}
    graph = onnx.load(model_file, load_external_data=False).graph
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)
    logits = loaded._run(["logits"], {"image": pixels[:8]})[0]
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, found[:8], atol=1e-6)


def report(**changes: float) -> evaluation.Report:
    values = {
        "items": 100, "accuracy": 0.99, "accuracy_interval": (0.9, 1.0), "reference_accuracy": 0.99,
        "max_difference": 1e-6, "same_top1": 1.0,
    }  # fmt: skip
    return evaluation.Report(**(values | changes))  # type: ignore[arg-type]


def test_gates_pass_what_is_right() -> None:
    evaluation.check(report(), minimum_accuracy=0.98)


@pytest.mark.parametrize(
    ("changes", "minimum", "message"),
    [
        ({"max_difference": 2e-4}, 0.0, "parity gate: ONNX and PyTorch differ by 0.0002"),
        ({"max_difference": float("nan")}, 0.0, "parity gate"),
        ({"same_top1": 0.99}, 0.0, "agree on 99.00% of 100 pictures"),
        ({"accuracy": 0.98}, 0.0, "accuracy gate: 98.00% as served against 99.00% in PyTorch"),
        ({}, 0.995, "accuracy gate: 99.00% on 100 pictures is below the minimum of 99.50%"),
    ],
)
def test_gates_refuse_with_the_figures(changes: dict[str, float], minimum: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluation.check(report(**changes), minimum)


def test_a_file_that_answers_otherwise_than_the_network_is_not_published(run: Path, digits: data.Dataset, tmp_path: Path) -> None:
    """Parity fails for real: the graph is made from other weights than the checkpoint that it is compared with."""
    checkpoint = training.load(run)
    graph = onnx_export.to_onnx(checkpoint)
    contract = onnx_export._contract(checkpoint, digits, "digits")
    path = tmp_path / "model.onnx"
    onnx_export.write(graph, contract, path)
    evaluation.check(onnx_export.evaluate(path, checkpoint, digits), 0.0)
    with torch.no_grad():
        cast(torch.nn.Linear, checkpoint.network.get_submodule("output")).bias[3] += 1.0
    with pytest.raises(UserError, match="parity gate"):
        evaluation.check(onnx_export.evaluate(path, checkpoint, digits), 0.0)


def test_wilson_interval_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert evaluation.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert evaluation.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert evaluation.wilson_interval(20, 20)[1] == 1.0
