"""What happens to a picture before the network sees it: resized by the server, then scaled and normalised inside the graph."""

from dataclasses import dataclass
from typing import Literal

from service.model.input_spec import InputSpec


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes the network's numbers: x = (pixel / scale - mean) / std, for each channel.

    Attributes:
        input: how it is decoded, resized and cropped.
        scale: what the pixels, 0 to 255, are divided by.
        mean: in the units after `scale`, one number for each channel, in the order of the channels as the network takes them.
        std: likewise.
        channel_order: as the network takes them; gray has none.
        source: where this was found, for people, such as "preset torchvision" or "timm's config in config.json".
    """

    input: InputSpec
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    source: str = ""
