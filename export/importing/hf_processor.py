"""Translates the settings of Hugging Face's image processors, which are in a file or in an object, into a recipe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from export.importing.assembly import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PILLOW_FILTERS,
    Scaling,
    Sizes,
    assemble,
    crop_fraction,
    is_side,
    numbers,
    of_channels,
    shown,
    whole_scale,
)
from export.importing.recipe import Recipe
from service.errors import UserError

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class _Processor:
    """What a processor does where its settings are silent.

    `steps` names what it does that others do not. `size_is_short_side` says what a size of one number means.
    """

    size: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    resample: int = 3
    mean: tuple[float, ...] = _HALF
    std: tuple[float, ...] = _HALF
    size_is_short_side: bool = False
    steps: str = ""


_CROP_224 = MappingProxyType({"do_center_crop": True, "crop_size": 224})
_CLIP = _Processor(224, _CROP_224, mean=_CLIP_MEAN, std=_CLIP_STD, size_is_short_side=True)
_MOBILE_NET = _Processor(256, _CROP_224, resample=2, size_is_short_side=True)

_PROCESSORS: dict[str, _Processor] = {
    "ViT": _Processor(224, resample=2),
    "DeiT": _Processor(256, _CROP_224),
    "Beit": _Processor(224),
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "Siglip": _Processor(224),
    "Pvt": _Processor(224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "Segformer": _Processor(512, resample=2, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "MobileNetV1": _MOBILE_NET,
    "MobileNetV2": _MOBILE_NET,
    "MobileViT": _Processor(
        224,
        {"do_center_crop": True, "crop_size": 256, "do_normalize": False, "do_flip_channel_order": True},
        size_is_short_side=True,
    ),
    "ConvNext": _Processor(384, size_is_short_side=True, steps="crop_pct"),
    "PoolFormer": _Processor(
        224,
        {**_CROP_224, "crop_pct": 0.9},
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        size_is_short_side=True,
        steps="larger by crop_pct",
    ),
    "Levit": _Processor(224, _CROP_224, mean=IMAGENET_MEAN, std=IMAGENET_STD, size_is_short_side=True, steps="larger by 256/224"),
    "EfficientNet": _Processor(346, {"include_top": True}, steps="normalized twice"),
}
_SHOWN_CHARACTERS = 80
_NAME = re.compile(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?")
_KNOWN = ("resize", "center_crop", "rescale", "normalize", "convert_rgb", "flip_channel_order", "reduce_labels")
"""After `do_`; labels are those of segmentation maps."""


def of_settings(source: str, settings: Mapping[str, Any], network: Sizes) -> Recipe:
    """The recipe of an image processor: resize, centre crop, rescale and normalise, as far as each is on.

    Pictures are opened as `transformers.image_utils.load_image` does: turned by their EXIF orientation, without alpha.

    Raises:
        UserError: the processor is not known, does something that cannot be expressed, or does not fit the network.
    """
    name = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "a processor without a name")
    match = _NAME.fullmatch(name)
    processor = _PROCESSORS.get(match[1]) if match else None
    if processor is None:
        known = ", ".join(f"{kind}ImageProcessor" for kind in _PROCESSORS)
        raise UserError(f"{source}: what {name[:_SHOWN_CHARACTERS]} does cannot be expressed; accepted are {known}")
    values: dict[str, Any] = {
        "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "size": processor.size,
        "resample": processor.resample, "image_mean": processor.mean, "image_std": processor.std, "crop_pct": 0.875,
        **processor.settings, **{key: value for key, value in settings.items() if value is not None},
    }  # fmt: skip
    for key, value in values.items():
        if key.startswith("do_") and value is True and key[3:] not in _KNOWN:
            raise UserError(f"{source}: {key} of {name} cannot be expressed")
    resize, size, crop = _sizes(source, name, values, processor)
    fields: dict[str, Any] = {"resize": resize, "crop": crop, "alpha": "drop", "exif": "apply", "filter": _filter(source, values)}
    return assemble(
        source,
        network,
        size,
        _scaling(source, values, processor, network.channels),
        bool(values.get("do_flip_channel_order")),
        **fields,
    )


def _filter(source: str, values: Mapping[str, Any]) -> str:
    number = values["resample"]
    if not isinstance(number, int) or not 0 <= number < len(PILLOW_FILTERS):
        accepted = f"one of Pillow's filters, 0 to {len(PILLOW_FILTERS) - 1}, is accepted"
        raise UserError(f"{source}: resample is {shown(number)}; {accepted}")
    return PILLOW_FILTERS[number]


def _sizes(
    source: str, name: str, values: Mapping[str, Any], processor: _Processor
) -> tuple[str, tuple[int, int] | None, str | None]:
    """`resize` and `crop` of the input, and (height, width) of the result; None if pictures stay as they are."""
    cropped = _edges(source, "crop_size", values.get("crop_size")) if values.get("do_center_crop") else None
    crop = "center-floor" if cropped else None
    if not values["do_resize"]:
        return "none", cropped, crop
    short, edges = _resized(source, values["size"], processor.size_is_short_side)
    if processor.steps == "crop_pct":
        if short is None:
            raise UserError(f"{source}: size is {shown(values['size'])}; {name} has a shortest_edge")
        if short >= 384:
            return ("stretch", (short, short), None) if cropped is None else (f"stretch:{short}x{short}", cropped, crop)
        if cropped not in (None, (short, short)):
            raise UserError(f"{source}: two crops, to {short} and to {cropped}, cannot be expressed")
        return f"short:{int(short / crop_fraction(source, values['crop_pct']))}", (short, short), "center-floor"
    if processor.steps == "larger by crop_pct" and values.get("crop_pct"):
        if short is None and edges is not None and edges[0] == edges[1]:
            short = edges[0]
        if short is None:
            raise UserError(f"{source}: size is {shown(values['size'])}, which with crop_pct cannot be expressed")
        short = int(short / crop_fraction(source, values["crop_pct"]))
    if processor.steps == "larger by 256/224" and short is not None:
        short = int(256 / 224 * short)
    if short is not None:
        if cropped is None:
            raise UserError(f"{source}: a shortest_edge without do_center_crop gives pictures of many sizes; the network takes one")
        return f"short:{short}", cropped, crop
    assert edges is not None  # noqa: S101 - one of the two is there
    return f"stretch:{edges[0]}x{edges[1]}" if cropped else "stretch", cropped or edges, crop


def _resized(source: str, size: Any, size_is_short_side: bool) -> tuple[int | None, tuple[int, int] | None]:
    """The short side, or (height, width)."""
    if is_side(size) and size_is_short_side:
        return size, None
    if isinstance(size, Mapping):
        given = {key: value for key, value in size.items() if value is not None}
        if set(given) == {"shortest_edge"} and is_side(given["shortest_edge"]):
            return given["shortest_edge"], None
        if other := set(given) - {"shortest_edge", "height", "width"}:
            raise UserError(f"{source}: {min(other)} of size cannot be expressed; accepted are shortest_edge, or height and width")
    return None, _edges(source, "size", size)


def _edges(source: str, key: str, value: Any) -> tuple[int, int]:
    """(height, width) of a number, a list or a mapping."""
    sides: Any = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else value
    sides = (sides, sides) if isinstance(sides, int) else sides
    if isinstance(sides, (list, tuple)) and len(sides) == 2 and all(map(is_side, sides)):
        return sides[0], sides[1]
    raise UserError(f"{source}: {key} is {shown(value)}; height and width are accepted")


def _scaling(source: str, values: Mapping[str, Any], processor: _Processor, channels: int) -> Scaling:
    scaling = Scaling()
    if values["do_rescale"]:
        (factor,) = numbers(source, "rescale_factor", values["rescale_factor"])[:1]
        if not factor > 0:
            raise UserError(f"{source}: rescale_factor is {factor:g}; a number above 0 is accepted")
        scaling = Scaling(whole_scale(factor), (1.0,) if values.get("rescale_offset") else (0.0,))
    mean, std = (of_channels(source, key, values[key], channels) for key in ("image_mean", "image_std"))
    if values["do_normalize"]:
        scaling = scaling.normalized(mean, std)
    if processor.steps == "normalized twice" and values.get("include_top"):
        scaling = scaling.normalized((0.0,), std)
    return scaling
