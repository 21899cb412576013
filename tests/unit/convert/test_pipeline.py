"""The parts of the export stage, on small real work."""

import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.data import datasets
from export.evaluation import scores
from export.training import loop
from service.model import session


def test_the_exported_file_is_the_network_with_its_contract(run: Path, model_file: Path, digits: datasets.Dataset) -> None:
    checkpoint = loop.load_checkpoint(run)
    loaded = session.load_model(model_file, "cpu", 1)
    contract = loaded.contract
    pixels = digits.test.pixels
    logits = torch.from_numpy(loop.logits(checkpoint, pixels))
    expected = (logits / contract.training.temperature).softmax(1).numpy()
    found = scores.predict(loaded, pixels)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert contract.name == "digits"
    assert contract.labels == digits.labels
    assert contract.training.epochs == checkpoint.epoch
    assert contract.training.accuracy == pytest.approx((found.argmax(1) == digits.test.labels).mean())
    assert contract.training.accuracy_interval is not None
    assert contract.training.versions["torch"] == importlib.metadata.version("torch")
    assert len(contract.golden) == 4
    assert {sample.tolerance["cpu"] for sample in contract.golden} == {1e-4}
    graph = onnx.load(model_file, load_external_data=False).graph
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)
    served = loaded._run(["logits"], {"image": pixels[:8]})[0]
    softmax = np.exp(served) / np.exp(served).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, found[:8], atol=1e-6)
