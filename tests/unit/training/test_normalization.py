"""Mean and standard deviation of training pictures."""

import numpy as np
import torch

from export.training.normalization import evenly_spaced, mean_and_std


def test_mean_and_standard_deviation() -> None:
    images = torch.randint(0, 256, (1000, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 7
    mean, std = mean_and_std(images)
    np.testing.assert_allclose(mean, images.double().mean((0, 2, 3)).numpy(), rtol=1e-9)
    np.testing.assert_allclose(std, [*images.double().std((0, 2, 3))[:2].tolist(), 1.0], rtol=1e-9)
    assert [len(evenly_spaced(images, most)) for most in (1, 3, 999, 1000, 5000)] == [1, 3, 500, 1000, 1000]
