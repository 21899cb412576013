"""Hugging Face's image processors of the Pillow kind, which before transformers 5 were the ones that are not fast.

They are given pictures by Pillow's `convert`. What they convert themselves, with `do_convert_rgb`, these versions show over white.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from service.model.input_spec import InputSpec
from service.model.preprocessing import decode
from tests.conformance.pixels.conftest import FILTERS, PICTURES, TARGETS, Picture, import_torchvision

import_torchvision()
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil  # noqa: E402
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # noqa: E402

LIMIT = 10**6
Agree = Callable[[Any, Any], None]
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
RAW = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False}


def pixels_of(processor: Any, image: Image.Image) -> Any:
    [values] = processor(image, return_tensors="np")["pixel_values"]
    return np.moveaxis(values, 0, -1)


@given(PICTURES, st.sampled_from(FILTERS), TARGETS, TARGETS, TARGETS)
def test_hugging_face_shortest_edge_and_center_crop(
    agree: Agree, picture: Picture, filter_: str, height: int, width: int, short: int
) -> None:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": short},
        crop_size={"height": height, "width": width},
        resample=RESAMPLE[filter_],
        **RAW,
    )
    spec = InputSpec(
        height=height, width=width, channels=3, resize=f"short:{short}", filter=filter_, crop="center-floor", alpha="drop",
        exif="ignore",
    )  # fmt: skip
    agree(decode(picture.encoded, spec, LIMIT), pixels_of(processor, picture.loaded(3)))


@given(PICTURES, st.sampled_from(FILTERS), TARGETS, TARGETS)
def test_hugging_face_height_and_width(agree: Agree, picture: Picture, filter_: str, height: int, width: int) -> None:
    processor = ViTImageProcessorPil(size={"height": height, "width": width}, resample=RESAMPLE[filter_], **RAW)
    spec = InputSpec(height=height, width=width, channels=3, filter=filter_, alpha="drop", exif="ignore")
    agree(decode(picture.encoded, spec, LIMIT), pixels_of(processor, picture.loaded(3)))


@given(PICTURES, st.sampled_from(FILTERS), TARGETS)
def test_hugging_face_convnext(agree: Agree, picture: Picture, filter_: str, side: int) -> None:
    processor = ConvNextImageProcessorPil(size={"shortest_edge": side}, resample=RESAMPLE[filter_], **RAW)
    spec = InputSpec(
        height=side, width=side, channels=3, resize=f"short:{int(side / (224 / 256))}", filter=filter_, crop="center-floor",
        alpha="drop", exif="ignore",
    )  # fmt: skip
    agree(decode(picture.encoded, spec, LIMIT), pixels_of(processor, picture.loaded(3)))


@given(PICTURES, st.sampled_from(FILTERS), TARGETS)
def test_hugging_face_transparency_over_white(agree: Agree, picture: Picture, filter_: str, side: int) -> None:
    assume("I;16" not in picture.kind)  # which it cuts off at 255 all the same
    processor = ViTImageProcessorPil(
        size={"height": side, "width": side}, resample=RESAMPLE[filter_], **{**RAW, "do_convert_rgb": True}
    )
    spec = InputSpec(height=side, width=side, channels=3, filter=filter_, alpha="white", exif="ignore")
    agree(decode(picture.encoded, spec, LIMIT), pixels_of(processor, picture.opened()))
