"""What the packages make of a picture before they feed it to their model, written anew from their code, with Pillow, numpy, OpenCV.

It shares no code with Convoy. A pipeline gives [1, ...] as the model takes it.
"""

import functools
import importlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

Pipeline = Callable[[Image.Image], NDArray[np.float32]]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
_CAFFE_MEAN = np.array([104, 117, 123], np.float32)
_DLIB_MEAN = np.array([122.781998, 117.000999, 104.297997], np.float32)
_CROPS = 10


def pictures(kind: str) -> list[Image.Image]:
    """Photographs to compare answers on: `photos`, two and crops of them at odd sizes; or 12 crops of another kind.

    `lines` are at least four times as wide as high, as lines of text; `short256` have a shorter side of 256; `HxW` have that size.
    `digits` are 12 of scikit-learn's, 8x8 and gray.
    """
    if kind == "digits":
        return [Image.fromarray(np.rint(digit * 255 / 16).astype(np.uint8)) for digit in load_digits().images[:12]]
    random, photos = np.random.default_rng(7), [Image.fromarray(photo) for photo in load_sample_images().images]
    found = list(photos) if kind == "photos" else []
    for at in range(_CROPS if kind == "photos" else _CROPS + 2):
        photo = photos[at % len(photos)]
        width, height = (int(side) for side in random.integers(60, 400, 2))
        if kind == "lines":
            height = int(random.integers(12, width // 4 + 1))
        if kind == "short256":
            width, height = (256, 256 + 2 * (height // 8)) if at % 2 else (256 + 2 * (width // 8), 256)
        left, top = int(random.integers(0, photo.width - width)), int(random.integers(0, photo.height - height))
        crop = photo.crop((left, top, left + width, top + height))
        if kind[:1].isdigit():
            high, wide = map(int, kind.split("x"))
            crop = crop.resize((wide, high), Image.Resampling.LANCZOS)
        found.append(crop)
    return found


def stretched(
    height: int,
    width: int,
    filter_name: str,
    scale: float = 255,
    mean: Any = 0,
    std: Any = 1,
    layout: str = "nchw",
    mode: str = "RGB",
) -> Pipeline:
    """The whole picture at another size, scaled and normalised."""

    def prepare(picture: Image.Image) -> NDArray[np.float32]:
        resized = picture.convert(mode).resize((width, height), Image.Resampling[filter_name])
        image = np.asarray(resized, np.float32).reshape(height, width, -1) / np.float32(scale)
        return _arranged((image - np.float32(mean)) / np.float32(std), layout)

    return prepare


def centre(short: int, side: int) -> Pipeline:
    """EfficientNet-lite's: the shorter side, bicubic, and the middle, from -1 to 1."""

    def prepare(picture: Image.Image) -> NDArray[np.float32]:
        scale = short / min(picture.size)
        upright = picture.width <= picture.height
        size = (short, int(picture.height * scale)) if upright else (int(picture.width * scale), short)
        left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
        cut = picture.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
        return _arranged(np.asarray(cut, np.float32) / np.float32(127.5) - np.float32(1.0))

    return prepare


def dlib_chip(picture: Image.Image) -> NDArray[np.float32]:
    """A face that dlib has cut out and turned, at the size of the network."""
    return _arranged((np.asarray(picture, np.float32) - _DLIB_MEAN) / np.float32(256))


def mtcnn_chip(picture: Image.Image) -> NDArray[np.float32]:
    """A face that the network before has cut out, at the size of the network."""
    return _arranged((np.asarray(picture, np.float32) - np.float32(127.5)) * np.float32(0.0078125), "nhwc")


def orientation_padded(picture: Image.Image) -> NDArray[np.float32]:
    """The longer side to 320, on a white canvas."""
    width, height = picture.size
    size = (320, max(1, round(height * 320 / width))) if width >= height else (max(1, round(width * 320 / height)), 320)
    canvas = Image.new("RGB", (320, 320), (255, 255, 255))
    canvas.paste(picture.resize(size, Image.Resampling.BILINEAR), ((320 - size[0]) // 2, (320 - size[1]) // 2))
    return _normalised(np.asarray(canvas))


def orientation_short(picture: Image.Image) -> NDArray[np.float32]:
    """The shorter side to 256, which Lanczos of OpenCV leaves as it is where it is so already, and the middle; in BGR."""
    width, height = picture.size
    scale = 256 / min(width, height)
    size = (round(width * scale), round(height * scale))
    image = _opencv().resize(np.asarray(picture)[..., ::-1], size, interpolation=_opencv().INTER_LANCZOS4)
    top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
    return _normalised(image[top : top + 224, left : left + 224])


def text_line(picture: Image.Image) -> NDArray[np.float32]:
    """A line of text at a height of 48, up to 192 wide, the rest filled with nothing; in BGR from -1 to 1."""
    width = min(192, int(np.ceil(48 * picture.width / picture.height)))
    image = _opencv().resize(np.asarray(picture)[..., ::-1], (width, 48)).astype("float32").transpose(2, 0, 1) / 255
    filled = np.zeros((3, 48, 192), np.float32)
    filled[:, :, :width] = (image - 0.5) / 0.5
    return filled[None]


def text_line_large(picture: Image.Image) -> NDArray[np.float32]:
    """PP-LCNet's orientation of a line, as PaddleX prepares it: stretched by OpenCV to 80x160."""
    image: NDArray[np.uint8] = _opencv().resize(np.asarray(picture)[..., ::-1], (160, 80))
    return _normalised(image)


def open_nsfw(picture: Image.Image) -> NDArray[np.float32]:
    """Caffe's: 256x256, the middle of 224x224, BGR less its mean."""
    cut = picture.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    return _arranged(np.asarray(cut, np.float32)[:, :, ::-1] - _CAFFE_MEAN, "nhwc")


def open_nsfw_jpeg(picture: Image.Image) -> NDArray[np.float32]:
    """The same, with the resized picture written as a JPEG and read again between."""
    buffer = io.BytesIO()
    picture.resize((256, 256), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return open_nsfw(Image.open(buffer))


def digits_row(picture: Image.Image) -> NDArray[np.float32]:
    """A gray picture of 8x8 as a row, from 0 to 1."""
    gray = picture.convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    return np.asarray(gray, np.float32).reshape(1, 64) / np.float32(255)


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _arranged((pixels.astype(np.float32) / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD)


def _arranged(image: NDArray[Any], layout: str = "nchw") -> NDArray[np.float32]:
    turned = image.transpose(2, 0, 1) if layout == "nchw" else image
    return np.ascontiguousarray(turned, np.float32)[None]


@functools.cache
def _opencv() -> Any:
    return importlib.import_module("cv2")
