"""Random shifts and flips of training images, on a whole batch of tensors at once.

Both only move pixels, so one index for each image and one `gather` do both: without a padded copy, for uint8 and float, on any
device.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Augmentation:
    """Random changes that leave the class of an image the same.

    Attributes:
        shift_pixels: the largest shift along each axis. It is a random crop of the image padded by as many pixels.
        flip: mirror half of the images left to right, at random: right for photos, wrong for anything that can be read.
        padding: the pixels that a shift brings in: the mirrored image (`reflect`), or its edge repeated (`replicate`).
    """

    shift_pixels: int = 2
    flip: bool = False
    padding: Literal["reflect", "replicate"] = "replicate"

    def __str__(self) -> str:
        """The changes in words."""
        shift = f"shifted by up to {self.shift_pixels} pixels" if self.shift_pixels else "not shifted"
        return f"{shift}, {'mirrored at random' if self.flip else 'not mirrored'}"


def augment(images: "torch.Tensor", augmentation: Augmentation, generator: "torch.Generator | None" = None) -> "torch.Tensor":
    """Shifts and mirrors each image of a batch (N, C, H, W) at random; type, shape and device stay the same.

    Args:
        images: of any type; `shift_pixels` must be smaller than H and W.
        augmentation: the changes.
        generator: of the random numbers, on any device; by default PyTorch's own for the CPU.
    """
    import torch  # so that a data set can be loaded without PyTorch

    count, channels, height, width = images.shape
    device = torch.device("cpu") if generator is None else generator.device

    def sources(side: int) -> torch.Tensor:  # (N, side): the row or column that each one is taken from
        most = augmentation.shift_pixels
        shifts = torch.randint(-most, most + 1, (count, 1), generator=generator, device=device)
        source = (shifts + torch.arange(side, device=device)).to(images.device)
        if augmentation.padding == "replicate":
            return source.clamp(0, side - 1)
        return (side - 1) - ((side - 1) - source.abs()).abs()

    rows, columns = sources(height), sources(width)
    if augmentation.flip:
        mirrored = torch.rand((count, 1), generator=generator, device=device).to(images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)  # (N, 1, H W)
    return images.reshape(count, channels, -1).gather(2, index.expand(-1, channels, -1)).view_as(images)
