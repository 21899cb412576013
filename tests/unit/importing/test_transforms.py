"""With small classes that have the names and attributes of the real ones; tests/conformance has these."""

from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest

from export.importing.transforms import of_transforms
from service.errors import UserError


class Interpolation(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


def step(name: str, package: str = "torchvision.transforms", **attributes: Any) -> Any:
    return type(name, (), {"__module__": package, **attributes})()


def compose(*steps: Any) -> Any:
    return step("Compose", transforms=list(steps))


def resize(size: Any, interpolation: Any = Interpolation.BILINEAR, **more: Any) -> Any:
    return step("Resize", size=size, interpolation=interpolation, **({"max_size": None, "antialias": True} | more))


def crop(size: Any) -> Any:
    return step("CenterCrop", size=size)


def normalize(mean: Any = (0.485, 0.456, 0.406), std: Any = (0.229, 0.224, 0.225)) -> Any:
    return step("Normalize", mean=mean, std=std)


def to_dtype(dtype: Any, **more: Any) -> Any:
    return step("ToDtype", dtype=dtype, **more)


def keep_ratio(longest: float) -> Any:
    return step("ResizeKeepRatio", "timm.data.transforms", size=(40, 36), longest=longest, interpolation=Interpolation.BICUBIC)


def crop_or_pad(size: int, fill: Any) -> Any:
    return step("CenterCropOrPad", "timm.data.transforms", size=(size, size), fill=fill, padding_mode="constant")


TO_TENSOR = step("ToTensor")
TO_IMAGE = step("ToImage", "torchvision.transforms.v2._type_conversion")
GRAYSCALE = step("Grayscale", num_output_channels=1)
FLOAT = to_dtype("torch.float32", scale=True)
CLIP = {
    "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
}  # fmt: skip


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        (compose(resize(256), crop((224, 224)), TO_TENSOR, normalize()), ("short:256", "bilinear", "center", (224, 224))),
        ([resize([232], Interpolation.BICUBIC), crop(224), TO_TENSOR], ("short:232", "bicubic", "center", (224, 224))),
        (compose(resize((20, 30)), TO_TENSOR), ("stretch:20x30", "bilinear", None, (20, 30))),
        (compose(compose(resize((40, 40), 3)), crop(32), TO_TENSOR), ("stretch:40x40", "bicubic", "center", (32, 32))),
        (compose(crop(32), TO_TENSOR), ("none", "bilinear", "center", (32, 32))),
        (compose(resize((32, 32)), resize(32), crop(32), TO_TENSOR), ("stretch:32x32", "bilinear", None, (32, 32))),
        (compose(TO_IMAGE, resize((32, 32), antialias=False), FLOAT), ("stretch:32x32", "tf-bilinear", None, (32, 32))),
        (
            step(
                "ImageClassification",
                resize_size=[342],
                crop_size=[299],
                interpolation=Interpolation.BILINEAR,
                mean=[0.5],
                std=[0.5],
            ),
            ("short:342", "bilinear", "center", (299, 299)),
        ),
    ],
)
def test_sizes(transforms: Any, expected: tuple[str, str, str | None, tuple[int, int]]) -> None:
    spec = of_transforms(transforms, 3).input
    assert (spec.resize, spec.filter, spec.crop, spec.shape[:2]) == expected
    assert (spec.alpha, spec.exif) == ("drop", "ignore")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([TO_TENSOR], [0, 1]),
        ([TO_TENSOR, normalize([0.5], [0.5])], [-1, 1]),
        ([TO_TENSOR, normalize([0.5] * 3, [0.5] * 3), normalize([1], [2])], [-1, 0]),
        ([step("PILToTensor")], [0, 255]),
        ([step("PILToTensor"), to_dtype("torch.float32", scale=False), normalize([127.5], [127.5])], [-1, 1]),
        ([TO_IMAGE, to_dtype("torch.uint8", scale=True), FLOAT, normalize([0.5], [0.5])], [-1, 1]),
        ([step("PILToTensor"), step("ConvertImageDtype", dtype="torch.float32")], [0, 1]),
        ([step("ToTensor", "timm.data.transforms", dtype="torch.float32")], [0, 255]),
        ([step("MaybeToTensor", "timm.data.transforms")], [0, 1]),
        ([step("MaybePILToTensor", "timm.data.transforms")], [0, 255]),
    ],
)
def test_numbers(steps: list[Any], expected: list[float]) -> None:
    recipe = of_transforms(compose(*steps), 3, 32, 32)
    assert [(pixel / recipe.scale - recipe.mean[0]) / recipe.std[0] for pixel in (0, 255)] == pytest.approx(expected)
    assert len(recipe.mean) == len(recipe.std) == 3


