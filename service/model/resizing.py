"""Brings a decoded picture to the size that a model takes: resized, padded and cropped, to the pixel as the libraries do it.

A model has seen pixels that one library made, and libraries round differently. So the filter says whose rounding is meant:

- Pillow's filters: `short` cuts off the fraction of the longer side, as torchvision, timm and Hugging Face do; `cover` is Pillow's
  `ImageOps.fit`, `pad` its `ImageOps.pad`.
- `tf-bilinear`: `tf.image.resize`; `cover` is Keras' `smart_resize`, `pad` TensorFlow's `resize_with_pad`.
- `cv2-linear`: OpenCV's INTER_LINEAR; `pad` is Ultralytics' LetterBox, `cover` as for `tf-bilinear`, as OpenCV has none.

`pad` with a crop is timm's `border`: the picture is brought into the size of the pad, then cropped or padded to that of the input.

Pillow resizes whole pictures: a part of one, by `resize(box=)`, has other pixels than it has in the whole. So a picture is refused
if it is so long and thin that resizing its shorter side gives too many pixels. The other two filters compute what the crop keeps.
Pillow changes one side first and rounds, then the other; which is first has changed between 11 and 13, and with it some values of
some pictures, by one. Here it is always as in 13, so that a model has the same pixels on all versions.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidRequest
from service.model.input_spec import InputSpec
from service.model.interpolation import SAMPLERS

MAX_RESIZED_PIXELS = 2**24
"""Of a picture once its shorter side is resized; four squares of that side if that is more."""

_PILLOW = {
    "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST, "box": Image.Resampling.BOX, "hamming": Image.Resampling.HAMMING,
}  # fmt: skip
_BAND_PIXELS = 128 * 1024
_BYTES_A_PILLOW_PIXEL = {1: 1, 3: 4}


class _Placed(NamedTuple):
    """A picture of `size` at `place` on a canvas, which the crop is of: (width, height) and (left, top) in pixels."""

    size: tuple[int, int]
    canvas: tuple[int, int]
    place: tuple[int, int] = (0, 0)


def to_size(image: Image.Image, spec: InputSpec) -> NDArray[Any]:
    """[H,W,C] of `spec.dtype`, of a picture in mode L or RGB. Raises InvalidRequest as `check_size`."""
    check_size(image.size, spec)
    if spec.filter in SAMPLERS and spec.resizing.mode != "none":
        return _sampled(np.asarray(image).reshape(image.height, image.width, spec.channels), spec)
    pixels = np.frombuffer(_by_pillow(image, spec).tobytes(), np.uint8).reshape(spec.shape)
    return pixels if spec.dtype == "uint8" else pixels.astype(spec.dtype)


def check_size(size: tuple[int, int], spec: InputSpec) -> None:
    """Raises InvalidRequest if a picture of this (width, height) is not resized and has another, or is too long and thin."""
    mode, short, _ = spec.resizing
    width, height = size
    if mode == "none" and spec.crop is None and size != (spec.width, spec.height):
        raise InvalidRequest(
            f"the image is {width} x {height}; the model takes images of {spec.width} x {spec.height}, which are not resized"
        )
    if mode == "short" and spec.filter in _PILLOW:
        resized = _short_side(size, short)
        most = max(MAX_RESIZED_PIXELS, 4 * short * short)
        if resized[0] * resized[1] > most:
            raise InvalidRequest(
                f"the image is {width} x {height}, too long and thin: with a shorter side of {short}, as the model takes it, "
                f"it has {resized[0]} x {resized[1]} pixels; at most {most} are accepted"
            )


def resized_pixels(size: tuple[int, int], spec: InputSpec) -> int:
    """The most pixels that resizing a picture of this (width, height), or turned, computes or holds at once."""
    width, height = _whole_size(size, spec)
    if spec.filter in SAMPLERS:
        return spec.height * spec.width
    # Pillow may first make all rows of the picture as wide as they will be.
    return max(width * height + width * size[1], spec.height * spec.width)


def bytes_to_resize(size: tuple[int, int], spec: InputSpec) -> int:
    """The most bytes that resizing a decoded picture of this (width, height), or turned, takes beside it."""
    sizes = (size, size[::-1]) if spec.exif == "apply" else (size,)
    pixels = max(resized_pixels(each, spec) for each in sizes)
    if spec.filter in SAMPLERS:
        # Pillow hands an array over in pieces, which it puts together.
        return 2 * spec.channels * size[0] * size[1] + spec.size_bytes + 40 * spec.channels * _BAND_PIXELS
    return pixels * _BYTES_A_PILLOW_PIXEL[spec.channels] + 2 * spec.size_bytes


def _whole_size(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    mode, height, width = spec.resizing
    if mode == "short":
        return _short_side(size, height)
    return size if mode == "none" else (width, height)


def _short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    width, height = size
    return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


def _by_pillow(image: Image.Image, spec: InputSpec) -> Image.Image:
    mode, height, width = spec.resizing
    size, target = (width, height), (spec.width, spec.height)
    if mode == "pad":
        return _padded(image, spec, size)
    if mode == "short":
        size = _short_side(image.size, height)
    if mode != "none" and image.size != size:
        method = _PILLOW[spec.filter]
        image = _resized(image, size, method, _covering_box(image.size, size) if mode == "cover" else None)
    return image if image.size == target else _cropped(image, spec)


def _cropped(image: Image.Image, spec: InputSpec) -> Image.Image:
    left, top = _crop_at(image.size, spec)
    return image.crop((left, top, left + spec.width, top + spec.height))  # black where there is nothing


def _padded(image: Image.Image, spec: InputSpec, size: tuple[int, int]) -> Image.Image:
    method, color = _PILLOW[spec.filter], spec.pad.color if spec.channels == 3 else spec.pad.color[0]
    if spec.crop is None:
        thin = (round(image.width * size[1] / image.height), round(image.height * size[0] / image.width))
        if 0 in thin:  # of a long and thin image Pillow would leave nothing, or fail
            image = _resized(image, (max(1, min(thin[0], size[0])), max(1, min(thin[1], size[1]))), method)
        image = _resized(image, _contained_by_pillow(image.size, size), method)
        # Python rounds a half to the even number, as Pillow does here.
        place = (round((size[0] - image.width) / 2), round((size[1] - image.height) / 2)) if spec.pad.align == "center" else (0, 0)
    else:
        image = _resized(image, _contained(image.size, size), method)
        left, top = _crop_at(image.size, spec)
        place = (-left, -top)
    if image.size == (spec.width, spec.height):
        return image
    canvas = Image.new(image.mode, (spec.width, spec.height), color)
    canvas.paste(image, place)
    return canvas


@functools.cache
def pillow_rounds_otherwise() -> bool:
    """Whether the installed Pillow resizes with other roundings than the server: before 13 it changed the width first."""
    steps = (np.arange(64 * 16 * 3) * 97 % 251).astype(np.uint8)
    image, size = Image.fromarray(steps.reshape(64, 16, 3)), (12, 20)
    return image.resize(size, Image.Resampling.BILINEAR).tobytes() != _resized(image, size, Image.Resampling.BILINEAR).tobytes()


def _resized(
    image: Image.Image, size: tuple[int, int], method: Image.Resampling, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """As Pillow 13, which changes the height first where that saves work."""
    if image.size == size and box is None:
        return image
    less_height, less_width = image.height - size[1], image.width - size[0]
    if method != Image.Resampling.NEAREST and less_height > 0 and less_height > 2 * less_width:
        left, top, right, bottom = box or (0, 0, *image.size)
        image = image.resize((image.width, size[1]), method, (0, top, image.width, bottom))
        box = (left, 0, right, size[1])
    return image.resize(size, method, box)


def _covering_box(size: tuple[int, int], into: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a picture that has these proportions, as Pillow's `ImageOps.fit`."""
    width, height = float(size[0]), float(size[1])
    ratio = into[0] / into[1]
    if width / height > ratio:
        width = ratio * size[1]
    elif width / height < ratio:
        height = size[0] / ratio
    left, top = (size[0] - width) * 0.5, (size[1] - height) * 0.5
    return left, top, left + width, top + height


