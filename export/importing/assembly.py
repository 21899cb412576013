"""Puts a recipe together from what a preset, a file or a transform says, and checks it against what the network takes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from export.importing.recipe import Recipe
from service.errors import UserError
from service.model.input_spec import InputSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PILLOW_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""In the order of Pillow's numbers, 0 to 5."""


_SMALLEST_CROP = 0.01
_LONGEST_SIDE = 1 << 16
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Sizes:
    """What a network takes: height and width in pixels, 0 where its graph leaves them open, and channels."""

    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class Scaling:
    """x = (pixel / scale - mean) / std, for each channel.

    `mean` and `std` have one number for all channels, or one for each.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Scaling":
        """The same, followed by (x - mean) / std."""
        count = max(map(len, (self.mean, self.std, mean, std)))
        old_mean, old_std, new_mean, new_std = (spread(values, count) for values in (self.mean, self.std, mean, std))
        shifted = tuple(m + n * s for m, n, s in zip(old_mean, new_mean, old_std, strict=True))
        return Scaling(self.scale, shifted, tuple(s * n for s, n in zip(old_std, new_std, strict=True)))


def assemble(
    source: str,
    network: Sizes,
    size: tuple[int, int] | None,
    scaling: Scaling,
    bgr: bool = False,
    gray: bool = False,
    **input_fields: object,
) -> Recipe:
    """A recipe that fits the network.

    Args:
        source: where it was found, for people; messages start with it.
        network: what the network takes.
        size: (height, width) that the source gives; None if it leaves pictures as they are.
        scaling: the numbers of the source.
        bgr: the network takes blue first.
        gray: pictures become gray, and each channel of the network takes them.
        input_fields: others of InputSpec.

    Raises:
        UserError: the source gives another size than the network takes, or divides by 0.
    """
    height, width = network.height or (size or (0, 0))[0], network.width or (size or (0, 0))[1]
    if not height or not width:
        raise UserError(
            f"{source}: it does not say to what size, and the network takes any; --input-shape H,W (in Python input_shape=) says it"
        )
    if size is not None and size != (height, width):
        raise UserError(f"{source}: it gives pictures of {size[0]}x{size[1]}, and the network takes {height}x{width}")
    if not all(scaling.std) or not scaling.scale:
        raise UserError(f"{source}: it divides by 0")
    if not all(map(math.isfinite, (scaling.scale, *scaling.mean, *scaling.std))):
        raise UserError(f"{source}: its scale, mean and std give numbers that are not finite")
    fields: dict[str, Any] = {**input_fields, "height": height, "width": width, "channels": 1 if gray else network.channels}
    try:
        spec = InputSpec(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{source}: {'.'.join(map(str, first['loc'])) or 'the input'}: {first['msg']}") from None
    mean, std = (spread(values, network.channels) for values in (scaling.mean, scaling.std))
    return Recipe(spec, scaling.scale, mean, std, "bgr" if bgr and network.channels == 3 else "rgb", source)


def numbers(source: str, name: str, value: object) -> tuple[float, ...]:
    """A finite number, or a sequence of such as a list or a tensor. Raises UserError if it is something else."""
    items = value if isinstance(value, Iterable) and not isinstance(value, (str, bytes, dict)) else [value]
    try:
        found = tuple(float(cast("Any", item)) for item in items)
    except (TypeError, ValueError, OverflowError):
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise UserError(f"{source}: {name} is {shown(value)}; a number or a list of numbers is accepted")
    return found


def of_channels(source: str, name: str, value: object, channels: int) -> tuple[float, ...]:
    """The same of one number, or one for each channel. Raises UserError if it is something else."""
    found = numbers(source, name, value)
    if len(found) not in (1, channels):
        raise UserError(f"{source}: {name} is of {len(found)} channels, and the network takes {channels}")
    return found


def crop_fraction(source: str, value: object) -> float:
    """Of the resized picture, what a crop leaves of its shorter side. Raises UserError if it is none."""
    (fraction,) = numbers(source, "crop_pct", value)[:1]
    if not _SMALLEST_CROP <= fraction <= 1:
        raise UserError(f"{source}: crop_pct is {fraction:g}; {_SMALLEST_CROP} to 1 is accepted")
    return fraction


def is_side(value: object) -> bool:
    """Whether it is a length in pixels; the contract's own limit is said where an input is made of it."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LONGEST_SIDE


def shown(value: object) -> str:
    """A value of a file, for a message of one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def whole_scale(factor: float) -> float:
    """What pixels are divided by if they are multiplied by `factor`: 255.0 for 1/255 as files round it."""
    scale = 1 / factor
    return float(round(scale)) if math.isfinite(scale) and abs(scale - round(scale)) < 1e-5 * scale else scale


def spread(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """One number as that of each channel."""
    return values * count if len(values) == 1 else values
