"""Real transforms of torchvision, timm and Hugging Face, translated into recipes: the server's pixels are those that they give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from export.importing.preprocessor_files import read_preprocessor
from export.importing.presets import preset
from export.importing.recipe import Recipe
from export.importing.transform_pixels import pixels_of_transform
from export.importing.transforms import RESIZES_TENSORS, of_transforms
from service.errors import UserError
from service.model.preprocessing import decode
from tests.conformance.pixels.conftest import PICTURES, Picture, import_torchvision

import_torchvision()
import timm.data  # noqa: E402
import torchvision.models  # noqa: E402
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio  # noqa: E402
from torchvision import transforms as v1  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil  # noqa: E402
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil  # noqa: E402
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil  # noqa: E402
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil  # noqa: E402
from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil  # noqa: E402
from transformers.models.mobilenet_v1.image_processing_pil_mobilenet_v1 import MobileNetV1ImageProcessorPil  # noqa: E402
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil  # noqa: E402
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil  # noqa: E402
from transformers.models.poolformer.image_processing_pil_poolformer import PoolFormerImageProcessorPil  # noqa: E402
from transformers.models.pvt.image_processing_pil_pvt import PvtImageProcessorPil  # noqa: E402
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil  # noqa: E402
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil  # noqa: E402
from transformers.models.vit.image_processing_vit import ViTImageProcessor  # noqa: E402

LIMIT = 10**6
FEW = settings(max_examples=50)
Agree = Callable[[Any, Any], None]

IMAGENET = v1.Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
FLOAT = v2.ToDtype(torch.float32, scale=True)
PROCESSORS = (
    BeitImageProcessorPil, BitImageProcessorPil, CLIPImageProcessorPil, DeiTImageProcessorPil, EfficientNetImageProcessorPil,
    LevitImageProcessorPil, MobileNetV1ImageProcessorPil, MobileNetV2ImageProcessorPil, MobileViTImageProcessorPil,
    PoolFormerImageProcessorPil, PvtImageProcessorPil, SegformerImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil,
)  # fmt: skip
TORCHVISION = {
    "v1": v1.Compose([v1.Resize(40), v1.CenterCrop(33), v1.ToTensor(), IMAGENET]),
    "v1, a crop that may be larger": v1.Compose([v1.Resize((30, 41)), v1.CenterCrop((35, 36)), v1.ToTensor(), IMAGENET]),
    "v1, only cropped": v1.Compose([v1.CenterCrop(32), v1.ToTensor()]),
    "v2": v2.Compose([v2.Resize((31, 20), v2.InterpolationMode.BICUBIC), v2.ToImage(), FLOAT, v2.Normalize([0.5], [0.2])]),
    "v2, bytes": v2.Compose([v2.PILToTensor(), v2.CenterCrop([9, 10]), v2.ConvertImageDtype(torch.float32)]),
    "weights": torchvision.models.ResNet18_Weights.DEFAULT.transforms(crop_size=28, resize_size=32),
    "Sequential": torch.nn.Sequential(v2.PILToTensor(), v2.CenterCrop(20), FLOAT, v2.Normalize([0.4], [0.3])),
}  # fmt: skip
TIMM = {
    "center": {"crop_pct": 0.9, "interpolation": "bicubic"},
    "squash": {"crop_pct": 0.95, "crop_mode": "squash", "interpolation": "lanczos"},
    "border": {"crop_pct": 0.95, "crop_mode": "border", "interpolation": "bilinear"},
    "border, all of it": {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "bicubic"},
    "for a prefetcher": {"use_prefetcher": True},
}


def check(agree: Agree, transforms: Any, recipe: Recipe, picture: Picture) -> None:
    try:
        expected = pixels_of_transform(transforms, recipe)(picture.encoded)
    except UserError as error:  # timm resizes a long and thin picture to nothing
        assume("height and width must be > 0" not in str(error))
        raise
    agree(decode(picture.encoded, recipe.input, LIMIT), expected)


@pytest.mark.parametrize("name", TORCHVISION)
@FEW
@given(PICTURES)
def test_recipes_of_torchvisions_transforms(agree: Agree, name: str, picture: Picture) -> None:
    check(agree, TORCHVISION[name], of_transforms(TORCHVISION[name], 3), picture)


@FEW
@given(PICTURES)
def test_recipes_of_gray_pictures(agree: Agree, picture: Picture) -> None:
    transforms = v1.Compose([v1.Resize((28, 28)), v1.ToTensor(), v1.Normalize((0.1307,), (0.3081,))])
    check(agree, transforms, of_transforms(transforms, 1), picture)


@pytest.mark.parametrize("name", TIMM)
@FEW
@given(PICTURES)
def test_recipes_of_timms_transforms(agree: Agree, name: str, picture: Picture) -> None:
    transforms = timm.data.create_transform((3, 37, 37), **TIMM[name])
    check(agree, transforms, of_transforms(transforms, 3), picture)


@FEW
@given(PICTURES)
def test_recipes_of_timms_border_that_is_not_square(agree: Agree, picture: Picture) -> None:
    transforms = v1.Compose([ResizeKeepRatio((40, 30), longest=1.0), CenterCropOrPad((33, 35), fill=[1, 2, 3]), v1.ToTensor()])
    check(agree, transforms, of_transforms(transforms, 3), picture)


@pytest.mark.parametrize("size", [37, 64])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@FEW
@given(PICTURES)
def test_recipes_of_timms_files(
    agree: Agree, tmp_path_factory: pytest.TempPathFactory, mode: str, size: int, picture: Picture
) -> None:
    half = [0.5] * 3
    config = {
        "input_size": [3, 37, 37], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": mode, "mean": half, "std": half,
        "test_input_size": [3, 64, 64], "test_crop_pct": 1.0,
    }  # fmt: skip
    path = tmp_path_factory.getbasetemp() / f"{mode}.json"
    path.write_text(json.dumps({"pretrained_cfg": config}))
    wanted = timm.data.resolve_data_config(pretrained_cfg=config, use_test_size=size == 64)
    check(agree, timm.data.create_transform(**wanted), read_preprocessor(path, size, size, 3), picture)


@pytest.mark.parametrize("kind", PROCESSORS, ids=lambda kind: kind.__name__)
@FEW
@given(PICTURES)
def test_recipes_of_hugging_faces_processors(agree: Agree, kind: Any, picture: Picture) -> None:
    size = {"shortest_edge": 40} if "shortest_edge" in kind.size else {"height": 40, "width": 40}
    crop = {"crop_size": {"height": 33, "width": 32}} if getattr(kind, "do_center_crop", False) else {}
    processor = kind(size=size, **crop)
    check(agree, processor, of_transforms(processor, 3), picture)


@FEW
@given(PICTURES)
def test_recipes_of_convnexts_processor(agree: Agree, picture: Picture) -> None:
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 40}, crop_pct=0.9)
    check(agree, processor, of_transforms(processor, 3), picture)


@pytest.mark.parametrize("kind", PROCESSORS, ids=lambda kind: kind.__name__)
def test_recipes_of_files_are_those_of_their_processors(tmp_path: Path, kind: Any) -> None:
    kind().save_pretrained(tmp_path)
    [path] = tmp_path.iterdir()
    found, expected = read_preprocessor(path, 0, 0, 3), of_transforms(kind(), 3)
    assert (found.input, found.scale, found.mean, found.std) == (expected.input, expected.scale, expected.mean, expected.std)


@FEW
@given(PICTURES)
def test_recipes_of_presets(agree: Agree, picture: Picture) -> None:
    weights = torchvision.models.Inception_V3_Weights.DEFAULT.transforms(crop_size=70, resize_size=80)
    check(agree, weights, preset("torchvision", 70, 70, 3), picture)
    check(agree, timm.data.create_transform((3, 60, 60), interpolation="bicubic"), preset("timm", 60, 60, 3), picture)


@FEW
@given(PICTURES)
def test_resized_tensors_are_close(picture: Picture) -> None:
    """PyTorch rounds otherwise than Pillow; so the import says that such pixels are not proved."""
    tensors = v2.Compose([v2.ToImage(), v2.Resize((33, 34)), FLOAT])
    for transforms in (tensors, ViTImageProcessor(size={"height": 33, "width": 34})):
        recipe = of_transforms(transforms, 3)
        assert recipe.source.endswith(RESIZES_TENSORS)
        found = pixels_of_transform(transforms, recipe)(picture.encoded).astype(float)
        assert np.abs(decode(picture.encoded, recipe.input, LIMIT) - found).max() <= 1


@pytest.mark.parametrize(
    "transforms",
    [
        timm.data.create_transform((3, 40, 40), is_training=True),
        timm.data.create_transform((3, 40, 32)),
        v1.Compose([v1.RandomCrop(32), v1.ToTensor()]),
        v2.Compose([v2.AutoAugment(), v2.ToImage()]),
        v1.Compose([v1.Resize(32), v1.ToTensor()]),
        v1.Compose([v1.Lambda(lambda image: image), v1.ToTensor()]),
        v1.TenCrop(32),
    ],
)
def test_what_cannot_be_expressed_is_refused(transforms: Any) -> None:
    with pytest.raises(UserError, match=r"cannot be expressed|belongs to training|many sizes"):
        of_transforms(transforms, 3)
