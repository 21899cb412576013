import json
from pathlib import Path
from typing import Any

import pytest

from export.importing.preprocessor_files import read_preprocessor
from export.importing.recipe import Recipe
from service.errors import UserError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
TIMM = {
    "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center", "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5], "test_input_size": [3, 288, 288], "test_crop_pct": 1.0,
}  # fmt: skip


def read(folder: Path, content: Any, height: int = 0, width: int = 0, channels: int = 3) -> Recipe:
    path = folder / "preprocessor_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_preprocessor(path, height, width, channels)


def hugging_face(kind: str, **settings: Any) -> dict[str, Any]:
    return {"image_processor_type": f"{kind}ImageProcessor", **settings}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (hugging_face("ViT", size={"height": 224, "width": 224}, resample=2), ("stretch", "bilinear", None, 224)),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 384, **IMAGENET}, ("stretch", "bilinear", None, 384)),
        (hugging_face("ViT", size=224) | {"image_processor_type": "ViTImageProcessorFast"}, ("stretch", "bilinear", None, 224)),
        (hugging_face("CLIP", size=224, crop_size=224), ("short:224", "bicubic", "center-floor", 224)),
        (hugging_face("Bit", size={"shortest_edge": 256}), ("short:256", "bicubic", "center-floor", 224)),
        (hugging_face("DeiT", size=256, crop_size=224, resample=3), ("stretch:256x256", "bicubic", "center-floor", 224)),
        (hugging_face("ConvNext", size={"shortest_edge": 224}, crop_pct=0.875), ("short:256", "bicubic", "center-floor", 224)),
        (hugging_face("ConvNext", size=384, crop_pct=1.0), ("stretch", "bicubic", None, 384)),
        (hugging_face("PoolFormer", size=224, crop_pct=0.9), ("short:248", "bicubic", "center-floor", 224)),
        (hugging_face("Levit", size=224), ("short:256", "bicubic", "center-floor", 224)),
        (hugging_face("MobileNetV2"), ("short:256", "bilinear", "center-floor", 224)),
        (hugging_face("ViT", do_resize=False, do_center_crop=True, crop_size=64), ("none", "bilinear", "center-floor", 64)),
        ({"image_processor": hugging_face("Siglip", resample=0)}, ("stretch", "nearest", None, 224)),
    ],
)
def test_sizes_and_crops_of_hugging_face(tmp_path: Path, content: Any, expected: tuple[str, str, str | None, int]) -> None:
    spec = read(tmp_path, content).input
    assert (spec.resize, spec.filter, spec.crop, spec.height) == expected
    assert (spec.width, spec.dtype, spec.alpha, spec.exif) == (spec.height, "uint8", "drop", "apply")


def numbers(recipe: Recipe, pixels: tuple[int, ...] = (0, 255)) -> list[float]:
    return [(pixel / recipe.scale - recipe.mean[0]) / recipe.std[0] for pixel in pixels]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (hugging_face("ViT", rescale_factor=0.00392156862745098), [-1, 1]),
        (hugging_face("ViT", do_normalize=False), [0, 1]),
        (hugging_face("ViT", do_rescale=False, image_mean=127.5, image_std=127.5), [-1, 1]),
        (
            hugging_face("EfficientNet", rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False),
            [-1, 1],
        ),
        # "include_top" divides by std once more.
        (hugging_face("EfficientNet", image_mean=[0.5] * 3, image_std=[0.5] * 3), [-2, 2]),
        (hugging_face("MobileViT"), [0, 1]),
    ],
)
def test_numbers_of_hugging_face(tmp_path: Path, content: Any, expected: list[float]) -> None:
    assert numbers(read(tmp_path, content)) == pytest.approx(expected)


def test_hugging_face_says_whether_blue_is_first(tmp_path: Path) -> None:
    recipe = read(tmp_path, hugging_face("MobileViT", do_flip_channel_order=True))
    assert (recipe.channel_order, recipe.scale) == ("bgr", 255.0)
    assert read(tmp_path, hugging_face("MobileViT", do_flip_channel_order=False)).channel_order == "rgb"


