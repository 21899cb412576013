"""Activations: the same values as in PyTorch, in fp32 and nearly in int8."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from export.data import datasets
from export.inspection.activations import Activations
from export.training.checkpoint import load_checkpoint
from export.training.inference import predict_logits
from export.walkthrough import (
    network_page,
)
from tests.unit.walkthrough.models import (
    COLOUR,
    normalised,
    qdq,
    subject_of,
    untrained,
)


def test_values_of_layers_are_those_of_torch(photo: np.ndarray) -> None:
    network = untrained("article-cnn", COLOUR, 10)
    activations = Activations(subject_of(network).model, True, photo[np.newaxis], 1)
    x = normalised(network, photo)
    by_name = {layer.name: layer for layer in activations.layers}
    np.testing.assert_allclose(activations.layers[0].value, x, atol=1e-5)
    for name, layer in network.network.named_children():
        x = layer(x)
        np.testing.assert_allclose(by_name[name].value, x.detach(), atol=1e-4, err_msg=name)
    convolution, layer = by_name["conv1"], network.network.get_submodule("conv1")
    assert isinstance(layer, torch.nn.Conv2d)
    assert convolution.weights is not None
    assert layer.bias is not None
    np.testing.assert_array_equal(convolution.weights, layer.weight.detach())
    np.testing.assert_array_equal(convolution.bias, layer.bias.detach())
    assert [layer.operator for layer in activations.layers][:3] == ["Transpose + Sub + Div", "Conv", "Relu"]


def test_an_int8_file_has_the_same_layers_with_nearly_the_same_values(run: Path, digits: datasets.Dataset, tmp_path: Path) -> None:
    loaded = load_checkpoint(run)
    exact = subject_of(loaded)
    rounded = dataclasses.replace(exact, model=qdq(exact.model, digits.training.pixels[:32], tmp_path))
    assert "QuantizeLinear" in {node.op_type for node in rounded.model.graph.node}
    pixels = digits.test.pixels[0]
    one, other = (Activations(each.model, True, pixels[np.newaxis], 1) for each in (exact, rounded))
    assert [layer.operator for layer in other.layers] == [layer.operator for layer in one.layers]
    assert [layer.name for layer in other.layers if layer.parameters] == [layer.name for layer in one.layers if layer.parameters]
    for expected, found in zip(one.layers, other.layers, strict=True):
        assert found.value.shape == expected.value.shape
        assert np.abs(found.value - expected.value).max() <= 0.1 * np.abs(expected.value).max() + 0.05, expected.name
    first, second = (next(layer for layer in each.layers if layer.weights is not None) for each in (one, other))
    assert first.weights is not None
    assert second.weights is not None
    np.testing.assert_allclose(second.weights, first.weights, atol=np.abs(first.weights).max() / 127)
    page = network_page.build_page(rounded, pixels, pixels.repeat(3, 2), "digit.png")
    assert page.answers[0].name == loaded.labels[int(predict_logits(loaded, pixels[np.newaxis]).argmax())]
    assert "rounded to integers" in page.notes[-1]
    assert [figure.name for figure in page.steps[2].figures] == ["03 conv1 filters", "03 conv1"]
