"""Presets: how the pictures of well-known training code are prepared, by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from export.importing.assembly import IMAGENET_MEAN, IMAGENET_STD, Scaling, Sizes, assemble, of_channels
from export.importing.recipe import Recipe
from service.errors import UserError


@dataclass(frozen=True)
class Preset:
    """A way to prepare pictures.

    Attributes:
        meaning: one line, for people.
        scaling: of the pixels.
        input_fields: of InputSpec, as far as they do not depend on the size.
        crop_rounding: the input is cropped from a picture whose short side is longer, rounded in this way; none for `stretch`.
        bgr: the network takes blue first.
    """

    meaning: str
    scaling: Scaling
    input_fields: dict[str, Any]
    crop_rounding: Callable[[float], int] | None = None
    bgr: bool = False


_LOADED_BY_PILLOW = {"alpha": "drop", "exif": "ignore"}
_LOADED_BY_TENSORFLOW = {"resize": "stretch", "filter": "tf-bilinear", "dtype": "float32", **_LOADED_BY_PILLOW}
_CROP_FRACTION = 0.875  # 224 of 256
_CAFFE_MEAN = (103.939, 116.779, 123.68)

PRESETS: dict[str, Preset] = {
    "torchvision": Preset(
        "short side to 256/224 of the input, bilinear; centre crop; ImageNet's mean and std",
        Scaling(255.0, IMAGENET_MEAN, IMAGENET_STD),
        {"filter": "bilinear", "crop": "center", **_LOADED_BY_PILLOW},
        crop_rounding=round,
    ),
    "timm": Preset(
        "short side to 1/0.875 of the input, bicubic; centre crop; ImageNet's mean and std",
        Scaling(255.0, IMAGENET_MEAN, IMAGENET_STD),
        {"filter": "bicubic", "crop": "center", **_LOADED_BY_PILLOW},
        crop_rounding=math.floor,
    ),
    "keras": Preset(
        "stretched by tf.image.resize, -1 to 1: preprocess_input in mode tf, as of MobileNet, Inception, Xception, NASNet",
        Scaling(127.5, (1.0,), (1.0,)),
        _LOADED_BY_TENSORFLOW,
    ),
    "keras-torch": Preset(
        "the same with ImageNet's mean and std: preprocess_input in mode torch, as of DenseNet",
        Scaling(255.0, IMAGENET_MEAN, IMAGENET_STD),
        _LOADED_BY_TENSORFLOW,
    ),
    "keras-caffe": Preset(
        "the same with BGR less its mean: preprocess_input in mode caffe, as of ResNet50 and VGG16",
        Scaling(1.0, _CAFFE_MEAN, (1.0,)),
        _LOADED_BY_TENSORFLOW,
        bgr=True,
    ),
    "keras-raw": Preset(
        "the same with 0 to 255: networks that scale by themselves, as EfficientNet, ConvNeXt, MobileNetV3",
        Scaling(),
        _LOADED_BY_TENSORFLOW,
    ),
    "caffe": Preset(
        "stretched by OpenCV, BGR less its mean, as Caffe's classification.cpp does",
        Scaling(1.0, _CAFFE_MEAN, (1.0,)),
        {"resize": "stretch", "filter": "cv2-linear", "alpha": "drop", "exif": "apply"},
        bgr=True,
    ),
}


def preset(name: str, height: int, width: int, channels: int) -> Recipe:
    """The recipe of a preset for a network's input.

    Args:
        name: a key of PRESETS.
        height: of the network's input, in pixels.
        width: likewise.
        channels: of the network's input.

    Raises:
        UserError: there is no such preset, or it does not fit this input.
    """
    chosen = PRESETS.get(name)
    if chosen is None:
        raise UserError(f"preset {name!r} is not known; accepted are {', '.join(PRESETS)}")
    source = f"preset {name}"
    size = (height, width) if height and width else None
    fields = dict(chosen.input_fields)
    if chosen.crop_rounding is not None and size is not None:
        if height != width:
            raise UserError(
                f"{source}: it is of square inputs, and the network takes {height}x{width}; say --resize and --crop instead"
            )
        fields["resize"] = f"short:{chosen.crop_rounding(height / _CROP_FRACTION)}"
    for what, values in (("mean", chosen.scaling.mean), ("std", chosen.scaling.std)):
        of_channels(source, f"its {what}", values, channels)
    return assemble(source, Sizes(height, width, channels), size, chosen.scaling, chosen.bgr, **fields)
