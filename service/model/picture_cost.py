"""What decoding a picture costs, before it is decoded: by its first bytes, and by its header once Pillow has read that.

`decoding_steps` looks at the first bytes alone and knows the formats whose cost follows from them: those whose decoders need a
bounded number of bytes and steps a pixel and do not hold the interpreter's lock. All else is dear: TIFF, AVIF and HEIC, whose
headers can lead anywhere and whose libraries have the last word; WebP beyond a small size, which Pillow decodes under the lock;
what Pillow decodes in Python; whatever is large; and a file that is not as its format says where this module looks for the next
part of its header, because a decoder may look further and find something else. `bytes_needed` is for those, when they are decoded
in a process of their own. It has the resized picture too, which may be larger: what `resizes_cheaply` does not hold for is dear.
"""

import re
import struct

from PIL import Image, TiffImagePlugin

from service.model.input_spec import InputSpec
from service.model.png import SIGNATURE
from service.model.resizing import bytes_to_resize
from service.model.webp import canvas, is_webp

CHEAP_BYTES = 64 * 2**20
"""Of memory that a cheap picture may need while it is decoded."""

_CHEAP_WEBP_PIXELS = 256 * 1024
_CHEAP_STEPS = 64 * 2**20

BYTES_A_PIXEL = {"PNG": 9, "JPEG": 13, "MPO": 13, "GIF": 7, "BMP": 9, "PPM": 9, "TIFF": 17, "WEBP": 21, "AVIF": 21, "HEIF": 21}
"""The most that decoding and converting a picture takes, with what the decoder holds beside it. Measured; see the tests."""

DEAR = -1

_MAX_SEGMENTS = 256
_MAX_GIF_BLOCKS = 256
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_JPEG_SEGMENTS = _JPEG_FRAMES | {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE}
"""Markers behind which a length stands, for every decoder."""
_JPEG_SCAN, _JPEG_SCAN_START = 0xDA, b"\xff\xda\0"
_BASELINE_BYTES = (9, 5)
"""A pixel of a JPEG of one scan: of gray or CMYK, which are converted, and of YCbCr, which libjpeg converts."""
_PPM_KINDS = b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"f", b"y"
_RAW_PPM = re.compile(rb"P([456])\s+(\d{1,9})\s+(\d{1,9})\s(255\s)?")


def decoding_steps(encoded: bytes) -> int:
    """The pixels of a picture that a thread of the server may decode, those of a JPEG once for each scan; DEAR if none may.

    0 for what is no picture of a known format, and for headers that are cut short, which are refused before anything is decoded. A
    header may lie: whoever opens the picture compares. Takes some microseconds.
    """
    if encoded.startswith(SIGNATURE):
        return _cheap("PNG", _png_pixels(encoded))
    if encoded.startswith(b"\xff\xd8"):
        return _jpeg_steps(encoded)
    if is_webp(encoded):
        width, height = canvas(encoded) or (0, 0)
        return width * height if width * height <= _CHEAP_WEBP_PIXELS else DEAR
    if encoded.startswith(b"GIF8"):
        return _cheap("GIF", _gif_pixels(encoded))
    if encoded.startswith(b"BM"):
        return _cheap("BMP", _bmp_pixels(encoded))
    if encoded.startswith(b"P"):
        return _cheap("PPM", _ppm_pixels(encoded))
    return DEAR if encoded[4:8] == b"ftyp" or encoded.startswith((b"II", b"MM")) else 0


def _cheap(file_format: str, pixels: int) -> int:
    return pixels if pixels * BYTES_A_PIXEL[file_format] <= CHEAP_BYTES else DEAR


def bytes_to_open(encoded: bytes, max_pixels: int) -> int:
    """The most bytes that `open_image` takes, if that is much: for a WebP, all that it needs."""
    size = canvas(encoded) if is_webp(encoded) else None
    return 0 if size is None or size[0] * size[1] > max_pixels else size[0] * size[1] * BYTES_A_PIXEL["WEBP"]


def resizes_cheaply(image: Image.Image, spec: InputSpec) -> bool:
    """Whether a thread of the server may bring an opened picture to the model's size."""
    return bytes_to_resize(image.size, spec) <= CHEAP_BYTES


def bytes_needed(image: Image.Image, spec: InputSpec) -> int:
    """The most bytes that decoding and resizing an opened picture takes, if its header tells the truth."""
    pixels = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        tile = [tags.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if all(isinstance(side, int) for side in tile):
            pixels = max(pixels, tile[0] * tile[1])
    return pixels * BYTES_A_PIXEL.get(image.format or "", 24) + bytes_to_resize(image.size, spec)


def _png_pixels(encoded: bytes) -> int:
    if len(encoded) < 24:
        return 0
    width, height = struct.unpack_from(">II", encoded, 16)
    return int(width * height) if encoded[12:16] == b"IHDR" else DEAR


def _jpeg_steps(encoded: bytes) -> int:
    at, pixels, components = 2, 0, 0
    for _ in range(_MAX_SEGMENTS):
        if at + 10 > len(encoded):
            return 0
        marker = encoded[at + 1]
        if encoded[at] != 0xFF:
            return DEAR
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == _JPEG_SCAN:
            scans = encoded.count(_JPEG_SCAN_START)
            each = BYTES_A_PIXEL["JPEG"] if scans > 1 else _BASELINE_BYTES[components == 3]
            return scans * pixels if pixels * each <= CHEAP_BYTES and scans * pixels <= _CHEAP_STEPS else DEAR
        if marker not in _JPEG_SEGMENTS:
            return DEAR
        if marker in _JPEG_FRAMES:
            height, width, components = struct.unpack_from(">HHB", encoded, at + 5)
            pixels = width * height
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return DEAR


def _gif_pixels(encoded: bytes) -> int:
    """Of the canvas, or of the first picture where that reaches beyond it."""
    if len(encoded) < 13:
        return 0
    at = 13 + (3 << (encoded[10] & 7) + 1 if encoded[10] & 0x80 else 0)
    blocks = 0
    while at + 10 <= len(encoded) and encoded[at] == 0x21:
        at += 2
        while at < len(encoded) and encoded[at]:
            at += 1 + encoded[at]
            blocks += 1
            if blocks > _MAX_GIF_BLOCKS:
                return DEAR
        at += 1
        blocks += 1  # the empty one
    if at + 10 > len(encoded):
        return 0
    if encoded[at] != 0x2C or blocks > _MAX_GIF_BLOCKS:
        return DEAR
    canvas_width, canvas_height = struct.unpack_from("<HH", encoded, 6)
    left, top, width, height = struct.unpack_from("<HHHH", encoded, at + 1)
    return int(max(canvas_width, left + width) * max(canvas_height, top + height))


def _bmp_pixels(encoded: bytes) -> int:
    """Without run lengths, which Pillow unfolds in Python."""
    if len(encoded) < 34:
        return 0
    size, width, height = struct.unpack_from("<Iii", encoded, 14)
    [compression] = struct.unpack_from("<I", encoded, 30)
    return abs(width) * abs(height) if size >= 40 and compression in (0, 3) else DEAR


def _ppm_pixels(encoded: bytes) -> int:
    """Without those of text and those that are scaled, which Pillow reads in Python."""
    header = _RAW_PPM.match(encoded)
    if header is None or (header[1] == b"4") == bool(header[4]):
        return DEAR if encoded[1:2] in _PPM_KINDS else 0
    return int(header[2]) * int(header[3])
