"""AVIF and HEIC files: opened if this installation decodes them, and if their frames are no larger than they say.

Both are pictures in the boxes of ISO/IEC 23008-12 (HEIF), AVIF coded as AV1 and HEIC as HEVC. Pillow decodes AVIF, the extra `heic`
HEIC. libheif checks the size of a frame itself. Of an AVIF the sequence headers in its AV1 data say the size (AV1 specification,
5.5): the decoder believes them, Pillow only the box beside them.
"""

import importlib.util
import io
import struct
from collections.abc import Callable, Iterator
from functools import cache

from PIL import AvifImagePlugin, Image, features

from service.errors import InvalidRequest
from service.model.image_metadata import without_metadata

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded in parallel, each by one thread

FRAMES = 4
"""An AVIF's frames may have so many times the pixels that are accepted: colour, transparency, brightness, a small picture."""

_MIN_FRAME_PIXELS = 1024 * 1024

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_COMMON_BRANDS = {b"mif1", b"msf1"}
_MAX_BRANDS = 64

_SEQUENCE_HEADER = 1


def kind_of(encoded: bytes) -> str:
    """`AVIF` or `HEIC`, by the brands at a file's start; empty for any other file."""
    if encoded[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(encoded[:4], "big"), 16 + 4 * _MAX_BRANDS)
    for brand in (encoded[8:12], *(encoded[at : at + 4] for at in range(16, size, 4))):
        if brand in _HEIC_BRANDS or brand in _AVIF_BRANDS:
            return "HEIC" if brand in _HEIC_BRANDS else "AVIF"
    if encoded[8:12] in _COMMON_BRANDS:
        return "HEIC" if b"hvc1" in encoded[: 64 * 1024] else "AVIF"
    return ""


def formats() -> list[str]:
    """Those of the two that this installation decodes."""
    heic = importlib.util.find_spec("pillow_heif") is not None
    return [name for name, found in (("AVIF", features.check("avif")), ("HEIC", heic)) if found]


def open_heif(encoded: bytes, max_pixels: int) -> Image.Image:
    """Reads the header of an AVIF or HEIC: of its primary picture, which of an animation is the first.

    Raises:
        InvalidRequest: it is not decoded here, or an AVIF's frames have far more than `max_pixels`. Other errors for broken files.
    """
    if kind_of(encoded) == "HEIC":
        opener = _heic_opener()
        if opener is None:
            raise InvalidRequest(
                "a HEIC image, which is not decoded here: that needs an extra, `pip install 'convoy-serving[heic]'`; or send JPEG"
            )
        return _without_xmp(opener(io.BytesIO(encoded)))
    if not features.check("avif"):
        raise InvalidRequest("an AVIF image, which is not decoded here: the Pillow that is installed was built without AVIF")
    pixels = _frame_pixels(encoded)
    if pixels > max(FRAMES * max_pixels, _MIN_FRAME_PIXELS):
        raise InvalidRequest(f"the image's frames have {pixels} pixels; at most {max_pixels} are accepted")
    encoded = encoded[:8] + b"avif" + encoded[12:]  # another brand would have the decoder look for an animation
    try:
        image = Image.open(io.BytesIO(encoded), formats=["AVIF"])
    except Exception:
        bare = without_metadata(encoded)
        if bare is None:
            raise
        image = Image.open(io.BytesIO(bare), formats=["AVIF"])
    return _without_xmp(image)


def _without_xmp(image: Image.Image) -> Image.Image:
    """How an image is turned is said by its boxes alone; its EXIF data are made to agree with them when it is opened."""
    image.info.pop("xmp", None)
    return image


@cache
def _heic_opener() -> Callable[[io.BytesIO], Image.Image] | None:
    try:
        from pillow_heif import HeifImageFile, options
    except ImportError:
        return None
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    options.DECODE_THREADS = 1
    opener: Callable[[io.BytesIO], Image.Image] = HeifImageFile
    return opener


