"""Decodes an image into the [H,W,C] that a model takes, as the contract's input says. Training and serving both use it.

Resizing and cropping are in `resizing.py`; normalisation is inside the ONNX graph.
"""

import hashlib
import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from service.errors import InvalidRequest
from service.model import heif
from service.model.image_metadata import gif_without_metadata, orient, without_metadata
from service.model.input_spec import InputSpec
from service.model.png import SIGNATURE, open_png
from service.model.resizing import check_size, to_size
from service.model.webp import is_webp, open_webp

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *heif.formats())
"""Those that are accepted here."""

MAX_SIDE = 65_535
"""In pixels. Pillow's work per column dominates in an image of few rows, which a limit on width x height allows."""

MAX_SCANS = 100
"""In a JPEG. A scan of 10 bytes can touch every pixel; encoders write about ten scans."""

# A broken file is refused or taken; who sends many could fill the log.
warnings.filterwarnings("ignore", module="PIL")
# Replaced by the operator's limit in `open_image`: Pillow's own warns at one size and raises at another.
Image.MAX_IMAGE_PIXELS = None

_BY_PILLOW = ("JPEG", "BMP", "TIFF", "PPM")
_BACKGROUND = (255, 255, 255, 255)
_BAND_PIXELS = 256 * 1024

_SCAN = b"\xff\xda\0"  # the marker, and the first byte of its length, which is 14 at most
_MIN_TILE_PIXELS = 1024 * 1024
_GRAY_STEPS = {"L;2": 85, "L;4": 17}


def open_image(encoded: bytes, max_pixels: int) -> Image.Image:
    """Reads an image's header; decodes no pixels.

    Raises:
        InvalidRequest: not an image in one of FORMATS, width x height above `max_pixels`, a side above MAX_SIDE, a JPEG of more
            than MAX_SCANS scans, or a TIFF or AVIF whose tiles or frames are far larger than the image.
    """
    if not encoded:
        raise InvalidRequest("the image is empty (0 bytes)")
    try:
        image = _open(encoded, max_pixels)
        tiles = _pixels_of_tiles(image) if isinstance(image, TiffImagePlugin.TiffImageFile) else 0
    except UnidentifiedImageError:
        raise InvalidRequest(f"not an image in a format accepted here: {', '.join(FORMATS)}") from None
    except InvalidRequest:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise any error on broken input
        raise InvalidRequest(f"the image's header is broken ({type(error).__name__})") from None
    if image.width * image.height > max_pixels:
        raise InvalidRequest(f"the image has {image.width} x {image.height} pixels; at most {max_pixels} are accepted")
    if max(image.size) > MAX_SIDE:
        raise InvalidRequest(f"the image is {image.width} x {image.height}; at most {MAX_SIDE} pixels a side are accepted")
    # Tiles at the edges may reach beyond the image.
    if tiles > max(2 * max_pixels, _MIN_TILE_PIXELS):
        raise InvalidRequest(f"the image's tiles have {tiles} pixels; at most {max_pixels} are accepted")
    if image.format in ("JPEG", "MPO"):
        scans = encoded.count(_SCAN)
        if scans > MAX_SCANS:
            raise InvalidRequest(f"the image has {scans} scans; at most {MAX_SCANS} are accepted")
    return image


def to_pixels(image: Image.Image, spec: InputSpec) -> NDArray[Any]:
    """Decodes an opened image and converts it to the model's size, channels and type.

    In this order: the first frame of an animation, EXIF orientation, 16-bit gray to 8 bits, transparency over white, gray or RGB,
    the contract's resize, crop and pad. With `exif = "ignore"` an image is not turned but where Pillow turns it by itself, as it
    does a TIFF, AVIF and HEIC. With `alpha = "drop"` everything between the first frame and the resize is Pillow's `convert`.

    Returns:
        [H,W,C] of exactly `spec.shape` and `spec.dtype`.

    Raises:
        InvalidRequest: the image's data are broken or cut short, its pixels have 32 bits and `alpha` is `white`, or it cannot be
            brought to the model's size (`resizing.check_size`).
    """
    if spec.resizing.mode == "short":  # turned or not
        check_size(image.size, spec)
    try:
        if isinstance(image, PngImagePlugin.PngImageFile):
            _scale_transparency(image)
        image.load()
        if image.info and spec.exif == "apply":
            orient(image)
        mode = "L" if spec.channels == 1 else "RGB"
        return to_size(_to_mode(image, mode) if spec.alpha == "white" else _without_alpha(image, mode), spec)
    except InvalidRequest:
        raise
    except Exception as error:  # noqa: BLE001 - as in open_image
        raise InvalidRequest(f"the image's data are broken or cut short ({type(error).__name__})") from None


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """uint8[h,w,3] of an opened image, of its own size, as plain decoders make them: not turned, its alpha dropped.

    Raises InvalidRequest if the image's data are broken or cut short.
    """
    try:
        image.load()
        if image.has_transparency_data:
            image.info.pop("transparency", None)
            image = image.convert("RGB")
        return np.asarray(_to_mode(image, "RGB"))
    except InvalidRequest:
        raise
    except Exception as error:  # noqa: BLE001 - as in open_image
        raise InvalidRequest(f"the image's data are broken or cut short ({type(error).__name__})") from None


