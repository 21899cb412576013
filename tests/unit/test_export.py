"""The parts of the export stage, on small real work."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import data, evaluation, inspection, networks, training
from service import model
from service.contract import Contract, InputSpec
from service.errors import UserError


def test_digits_come_in_three_disjoint_stratified_parts(digits: data.Dataset) -> None:
    parts = (digits.training, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1257, 180, 360]
    for part in parts:
        shares = np.bincount(part.labels) / len(part)
        assert shares.min() > 0.08
        assert shares.max() < 0.12
    assert digits.test.pixels.shape == (360, 28, 28, 1)
    assert digits.test.pixels.dtype == np.uint8
    assert digits.test.pixels.max() == 255


def test_parts_are_everything_once_and_the_same_for_the_same_seed() -> None:
    labels = np.repeat(np.arange(5), 40)
    parts = data.stratified_parts(labels, (0.7, 0.1, 0.2), seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    again, other = data.stratified_parts(labels, (0.7, 0.1, 0.2), 3), data.stratified_parts(labels, (0.7, 0.1, 0.2), 4)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[2], other[2])


def test_the_articles_cnn_is_the_one_of_the_articles() -> None:
    network = networks.build("article-cnn", InputSpec(height=28, width=28, channels=1), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 93_322
    x = torch.zeros(2, 1, 28, 28)
    shapes = []
    for layer in network:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (32, 26, 26), (32, 26, 26), (32, 13, 13), (64, 11, 11), (64, 11, 11), (64, 5, 5), (64, 3, 3), (64, 3, 3),
        (576,), (64,), (64,), (10,),
    ]  # fmt: skip


def test_networks_fit_other_inputs_or_say_that_they_do_not() -> None:
    assert networks.build("article-cnn", InputSpec(height=32, width=40, channels=3), 7)(torch.zeros(2, 3, 32, 40)).shape == (2, 7)
    assert networks.build("article-cnn", InputSpec(height=18, width=18, channels=1), 2)(torch.zeros(1, 1, 18, 18)).shape == (1, 2)
    with pytest.raises(UserError, match="at least 18x18; the input is 17x28"):
        networks.build("article-cnn", InputSpec(height=17, width=28, channels=1), 2)
    with pytest.raises(UserError, match="no network named 'lenet'"):
        networks.build("lenet", InputSpec(height=28, width=28, channels=1), 2)


def test_a_seed_gives_the_same_training_and_the_best_epoch_is_kept(tmp_path: Path, digits: data.Dataset) -> None:
    histories: list[list[training.Epoch]] = []
    checkpoints = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        histories.append([])
        settings = training.Settings("article-cnn", epochs=2, seed=7)
        checkpoints.append(training.train(digits, settings, tmp_path / name, on_epoch=histories[-1].append))
    assert [epoch.training_loss for epoch in histories[0]] == [epoch.training_loss for epoch in histories[1]]
    best = min(histories[0], key=lambda epoch: epoch.validation_loss)
    assert checkpoints[0].epoch == best.epoch
    written = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_loss"] for line in written] == [epoch.validation_loss for epoch in histories[0]]
    probabilities = [training.predict(checkpoint, digits.test.pixels) for checkpoint in checkpoints]
    assert np.array_equal(probabilities[0], probabilities[1])


def test_a_training_that_diverges_says_so_and_keeps_nothing(tmp_path: Path, digits: data.Dataset) -> None:
    settings = training.Settings("article-cnn", epochs=3, learning_rate=1e30)
    with pytest.raises(UserError, match="the training diverged in epoch 1"):
        training.train(digits, settings, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_exported_file_is_the_network_with_its_contract(run: Path, model_file: Path, digits: data.Dataset) -> None:
    checkpoint = training.load(run)
    loaded = model.load(model_file, "cpu", 1)
    contract = loaded.contract
    pixels = digits.test.pixels
    logits = torch.from_numpy(training.logits(checkpoint, pixels))
    expected = (logits / contract.training.temperature).softmax(1).numpy()
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
    served = loaded._run(["logits"], {"image": pixels[:8]})[0]
    softmax = np.exp(served) / np.exp(served).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, found[:8], atol=1e-6)


def test_inspection_counts_as_keras_does(model_file: Path) -> None:
    found = inspection.inspect(model_file)
    assert found.parameters == 93_322
    assert found.macs == 2_794_240
    by_operator = [layer for layer in found.layers if layer.operator == "Conv"]
    assert [layer.parameters for layer in by_operator] == [320, 18_496, 36_928]
    assert [layer.shape for layer in by_operator] == [("N", 32, 26, 26), ("N", 64, 11, 11), ("N", 64, 3, 3)]
    assert isinstance(found.contract, Contract)
    assert found.size_bytes == model_file.stat().st_size


def test_inspection_of_a_file_that_convoy_did_not_write(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "w")],
    )  # fmt: skip
    path = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    found = inspection.inspect(path)
    assert found.contract is None
    assert (found.parameters, found.macs) == (6, 6)