def test_the_border_of_timm() -> None:
    spec = of_transforms(compose(keep_ratio(1.0), crop_or_pad(32, [124, 116, 104]), TO_TENSOR), 3).input
    assert (spec.resize, spec.filter, spec.crop, spec.pad.color) == ("pad:40x36", "bicubic", "center", (124, 116, 104))


def test_gray_pictures_are_of_one_channel() -> None:
    recipe = of_transforms(compose(GRAYSCALE, resize((28, 28)), TO_TENSOR, normalize((0.1307,), (0.3081,))), 1)
    assert (recipe.input.shape, recipe.mean, recipe.std) == ((28, 28, 1), (0.1307,), (0.3081,))


def test_gray_pictures_for_a_network_of_three_channels() -> None:
    recipe = of_transforms(compose(step("Grayscale", num_output_channels=3), resize((28, 28)), TO_TENSOR, normalize()), 3)
    assert (recipe.input.channels, len(recipe.mean), len(recipe.std)) == (1, 3, 3)


def test_that_tensors_are_resized_is_in_the_source() -> None:
    # PyTorch rounds otherwise than Pillow, so whoever compares pixels must know.
    assert of_transforms(compose(TO_IMAGE, resize((32, 32)), FLOAT), 3).source == "Compose (it resizes tensors)"
    assert of_transforms(compose(resize((32, 32)), TO_IMAGE, FLOAT), 3).source == "Compose"


def test_floats_that_were_resized_are_not_rounded() -> None:
    assert of_transforms(compose(TO_TENSOR, resize((32, 32), antialias=False)), 3).input.dtype == "float32"
    assert of_transforms(compose(TO_IMAGE, resize((32, 32), antialias=False), FLOAT), 3).input.dtype == "uint8"


@pytest.mark.parametrize(
    ("backend", "source"), [("pil", "CLIPImageProcessor"), ("torchvision", "CLIPImageProcessor (it resizes tensors)")]
)
def test_a_processor_of_hugging_face_is_read_as_its_file(backend: str, source: str) -> None:
    def to_dict(_self: Any) -> dict[str, Any]:
        return CLIP

    processor = step("CLIPImageProcessor", "transformers", to_dict=to_dict, backend=backend, image_mean=CLIP["image_mean"])
    recipe = of_transforms(processor, 3, 224, 224)
    assert (recipe.input.resize, recipe.input.crop, recipe.std, recipe.source) == ("short:224", "center-floor", (0.25,) * 3, source)


