"""PyTorch's answers."""

from pathlib import Path

import numpy as np
import torch

from export.data import datasets
from export.training.checkpoint import load_checkpoint
from export.training.inference import predict_logits


def test_logits_are_those_of_the_network_for_normalised_pixels(run: Path, digits: datasets.Dataset) -> None:
    checkpoint = load_checkpoint(run)
    logits = predict_logits(checkpoint, digits.test.pixels)
    assert logits.shape == (360, 10)
    assert logits.dtype == np.float32
    normalised = (digits.test.pixels.astype(np.float64) - checkpoint.mean) / checkpoint.std
    with torch.no_grad():
        expected = checkpoint.network(torch.from_numpy(normalised).float().permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
