"""`speed-net`: a network that learns small colour photos in few operations.

It follows Keller Jordan's airbench94 (arXiv:2404.00498), which follows David Page's ResNet-9 ("How to train your ResNet"): a first
layer that is computed from the data and not trained, three groups of two convolutions, early pooling, a head that is scaled down.
This one is narrower, for two CPU cores.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from service.errors import UserError
from service.model.input_spec import InputSpec

WIDTHS = (48, 32, 40, 64)
"""The widths to choose from, the default first."""

_PATCH = 2
_EPSILON = 5e-4
_HEAD_SCALE = 1 / 9


class SpeedNet(nn.Module):
    """float32 (N, C, H, W) to logits float32 (N, K). The first group has `width` filters, the others four times as many.

    Raises:
        UserError: the images are too small.
    """

    head: Literal["softmax"] = "softmax"

    def __init__(self, spec: InputSpec, classes: int, width: int = WIDTHS[0]) -> None:
        super().__init__()
        if min(spec.height, spec.width) < 9:
            raise UserError(f"speed-net needs images of at least 9x9; the input is {spec.height}x{spec.width}")
        whitened = 2 * spec.channels * _PATCH**2
        # shapes for 32x32x3, width 48                                     (N,   3, 32, 32)
        self.whitening = nn.Conv2d(spec.channels, whitened, _PATCH, bias=False)  # (N, 24, 31, 31)
        self.whitening.weight.requires_grad_(False)
        self.groups = nn.Sequential(
            _Group(whitened, width),  #                                    (N,  48, 15, 15)
            _Group(width, 4 * width),  #                                   (N, 192,  7,  7)
            _Group(4 * width, 4 * width),  #                               (N, 192,  3,  3)
        )
        self.linear = nn.Linear(4 * width, classes, bias=False)  #         (N, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The maximum of each feature map, then the scaled head."""
        x = self.groups(functional.relu(self.whitening(x), inplace=True))
        logits: torch.Tensor = self.linear(x.amax((2, 3))) * _HEAD_SCALE
        return logits

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        """Sets the first layer from training images, float32 (n, C, H, W), normalised.

        The filters are the eigenvectors of their patches, scaled to unit variance, and the negatives of these, so that the ReLU
        loses nothing.
        """
        patches = functional.unfold(images, _PATCH).transpose(1, 2).reshape(-1, self.whitening.weight[0].numel())  # (n, C 2 2)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + _EPSILON).sqrt()).T.reshape(-1, *self.whitening.weight.shape[1:])
        self.whitening.weight.copy_(torch.cat([filters, -filters]))


class _Group(nn.Module):
    """Two 3x3 convolutions with batch norm and a 2x2 max pooling after the first. The first filters start as the identity."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(filters, momentum=0.4)
        self.mix = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(filters, momentum=0.4)
        for convolution in (self.widen, self.mix):
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c, H, W) to (N, f, H / 2, W / 2)."""
        x = functional.relu(self.norm_1(functional.max_pool2d(self.widen(x), 2)), inplace=True)
        return functional.relu(self.norm_2(self.mix(x)), inplace=True)