def _frame_pixels(encoded: bytes) -> int:
    """The pixels that decoding an AVIF unfolds: of all frames, and of the pictures that are put together of several."""
    meta = next((box for kind, *box in _boxes(encoded, 0, len(encoded)) if kind == b"meta"), None)
    if meta is None:
        return 0
    start, stop = meta
    inside = {kind: (first, last) for kind, first, last in _boxes(encoded, start + 4, stop)}
    kinds = _item_kinds(encoded, *inside[b"iinf"])
    pixels = 0
    for item, data in _item_data(encoded, *inside[b"iloc"], inside.get(b"idat", (0, 0))):
        if kinds.get(item) == b"av01":
            pixels += sum(map(_sequence_pixels, _sequence_headers(data)))
        elif kinds.get(item) == b"grid":
            width, height = struct.unpack_from(">II" if data[1] & 1 else ">HH", data, 4)
            pixels += width * height
    return pixels


def _boxes(encoded: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two places: the kind of each, and where its content starts and stops."""
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", encoded, start)
        header = 8
        if size == 1:
            [size] = struct.unpack_from(">Q", encoded, start + 8)
            header = 16
        end = start + size if size else stop
        if size and size < header:
            raise ValueError("a box is smaller than its header")
        yield kind, start + header, min(end, stop)
        start = end


def _item_kinds(encoded: bytes, start: int, stop: int) -> dict[int, bytes]:
    """The kind of each item, by its number (8.11.6 of ISO/IEC 14496-12)."""
    kinds = {}
    for _, at, _ in _boxes(encoded, start + (8 if encoded[start] else 6), stop):
        number, kind = struct.unpack_from(">H2x4s" if encoded[at] < 3 else ">I2x4s", encoded, at + 4)
        kinds[number] = kind
    return kinds


def _item_data(encoded: bytes, at: int, stop: int, idat: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    """The number and the data of each item (8.11.3 of ISO/IEC 14496-12)."""
    version, sizes = encoded[at], int.from_bytes(encoded[at + 4 : at + 6], "big")
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    at += 6

    def read(size: int) -> int:
        nonlocal at
        if at + size > stop:
            raise ValueError("the list of items is cut short")
        at += size
        return int.from_bytes(encoded[at - size : at], "big")

    wide = 4 if version == 2 else 2
    for _ in range(read(wide)):
        number = read(wide)
        within = read(2) & 15 if version else 0
        read(2)
        base, extents = read(base_size), []
        for _ in range(read(2)):
            read(index_size if version else 0)
            extents.append((base + read(offset_size), read(length_size)))
        first, last = idat if within == 1 else (0, len(encoded))
        yield number, b"".join(encoded[first + o : min(first + o + size, last) if size else last] for o, size in extents)


def _sequence_headers(data: bytes) -> Iterator[bytes]:
    """The sequence headers in AV1 data (5.3 of the AV1 specification)."""
    at = 0
    while at < len(data):
        header = data[at]
        at += 2 if header & 4 else 1
        size = len(data) - at
        if header & 2:
            size = shift = 0
            while True:
                size |= (data[at] & 127) << shift
                shift += 7
                at += 1
                if not data[at - 1] & 128:
                    break
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            yield data[at : at + size]
        at += size


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, bits: int) -> int:
        self._left -= bits
        if self._left < 0:
            raise ValueError("a sequence header is cut short")
        return self._value >> self._left & ((1 << bits) - 1)


def _sequence_pixels(header: bytes) -> int:
    """The pixels of a frame, at least a quarter of those of the largest that the header lets a frame have.

    A frame may give itself any size of as many bits. Encoders write as many bits as the size needs.
    """
    bits = _Bits(header[:512])
    bits.read(4)  # profile, still picture
    reduced = bits.read(1)
    if reduced:
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    pixels = (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)
    return pixels if reduced else max(pixels, 1 << max(width_bits + height_bits - 2, 0))


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing information
        bits.read(64)
        if bits.read(1):  # equal intervals: a number after its length in zeros
            zeros = 0
            while zeros < 32 and not bits.read(1):
                zeros += 1
            bits.read(zeros if zeros < 32 else 0)
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    display_delays = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # level
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if display_delays and bits.read(1):
            bits.read(4)
