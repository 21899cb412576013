"""The ranges of pixel values that models without a contract expect. Models of Convoy take the pixels as they are."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

PixelScaling = Literal["0..1", "-1..1", "0..255", "imagenet"]
PIXEL_SCALINGS: tuple[str, ...] = get_args(PixelScaling)

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scale_pixels(pixels: NDArray[np.uint8], scaling: PixelScaling) -> NDArray[np.float32]:
    """Pixels uint8[..., C] as float32 in a range; `imagenet` is torchvision's normalisation of three channels."""
    values = pixels.astype(np.float32)
    if scaling == "0..255":
        return values
    if scaling == "-1..1":
        return values / np.float32(127.5) - np.float32(1)
    values = values / np.float32(255)
    if scaling == "imagenet":
        return np.asarray((values - np.array(_IMAGENET_MEAN)) / np.array(_IMAGENET_STD), np.float32)
    return values
