"""Exporting real networks: what is in the file, and what is refused."""

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch

from export.convert import pipeline
from export.data import datasets
from export.evaluation.measurement import predict
from export.training.checkpoint import load_checkpoint
from export.training.inference import predict_logits
from service.errors import UserError
from service.model.input_spec import InputSpec
from service.model.loading import load_model
from tests.unit.convert.networks import last_layer


def test_the_exported_file_is_the_network_with_its_contract(run: Path, model_file: Path, digits: datasets.Dataset) -> None:
    checkpoint = load_checkpoint(run)
    loaded = load_model(model_file, "cpu", 1)
    contract = loaded.contract
    pixels = digits.test.pixels
    logits = torch.from_numpy(predict_logits(checkpoint, pixels))
    expected = (logits / contract.temperature).softmax(1).numpy()
    found = predict(loaded, pixels)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert contract.name == "digits"
    assert contract.labels == digits.labels
    assert contract.training is not None
    assert contract.training.epochs == checkpoint.epoch
    assert contract.measured.accuracy == pytest.approx((found.argmax(1) == digits.test.labels).mean())
    assert contract.measured.accuracy_interval is not None
    assert contract.measured.versions["torch"] == importlib.metadata.version("torch")
    assert len(contract.golden) == 4
    assert {sample.tolerance["cpu"] for sample in contract.golden} == {1e-4}
    graph = onnx.load(model_file, load_external_data=False).graph
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)
    served = loaded._run(["logits"], {"image": pixels[:8]})[0]
    softmax = np.exp(served) / np.exp(served).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, found[:8], atol=1e-6)


def test_a_few_validation_pictures_fit_no_temperature_and_the_card_says_so(
    run: Path, digits: datasets.Dataset, tmp_path: Path
) -> None:
    validation = dataclasses.replace(digits.validation, pixels=digits.validation.pixels[:3], labels=digits.validation.labels[:3])
    checkpoint = load_checkpoint(run)
    exported = pipeline.export(checkpoint, dataclasses.replace(digits, validation=validation), tmp_path, "few")
    assert load_model(exported.path, "cpu", 1).contract.temperature == 1.0
    card = (exported.path.parent / "README.md").read_text()
    assert "| validation | 3 | nothing: too few to choose the epoch, which is the last, or a temperature |" in card
    assert "3 validation pictures are too few to fit one (50 are enough)" in card


class Residual(torch.nn.Module):
    """A block with batch normalisation and a skip connection, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.normalisation = torch.nn.BatchNorm2d(8)
        self.last = torch.nn.Linear(8 * 7 * 7, 10)
        for values in (self.normalisation.running_mean, self.normalisation.bias):
            torch.nn.init.normal_(cast(torch.Tensor, values))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.normalisation(self.convolution(x)) + x)
        return cast(torch.Tensor, self.last(torch.nn.functional.avg_pool2d(y, 4).flatten(1)))


def test_a_residual_network_with_batch_normalisation_is_exported(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint = dataclasses.replace(load_checkpoint(run), network=Residual().eval())
    exported = pipeline.export(checkpoint, digits, tmp_path, "residual", calibrate=False)
    path = exported.path
    assert exported.parity.max_difference < 1e-5
    assert load_model(path, "cpu", 1).contract.temperature == 1.0
    assert "No temperature is applied" in (path.parent / "README.md").read_text()


def test_a_network_that_is_three_times_too_sure_gets_three_times_the_temperature(
    run: Path, model_file: Path, digits: datasets.Dataset, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(run)
    before = load_model(model_file, "cpu", 1)
    temperature = before.contract.temperature
    assert temperature != 1.0, "the validation part determines one"
    last = last_layer(checkpoint)
    with torch.no_grad():
        last.weight.mul_(3)
        last.bias.mul_(3)
    steps: list[tuple[Any, ...]] = []

    def on_progress(*step: Any) -> None:
        steps.append(step)

    exported = pipeline.export(checkpoint, digits, tmp_path, "sure", run=run, on_progress=on_progress)
    path, found = exported.path, exported.comparison
    after = load_model(path, "cpu", 1)
    assert after.contract.temperature == pytest.approx(3 * temperature, rel=1e-3)
    assert found.scores.reliability_before.error != found.scores.reliability.error
    pixels = digits.test.pixels[:64]
    np.testing.assert_allclose(after.probabilities(pixels), before.probabilities(pixels), atol=1e-3)
    logits = after._run(["logits"], {"image": pixels})[0]
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), after.probabilities(pixels), atol=1e-6)
    assert ("fitting the temperature", 180, 180) in steps
    assert ("comparing with PyTorch", 360, 360) in steps
    assert (path.parent / "curves.png").read_bytes() == (run / "curves.png").read_bytes()
    assert "](curves.png)" in (path.parent / "README.md").read_text()


def test_data_that_are_not_those_of_the_training_are_refused(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run)
    other = dataclasses.replace(digits, labels=(*digits.labels[:9], "nine"))
    with pytest.raises(UserError, match="only the data has 'nine'; only the model has '9'"):
        pipeline.export(checkpoint, other, tmp_path / "models", "digits")
    small = dataclasses.replace(digits, input=InputSpec(height=8, width=8, channels=1))
    with pytest.raises(UserError, match=r"takes images of 28x28x1 \(stretched, bilinear\), the data come as 8x8x1"):
        pipeline.export(checkpoint, small, tmp_path / "models", "digits")
    assert checkpoint.data_digest == "digits"
    with pytest.raises(UserError, match="digits is not what the network was trained on: another data set, or images were added"):
        pipeline.export(checkpoint, dataclasses.replace(digits, digest="mnist"), tmp_path / "models", "digits")
    assert not (tmp_path / "models").exists()