def _contained_by_pillow(size: tuple[int, int], into: tuple[int, int]) -> tuple[int, int]:
    """As Pillow's `ImageOps.contain`."""
    if size[0] / size[1] > into[0] / into[1]:
        return into[0], round(size[1] / size[0] * into[0])
    return round(size[0] / size[1] * into[1]), into[1]


def _contained(size: tuple[int, int], into: tuple[int, int]) -> tuple[int, int]:
    """As timm's ResizeKeepRatio with `longest=1`."""
    ratio = max(size[1] / into[1], size[0] / into[0])
    return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def _crop_at(size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """Where the crop of a picture of this size is, (left, top), below 0 where the picture is smaller."""
    left, top = size[0] - spec.width, size[1] - spec.height
    if spec.crop == "center-floor":
        return left // 2, top // 2
    # Python rounds a half to the even number, as torchvision does with what is cut off.
    return (-(-left // 2) if left < 0 else round(left / 2)), (-(-top // 2) if top < 0 else round(top / 2))


def _sampled(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[Any]:
    """By a filter whose every pixel is computed for itself: those that the crop keeps, in bands of rows."""
    mode, height, width = spec.resizing
    if mode == "cover":
        pixels = _covering(pixels, height, width)
    placed = _placed((pixels.shape[1], pixels.shape[0]), spec)
    left, top = _crop_at(placed.canvas, spec)
    found = np.zeros(spec.shape, spec.dtype)
    if mode == "pad":
        found[:] = spec.pad.color[: spec.channels]
    left, top = left - placed.place[0], top - placed.place[1]  # of the crop, in the picture
    columns = range(max(0, left), min(placed.size[0], left + spec.width))
    rows = range(max(0, top), min(placed.size[1], top + spec.height))
    band = max(1, _BAND_PIXELS // max(1, len(columns)))
    for first in range(rows.start, rows.stop, band):
        part = range(first, min(first + band, rows.stop))
        values = SAMPLERS[spec.filter](pixels, placed.size, part, columns)
        if spec.dtype == "uint8":
            values = np.rint(values)  # as Keras' Resizing does for integers
        found[part.start - top : part.stop - top, columns.start - left : columns.stop - left] = values
    return found


def _covering(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of a picture, in the proportions of the size, as Keras' smart_resize cuts it out."""
    rows, columns = pixels.shape[:2]
    keep_rows = max(1, min(rows, int(float(columns * height) / width)))
    keep_columns = max(1, min(columns, int(float(rows * width) / height)))
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    return pixels[top : top + keep_rows, left : left + keep_columns]


def _placed(size: tuple[int, int], spec: InputSpec) -> _Placed:
    mode, height, width = spec.resizing
    canvas = (width, height)
    if mode != "pad":
        whole = _whole_size(size, spec)
        return _Placed(whole, whole)
    if spec.crop is not None:
        inside = _contained(size, canvas)
        return _Placed(inside, inside)
    if spec.filter == "cv2-linear":
        ratio = min(height / size[1], width / size[0])
        inside = (max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio)))
        place = ((width - inside[0]) // 2, (height - inside[1]) // 2)
    else:  # in float32, as TensorFlow
        sides = np.array(size, np.float32) / max(np.float32(size[0]) / np.float32(width), np.float32(size[1]) / np.float32(height))
        inside = (max(1, int(sides[0])), max(1, int(sides[1])))
        border = (np.array(canvas, np.float32) - sides) / np.float32(2)
        place = (max(0, int(border[0])), max(0, int(border[1])))
    return _Placed(inside, canvas, place if spec.pad.align == "center" else (0, 0))
