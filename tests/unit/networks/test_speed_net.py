"""The speed net's first layer."""

import numpy as np
import pytest
import torch

from export.networks import speed_net
from service.errors import UserError
from service.model.input_spec import InputSpec


def test_the_first_layer_whitens_and_small_pictures_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 34, 34, generator=generator), 3, stride=1)  # neighbours are alike
    network = speed_net.SpeedNet(InputSpec(height=32, width=32, channels=3), 10)
    network.whiten(images)
    found = network.whitening(images).permute(1, 0, 2, 3).flatten(1)[:12]  # (12, N), the other twelve are their negatives
    np.testing.assert_allclose((found @ found.T / found.shape[1]).numpy(), np.eye(12), atol=0.05)
    with pytest.raises(UserError, match="at least 9x9; the input is 8x32"):
        speed_net.SpeedNet(InputSpec(height=8, width=32, channels=3), 10)
