"""Class activation maps, by PyTorch and by hand, and occlusion."""

from typing import Any

import numpy as np
import pytest
import torch

from export.inspection.activations import Activations
from export.walkthrough import (
    attribution,
)
from tests.unit.walkthrough.models import COLOUR, normalised, subject_of, untrained


@pytest.mark.parametrize(("text", "classes"), [("resnet18", 10), ("resnet18:head=sigmoid", 2)])
def test_a_class_activation_map_is_the_score_spread_over_the_picture(text: str, classes: int, photo: np.ndarray) -> None:
    network = untrained(text, COLOUR, classes)
    activations = Activations(subject_of(network, 2.5).model, True, photo[np.newaxis], 1)
    with torch.no_grad():
        x = normalised(network, photo)
        layers = dict(network.network.named_children())
        for name, layer in layers.items():
            if name == "mean":
                break
            x = layer(x)
        output = layers["output"]
        assert isinstance(output, torch.nn.Linear)
        by_hand = torch.einsum("kc,chw->khw", output.weight, x[0])
        logits = output(x.mean((2, 3)))[0]
    for index in range(classes):
        found = attribution.class_activation(activations, "logits", index)
        assert found is not None
        assert found.shape == (4, 4)
        expected = by_hand[index] if classes > 2 else by_hand[0] * (1 if index else -1)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        if classes > 2:  # the map's mean and the bias are the logit, before its temperature
            assert found.mean() + output.bias[index].item() == pytest.approx(logits[index].item(), abs=1e-4)


@pytest.mark.parametrize("text", ["article-cnn", "speed-net"])
def test_other_networks_have_no_class_activation_map(text: str, photo: np.ndarray) -> None:
    activations = Activations(subject_of(untrained(text, COLOUR, 10)).model, True, photo[np.newaxis], 1)
    assert attribution.class_activation(activations, "logits", 0) is None


def test_occlusion_finds_the_one_pixel_that_counts() -> None:
    pixels = np.full((20, 30, 1), 10, np.uint8)
    pixels[5, 22] = 210

    def run(pictures: np.ndarray) -> Any:
        for half in np.array_split(pictures, 2):
            bright = half[:, 5, 22, 0].astype(np.float32)
            yield np.stack([np.zeros_like(bright), bright / 50], axis=1)

    counts: list[tuple[int, int]] = []
    found = attribution.occlusion(run, pixels, 1, lambda done, total: counts.append((done, total)))
    assert counts[-1] == (found.tried + 1, found.tried + 1)
    assert found.heat.shape == (20, 30)
    assert found.heat[5, 22] == pytest.approx((210 - 10) / 50, rel=1e-5)  # every patch over it takes as much: the colour is 10
    row, column = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert abs(row - 5) < found.patch
    assert abs(column - 22) < found.patch
    far = np.abs(np.arange(20) - 5)[:, None] >= 2 * found.patch
    assert not found.heat[np.broadcast_to(far, found.heat.shape)].any()
    assert found.worst[5, 22, 0] == 10
