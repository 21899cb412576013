"""torchvision and timm: pictures loaded by Pillow's `convert`, resized by Pillow."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from service.model.input_spec import InputSpec, Pad
from service.model.preprocessing import decode
from tests.conformance.pixels.conftest import CHANNELS, FILTERS, PICTURES, TARGETS, Picture, import_torchvision

import_torchvision()
from timm.data.transforms_factory import transforms_imagenet_eval  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms._presets import ImageClassification  # noqa: E402

LIMIT = 10**6
Agree = Callable[[Any, Any], None]


@given(PICTURES, st.sampled_from(FILTERS), CHANNELS, TARGETS, TARGETS, st.integers(1, 96), st.sampled_from(["apply", "ignore"]))
def test_torchvision_resize_of_the_shorter_side_and_center_crop(
    agree: Agree, picture: Picture, filter_: str, channels: int, height: int, width: int, short: int, exif: str
) -> None:
    spec = InputSpec.model_validate(
        {"height": height, "width": width, "channels": channels, "resize": f"short:{short}", "filter": filter_,
         "crop": "center", "alpha": "drop", "exif": exif}
    )  # fmt: skip
    transform = transforms.Compose(
        [transforms.Resize(short, InterpolationMode[filter_.upper()]), transforms.CenterCrop((height, width))]
    )
    expected = np.asarray(transform(picture.loaded(channels, exif)))
    agree(decode(picture.encoded, spec, LIMIT), expected.reshape(height, width, channels))


@given(PICTURES, st.sampled_from(FILTERS), CHANNELS, TARGETS, TARGETS, TARGETS, TARGETS)
def test_torchvision_resize_to_a_size_and_center_crop(
    agree: Agree, picture: Picture, filter_: str, channels: int, height: int, width: int, rows: int, columns: int
) -> None:
    spec = InputSpec.model_validate(
        {"height": height, "width": width, "channels": channels, "resize": f"stretch:{rows}x{columns}", "filter": filter_,
         "crop": "center", "alpha": "drop", "exif": "ignore"}
    )  # fmt: skip
    transform = transforms.Compose(
        [transforms.Resize((rows, columns), InterpolationMode[filter_.upper()]), transforms.CenterCrop((height, width))]
    )
    expected = np.asarray(transform(picture.loaded(channels)))
    agree(decode(picture.encoded, spec, LIMIT), expected.reshape(height, width, channels))


@given(PICTURES, CHANNELS, TARGETS, TARGETS)
def test_torchvision_center_crop_alone(agree: Agree, picture: Picture, channels: int, height: int, width: int) -> None:
    spec = InputSpec.model_validate(
        {"height": height, "width": width, "channels": channels, "resize": "none", "crop": "center", "alpha": "drop",
         "exif": "ignore"}
    )  # fmt: skip
    expected = np.asarray(transforms.CenterCrop((height, width))(picture.loaded(channels)))
    agree(decode(picture.encoded, spec, LIMIT), expected.reshape(height, width, channels))


@given(PICTURES, st.sampled_from(["bilinear", "bicubic"]), st.sampled_from([(256, 224), (232, 224), (384, 384), (75, 61)]))
def test_torchvision_the_presets_of_its_weights(agree: Agree, picture: Picture, filter_: str, sizes: tuple[int, int]) -> None:
    short, crop = sizes
    assume(max(picture.size) <= 8 * min(picture.size))
    preset = ImageClassification(
        crop_size=crop, resize_size=short, interpolation=InterpolationMode[filter_.upper()], mean=(0, 0, 0), std=(1, 1, 1)
    )
    expected = np.rint(preset(picture.loaded(3)).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    spec = InputSpec.model_validate(
        {"height": crop, "width": crop, "channels": 3, "resize": f"short:{short}", "filter": filter_, "crop": "center",
         "alpha": "drop", "exif": "ignore"}
    )  # fmt: skip
    agree(decode(picture.encoded, spec, LIMIT), expected)


@functools.cache
def timm_transform(side: int, crop_pct: float, crop_mode: str, filter_: str) -> Any:
    mean = (0.485, 0.456, 0.406)
    return transforms_imagenet_eval(side, crop_pct, crop_mode, interpolation=filter_, mean=mean, use_prefetcher=True)


@given(
    PICTURES,
    st.sampled_from(FILTERS),
    st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.75]),
    st.sampled_from(["center", "squash", "border"]),
    TARGETS,
)
def test_timm_center_squash_and_border(
    agree: Agree, picture: Picture, filter_: str, crop_pct: float, crop_mode: str, side: int
) -> None:
    scaled = math.floor(side / crop_pct)
    shorter, longer = sorted(picture.size)
    assume(crop_mode != "border" or round(shorter * scaled / longer) > 0)  # or nothing is left, at which timm fails
    resize = {"center": f"short:{scaled}", "squash": f"stretch:{scaled}x{scaled}", "border": f"pad:{scaled}x{scaled}"}[crop_mode]
    spec = InputSpec(
        height=side, width=side, channels=3, resize=resize, filter=filter_, crop="center", alpha="drop", exif="ignore",
        pad=Pad(color=(124, 116, 104)),
    )  # fmt: skip
    expected = timm_transform(side, crop_pct, crop_mode, filter_)(picture.loaded(3))
    agree(decode(picture.encoded, spec, LIMIT), np.asarray(expected).transpose(1, 2, 0))
