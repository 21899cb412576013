"""The steps of the tutorials: their shapes, and the same numbers as in PyTorch."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional

from export.walkthrough import (
    tutorial_steps,
)
from tests.unit.walkthrough.models import MAX_PIXELS


def test_the_steps_have_the_shapes_of_the_tutorials(flower: Path) -> None:
    steps = tutorial_steps.compute_steps(flower.read_bytes(), MAX_PIXELS)
    shapes = {field.name: getattr(steps, field.name).shape for field in dataclasses.fields(steps)}
    assert shapes == {
        "loaded": (427, 640, 3), "gray": (427, 640, 1), "resized": (300, 300, 1), "normalised": (1, 300, 300, 1),
        "convolved": (1, 300, 300, 1), "rectified": (1, 300, 300, 1), "pooled": (1, 150, 150, 1), "flat": (1, 22500),
        "dense": (1, 64),
    }  # fmt: skip
    assert all(getattr(steps, name).dtype == np.float32 for name in ("normalised", "convolved", "pooled", "flat", "dense"))


def test_the_steps_compute_what_torch_computes(flower: Path) -> None:
    steps = tutorial_steps.compute_steps(flower.read_bytes(), MAX_PIXELS)
    assert (steps.loaded == load_sample_image("flower.jpg")).all()
    red, green, blue = steps.loaded.astype(float).transpose(2, 0, 1)
    assert np.abs(steps.gray[:, :, 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 1
    x = torch.from_numpy(steps.normalised).permute(0, 3, 1, 2)
    assert 0 <= x.min() < x.max() <= 1
    convolved = functional.conv2d(x, torch.from_numpy(tutorial_steps.LAPLACIAN)[None, None], padding=1)
    pooled = functional.max_pool2d(convolved.relu(), 2)
    np.testing.assert_allclose(steps.convolved, convolved.permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(steps.pooled, pooled.permute(0, 2, 3, 1), atol=1e-5)
    weights = torch.from_numpy(tutorial_steps.dense_weights(22500))
    np.testing.assert_allclose(steps.dense, pooled.reshape(1, -1) @ weights, atol=1e-3)
    assert weights.abs().max() <= (6 / 22564) ** 0.5


def test_an_exif_orientation_is_applied(flower: Path) -> None:
    turned = Image.open(flower).convert("RGB").rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    assert (tutorial_steps.decode_photo(buffer.getvalue(), MAX_PIXELS) == load_sample_image("flower.jpg")).all()
