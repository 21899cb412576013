"""Normalisation of pixels: the mean and standard deviation of the training images, and their use on a batch."""

import math

import torch

_BATCH_ITEMS = 64


class Normalization:
    """uint8 (N, C, H, W) to float32 of mean 0 and standard deviation 1 for each channel, channels last, on `device`."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device)[:, None, None]
        self._std = torch.tensor(std, device=device)[:, None, None]
        self._device = device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises a batch."""
        images = images.to(self._device).to(torch.float32, memory_format=torch.channels_last)
        return (images - self._mean) / self._std


def mean_and_std(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel of uint8 (N, C, H, W), on the scale 0 to 255; a standard deviation is at least 1."""
    total = torch.zeros(2, images.shape[1], dtype=torch.float64, device=images.device)
    for batch in torch.split(images, _BATCH_ITEMS):  # all of them as floats would take four times their memory
        values = batch.float()
        total += torch.stack([values.sum((0, 2, 3), dtype=torch.float64), values.square().sum((0, 2, 3), dtype=torch.float64)])
    count = images.numel() / images.shape[1]
    mean = total[0] / count
    std = ((total[1] - count * mean.square()) / max(1.0, count - 1)).clamp(min=0).sqrt().clamp(min=1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def evenly_spaced(images: torch.Tensor, most: int) -> torch.Tensor:
    """At most `most` of the images, at even distances."""
    return images[:: math.ceil(len(images) / most)]