def test_a_processor_around_timm_is_read_as_timms_config() -> None:
    config = {"input_size": [3, 64, 64], "interpolation": "bilinear", "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
    recipe = of_transforms(step("TimmWrapperImageProcessor", "transformers", pretrained_cfg=config), 3)
    assert (recipe.input.resize, recipe.input.shape, recipe.source) == ("short:64", (64, 64, 3), "TimmWrapperImageProcessor")


def invert(image: Any) -> Any:
    return image


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (compose(step("Lambda", lambd=invert)), "Compose: Lambda cannot be expressed; a resize, a centre crop"),
        (compose(invert), "Compose: invert cannot be expressed"),
        (invert, "invert cannot be expressed"),
        (compose(step("RandomHorizontalFlip")), "RandomHorizontalFlip is random, and belongs to training"),
        (compose(keep_ratio(0)), "ResizeKeepRatio to a size that is not square cannot be expressed; with longest=1 it is accepted"),
        (compose(keep_ratio(1.0), TO_TENSOR), "a resize that keeps the ratio needs a centre crop"),
        (compose(resize((32, 32)), crop(32)), "it gives a picture and no tensor; with ToTensor"),
        (compose(step("TrimBorder", "timm.data.transforms")), "TrimBorder cannot be expressed"),
        (compose(step("Resize", "albumentations", height=32, width=32)), "Resize cannot be expressed"),
        (compose(resize(256), TO_TENSOR), "a resize that keeps the ratio needs a centre crop"),
        (compose(resize(256, max_size=300), crop(224)), "Resize with max_size cannot be expressed"),
        (compose(resize(None)), "Resize to the size None cannot be expressed"),
        (compose(resize(32, Interpolation.NEAREST_EXACT)), "Resize with nearest-exact cannot be expressed; accepted are nearest"),
        (compose(crop(32), resize((40, 40))), "Resize after a crop cannot be expressed"),
        (compose(resize((40, 40)), resize((32, 32))), "Resize after a resize cannot be expressed"),
        (compose(resize(40), crop(32), crop(30)), "CenterCrop a second time cannot be expressed"),
        (compose(crop("all")), "CenterCrop to the size 'all' cannot be expressed"),
        (compose(TO_TENSOR, normalize(), resize((32, 32))), "Resize after Normalize cannot be expressed"),
        (compose(TO_TENSOR, normalize(), crop(32)), "CenterCrop after Normalize may pad with numbers that are no pixels"),
        (compose(TO_TENSOR, resize((32, 32), Interpolation.NEAREST)), "Resize of a tensor with nearest cannot be expressed"),
        (compose(TO_TENSOR, resize((32, 32), 3, antialias=False)), "Resize of a tensor with bicubic and no antialias"),
        (compose(TO_IMAGE, normalize()), "Normalize before the conversion to floats cannot be expressed"),
        (compose(TO_TENSOR, normalize([0.5] * 4, [0.5] * 4)), "the mean of Normalize is of 4 channels, and the network takes 3"),
        (compose(TO_TENSOR, normalize(None)), "the mean of Normalize is None"),
        (compose(TO_TENSOR, normalize([0.5], [0])), "divides by 0"),
        (compose(TO_IMAGE, to_dtype("torch.float16", scale=True)), "ToDtype to torch.float16 cannot be expressed"),
        (compose(TO_IMAGE, to_dtype({"x": 1})), "ToDtype with a dtype for each kind of value cannot be expressed"),
        (compose(FLOAT), "ToDtype before the conversion to a tensor cannot be expressed"),
        (compose(step("Grayscale", num_output_channels=4)), "Grayscale to 4 channels cannot be expressed"),
        (compose(resize((32, 32)), GRAYSCALE), "Grayscale after the resize cannot be expressed"),
        (compose(GRAYSCALE, resize((32, 32)), TO_TENSOR), "Grayscale gives 1 channels, and the network takes 3"),
        (
            compose(step("CenterCropOrPad", "timm.data", size=(32, 32), fill=[9, 9, 9], padding_mode="constant")),
            "that is not black",
        ),
        (compose(resize(256), crop(224), TO_TENSOR), "gives pictures of 224x224, and the network takes 32x32"),
    ],
)
def test_what_a_recipe_cannot_express_is_refused_by_name(transforms: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        of_transforms(transforms, 3, 32, 32)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_size_the_networks_own_is_taken_if_it_has_one() -> None:
    take: Callable[..., Any] = of_transforms
    assert take(compose(TO_TENSOR), 1, 28, 20).input.shape == (28, 20, 1)
    with pytest.raises(UserError, match="it does not say to what size"):
        take(compose(TO_TENSOR), 1)
