"""Random changes to training pictures, made on tensors, on a whole batch at once.

Cropping and mirroring are both a matter of which pixel goes where, so one index for each picture says it all and one `gather`
does it: no padded copy, the same for uint8 and float, on any device.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Augmentation:
    """How pictures may be changed without changing what they show.

    `shift_pixels` is how far a picture may move along each axis, a random crop of the picture padded by as much; what comes in at
    its edges is its mirror image (`reflect`) or the edge's own pixels repeated (`replicate`). `flip` mirrors every other picture
    left to right, by chance: right for photos, wrong for whatever can be read.
    """

    shift_pixels: int = 2
    flip: bool = False
    padding: Literal["reflect", "replicate"] = "replicate"

    def __str__(self) -> str:
        """In words."""
        shift = f"shifted by up to {self.shift_pixels} pixels" if self.shift_pixels else "not shifted"
        return f"{shift}, {'mirrored at random' if self.flip else 'not mirrored'}"


def augment(images: "torch.Tensor", augmentation: Augmentation, generator: "torch.Generator | None" = None) -> "torch.Tensor":
    """Shifts and mirrors each picture of a batch (N, C, H, W) by its own draw; type, shape and device stay.

    Args:
        images: any type; `shift_pixels` must be smaller than H and W.
        augmentation: what may be done.
        generator: where the draws come from, on any device; PyTorch's own for the CPU if not given.
    """
    import torch  # here, so that a data set can be described without PyTorch

    count, channels, height, width = images.shape
    device = torch.device("cpu") if generator is None else generator.device

    def places(side: int) -> torch.Tensor:  # (N, side): where each row or column comes from
        most = augmentation.shift_pixels
        shifts = torch.randint(-most, most + 1, (count, 1), generator=generator, device=device)
        place = (shifts + torch.arange(side, device=device)).to(images.device)
        if augmentation.padding == "replicate":
            return place.clamp(0, side - 1)
        return (side - 1) - ((side - 1) - place.abs()).abs()

    rows, columns = places(height), places(width)
    if augmentation.flip:
        mirrored = torch.rand((count, 1), generator=generator, device=device).to(images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)  # (N, 1, H W)
    return images.reshape(count, channels, -1).gather(2, index.expand(-1, channels, -1)).view_as(images)
