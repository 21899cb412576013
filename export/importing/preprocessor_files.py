"""Reads how pictures are prepared from a file beside the weights: Hugging Face's preprocessor_config.json, timm's config.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.files import read_file
from export.importing.assembly import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PILLOW_FILTERS,
    Scaling,
    Sizes,
    assemble,
    crop_fraction,
    is_side,
    of_channels,
    shown,
    spread,
)
from export.importing.hf_processor import of_settings
from export.importing.recipe import Recipe
from service.errors import UserError, first_line
from service.model.input_spec import Pad

ACCEPTED = "accepted are preprocessor_config.json of Hugging Face and config.json of timm"

_MAX_BYTES = 1 << 20


def read_preprocessor(path: Path, height: int, width: int, channels: int) -> Recipe:
    """The recipe in a file.

    Args:
        path: the file.
        height: of the network's input, in pixels; 0 where its graph leaves it open, and then the file's own is taken.
        width: likewise.
        channels: of the network's input.

    Raises:
        UserError: it is not such a file, says something that cannot be expressed, or does not fit the network.
    """
    content = _read(path)
    network = Sizes(height, width, channels)
    if isinstance(nested := content.get("image_processor"), dict):  # in processor_config.json
        content = nested
    if isinstance(config := content.get("pretrained_cfg"), dict):
        return of_timm_config(f"timm's config in {path.name}", config, network)
    if "input_size" in content and "mean" in content:
        return of_timm_config(f"timm's config in {path.name}", content, network)
    if "image_processor_type" in content or "feature_extractor_type" in content or "image_mean" in content:
        return of_settings(f"Hugging Face's {path.name}", content, network)
    raise UserError(f"{path}: it does not say how pictures are prepared; {ACCEPTED}")


def of_timm_config(source: str, config: Mapping[str, Any], network: Sizes) -> Recipe:
    """The recipe of timm's `pretrained_cfg`, as `timm.data.create_transform` follows it.

    A network of the size that the file gives for tests is taken with that size's crop.

    Raises:
        UserError: it says something that cannot be expressed, or does not fit the network.
    """
    size, tested = _side_lengths(source, config, "input_size"), None
    if config.get("test_input_size") is not None:
        tested = _side_lengths(source, config, "test_input_size")
    height, width = network.height or size[1], network.width or size[2]
    if size[0] != network.channels:
        raise UserError(f"{source}: input_size has {size[0]} channels, and the network takes {network.channels}")
    crop = config.get("crop_pct") or 0.875
    if tested is not None and (height, width) == tested[1:] != size[1:]:
        crop = config.get("test_crop_pct") or crop
    crop = crop_fraction(source, crop)
    mean = of_channels(source, "mean", config.get("mean") or IMAGENET_MEAN, network.channels)
    std = of_channels(source, "std", config.get("std") or IMAGENET_STD, network.channels)
    name = config.get("interpolation") or "bicubic"
    if name not in PILLOW_FILTERS:
        raise UserError(f"{source}: interpolation is {shown(name)}; accepted are {', '.join(PILLOW_FILTERS)}")
    fields: dict[str, Any] = {"filter": name, "crop": "center", "alpha": "drop", "exif": "ignore"}
    mode = config.get("crop_mode") or "center"
    if mode == "squash":
        fields["resize"] = f"stretch:{math.floor(height / crop)}x{math.floor(width / crop)}"
    elif mode == "border":
        fields["resize"] = f"pad:{math.floor(height / crop)}x{math.floor(width / crop)}"
        fields["pad"] = Pad(color=_border(mean))
    elif mode == "center" and height == width:
        fields["resize"] = f"short:{math.floor(height / crop)}"
    elif mode == "center":
        raise UserError(f"{source}: timm's ResizeKeepRatio to {height}x{width}, which is not square, cannot be expressed")
    else:
        raise UserError(f"{source}: crop_mode {shown(mode)} cannot be expressed; accepted are center, squash and border")
    return assemble(source, network, (height, width), Scaling(255.0, mean, std), **fields)


def _border(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """The mean as a colour, as timm's border has it."""
    red, green, blue = (min(255, max(0, round(255 * value))) for value in spread(mean, 3))
    return red, green, blue


def _read(path: Path) -> Mapping[str, Any]:
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path}: it is larger than {_MAX_BYTES >> 20} MiB; {ACCEPTED}")
    try:
        content = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({first_line(error)}); {ACCEPTED}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {ACCEPTED}")
    return content


def _side_lengths(source: str, config: Mapping[str, Any], key: str) -> tuple[int, int, int]:
    value = config.get(key)
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(is_side, value)):
        raise UserError(f"{source}: {key} is {shown(value)}; [channels, height, width] is accepted")
    return value[0], value[1], value[2]