@pytest.mark.parametrize(
    ("changes", "height", "expected"),
    [
        ({}, 224, ("short:235", "bicubic", 224)),
        ({}, 0, ("short:235", "bicubic", 224)),
        ({}, 288, ("short:288", "bicubic", 288)),
        ({}, 256, ("short:269", "bicubic", 256)),
        ({"test_crop_pct": None}, 288, ("short:303", "bicubic", 288)),
        ({"crop_mode": "squash", "interpolation": "bilinear"}, 224, ("stretch:235x235", "bilinear", 224)),
        ({"crop_mode": "border"}, 224, ("pad:235x235", "bicubic", 224)),
        ({"crop_pct": None, "interpolation": None, "mean": None}, 224, ("short:256", "bicubic", 224)),
    ],
)
def test_timm_crops_as_its_own_transform_does(tmp_path: Path, changes: Any, height: int, expected: tuple[str, str, int]) -> None:
    for content in ({"architecture": "x", "pretrained_cfg": TIMM | changes}, {"mean": [0.5], **TIMM, **changes}):
        recipe = read(tmp_path, content, height, height)
        assert (recipe.input.resize, recipe.input.filter, recipe.input.height) == expected
        assert (recipe.scale, recipe.input.crop, recipe.input.exif) == (255.0, "center", "ignore")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object; accepted are preprocessor_config.json of Hugging Face and config.json of timm"),
        ({"architectures": ["ViTForImageClassification"], "image_size": 224}, "does not say how pictures are prepared"),
        (" " * (1 << 20) + "{}", "larger than 1 MiB"),
        ({"image_mean": 0.5}, "what a processor without a name does cannot be expressed"),
        (hugging_face("Perceiver"), "what PerceiverImageProcessor does cannot be expressed; accepted are ViTImageProcessor"),
        (hugging_face("ViT", do_pad=True), "do_pad of ViTImageProcessor cannot be expressed"),
        (hugging_face("ViT", resample=9), "resample is 9"),
        (hugging_face("ViT", size={"longest_edge": 224}), "longest_edge of size cannot be expressed"),
        (hugging_face("ViT", size={"shortest_edge": 224, "longest_edge": 300}), "longest_edge of size cannot be expressed"),
        (hugging_face("ViT", size={"shortest_edge": 224}), "without do_center_crop gives pictures of many sizes"),
        (hugging_face("ViT", size="big"), "size is 'big'"),
        (hugging_face("ViT", size=32), "gives pictures of 32x32, and the network takes 224x224"),
        (hugging_face("ViT", do_resize=False, do_center_crop=True), "crop_size is None"),
        (hugging_face("ViT", image_mean=[0.5, 0.5]), "image_mean is of 2 channels, and the network takes 3"),
        (hugging_face("ViT", image_mean="half"), "image_mean is 'half'"),
        (hugging_face("ViT", image_std=[0.5, 0, 0.5]), "divides by 0"),
        (hugging_face("ViT", rescale_factor=0), "rescale_factor is 0"),
        (hugging_face("ConvNext", size={"height": 224, "width": 224}), "ConvNextImageProcessor has a shortest_edge"),
        (hugging_face("ConvNext", size=224, crop_pct=0), "crop_pct is 0"),
        (hugging_face("ViT", size={"height": 9000, "width": 9000}, do_center_crop=True, crop_size=224), "at most 8192 pixels"),
        (TIMM | {"crop_mode": "random"}, "crop_mode 'random' cannot be expressed; accepted are center, squash and border"),
        (TIMM | {"interpolation": "random"}, "interpolation is 'random'; accepted are nearest"),
        (TIMM | {"input_size": [3, 224]}, "input_size is [3, 224]; [channels, height, width] is accepted"),
        (TIMM | {"input_size": [1, 224, 224]}, "input_size has 1 channels, and the network takes 3"),
        (TIMM | {"crop_pct": 2}, "crop_pct is 2"),
        (TIMM | {"crop_pct": "all"}, "crop_pct is 'all'"),
        (TIMM | {"crop_pct": 5e-324}, "crop_pct is 4.94066e-324; 0.01 to 1 is accepted"),
        (TIMM | {"mean": [10**400] * 3}, "...; a number or a list of numbers is accepted"),
        (TIMM | {"std": [float("inf")] * 3}, "std is [inf, inf, inf]; a number"),
        (TIMM | {"input_size": [3, 10**400, 224]}, "...; [channels, height, width] is accepted"),
        (hugging_face("Levit", size=10**400), "...; height and width are accepted"),
        (hugging_face("ConvNext", size={"shortest_edge": True}), "size is {'shortest_edge': True}"),
        (hugging_face("ViT", rescale_factor=5e-324), "numbers that are not finite"),
    ],
)
def test_what_a_recipe_cannot_express_is_refused_by_name(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, 224, 224)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_border_of_timm_has_the_colour_of_the_mean(tmp_path: Path) -> None:
    spec = read(tmp_path, TIMM | {"crop_mode": "border", "mean": [0.5, 0.25, 1.5]}).input
    assert (spec.pad.color, spec.pad.align) == ((128, 64, 255), "center")


def test_a_size_that_is_not_square_is_one_that_timm_resizes_otherwise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ResizeKeepRatio to 224x192, which is not square"):
        read(tmp_path, TIMM, 224, 192)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json: No such file"):
        read_preprocessor(tmp_path / "missing.json", 224, 224, 3)