def decode(encoded: bytes, spec: InputSpec, max_pixels: int) -> NDArray[Any]:
    """`open_image`, then `to_pixels`."""
    return to_pixels(open_image(encoded, max_pixels), spec)


def resize(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[Any]:
    """Decoded pixels, uint8[h,w] or uint8[h,w,3], resized and converted as by `to_pixels`."""
    return to_pixels(Image.fromarray(pixels), spec)


def pixels_digest(pixels: NDArray[Any]) -> str:
    """SHA-256 of what a picture became, [H,W,C], in hexadecimal, as a golden sample has it."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8[h,w], uint8[h,w,1] or uint8[h,w,3]; lossless, so `decode` returns the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _open(encoded: bytes, max_pixels: int) -> Image.Image:
    if encoded.startswith(SIGNATURE):
        return open_png(encoded)
    if heif.kind_of(encoded):
        return heif.open_heif(encoded, max_pixels)
    if is_webp(encoded):
        return open_webp(encoded, max_pixels)
    if encoded.startswith(b"GIF8"):
        return Image.open(io.BytesIO(gif_without_metadata(encoded)), formats=["GIF"])
    try:
        image = Image.open(io.BytesIO(encoded), formats=_BY_PILLOW)
    except Exception:
        bare = without_metadata(encoded)
        if bare is None:
            raise
        image = Image.open(io.BytesIO(bare), formats=_BY_PILLOW)
    if not isinstance(image.info.get("xmp", b""), bytes):  # in a TIFF it may be of any type
        del image.info["xmp"]
    return image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    transparent = image.info.get("transparency")  # of a PNG: the transparent value or colour
    if image.mode == mode and transparent is None:
        image.load()
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales a PGM to 16 bits
        values = np.asarray(image)
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif image.mode in ("I", "F"):
        raise InvalidRequest("images with 32-bit pixels are not accepted: their range is not known")
    elif image.mode in ("LAB", "HSV"):
        image = image.convert("RGB")  # Pillow has no other way to gray
    if image.has_transparency_data:
        return _over_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _without_alpha(image: Image.Image, mode: str) -> Image.Image:
    """As Pillow's `convert`, which frameworks call. 16 bits are then cut off at 255, not scaled."""
    image.info.pop("transparency", None)  # nothing depends on it, and Pillow may fail to convert it
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError:
        raise InvalidRequest(f"the image has pixels of the kind {image.mode}, which cannot be converted to {mode}") from None


def _over_white(image: Image.Image, mode: str) -> Image.Image:
    """A transparent image over white, in bands: all of it at once would need three times the memory, and hold up other threads."""
    flat = Image.new(mode, image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        band = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", band.size, _BACKGROUND), band)
        flat.paste(band.convert(mode), (0, top))
    return flat


def _scale_transparency(image: PngImagePlugin.PngImageFile) -> None:
    """Scales the transparent value or colour to 8 bits, as Pillow scales the pixels."""
    transparent, depth = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if depth in _GRAY_STEPS and transparent is not None:
        image.info["transparency"] = transparent * _GRAY_STEPS[depth]
    elif depth == "RGB;16B" and transparent is not None:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _pixels_of_tiles(image: TiffImagePlugin.TiffImageFile) -> int:
    """Pixels in a TIFF's tiles; 0 if it has strips, which end with the image. Raises TypeError if a tile has no valid size."""
    tags = image.tag_v2
    tile = [tags[tag] for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH) if tag in tags]
    if not tile:
        return 0
    if not all(isinstance(side, int) for side in tile):
        raise TypeError
    (width, height), columns, rows = tile, tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    pixels: int = -(-columns // width) * width * -(-rows // height) * height
    return pixels
