"""Metadata of image files: the orientation, and files without what Pillow cannot read.

Pillow refuses a whole file when some of its metadata is broken, though the pixels do not depend on it: a print resolution that is
a text, a colour profile cut short. Such a file is opened a second time, without its metadata but the orientation.
"""

import re
import struct
from collections.abc import Iterator

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TIFF_PIXEL_TAGS = frozenset(
    (*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, *range(317, 326), 332, 336, *range(338, 342), 347,
     *range(512, 522), *range(529, 533))
)  # fmt: skip
"""Tags of a TIFF that its pixels, or the orientation, depend on."""

_TIFF = ("I", "H", "HHI4s")
_BIG_TIFF = ("Q", "Q", "HHQ8s")
"""An offset, the number of a directory's entries, an entry: tag, type, number of values, value or offset."""
_SHORT = 3

_GIF_EXTENSION, _GIF_CONTROL = 0x21, 0xF9
_JPEG_JFIF, _JPEG_EXIF, _JPEG_ADOBE, _JPEG_COMMENT, _JPEG_SCAN = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA

_AVIF_EXIF = re.compile(rb"(infe[\2\3](?s:.{7}|.{9}))Exif")
"""The entry of the EXIF data in an AVIF's list of items: version, flags, a number of 2 or 4 bytes, protection, kind."""


def orient(image: Image.Image) -> None:
    """Turns a decoded image upright, in place. An orientation that cannot be read means none, as do values other than 2 to 8."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - Pillow's parsers raise any error on broken EXIF data
        return
    if turn is not None:
        image.im = image.im.transpose(turn)
        image._size = image.im.size  # as ImageOps.exif_transpose does, which then writes all EXIF data anew and may fail at that


def without_metadata(encoded: bytes) -> bytes | None:
    """The file without what Pillow may fail to read and pixels do not depend on; None if there is nothing to leave out.

    For JPEG, TIFF and AVIF.
    """
    try:
        if encoded.startswith(b"\xff\xd8"):
            bare = b"".join(_jpeg_parts(encoded))
        elif encoded.startswith((b"II", b"MM")):
            bare = _bare_tiff(encoded)
        elif encoded[4:8] == b"ftyp":
            bare = _AVIF_EXIF.sub(rb"\1skip", encoded)
        else:
            return None
    except (IndexError, struct.error):  # the file is cut short
        return None
    return bare if bare != encoded else None


def gif_without_metadata(encoded: bytes) -> bytes:
    """The GIF without its comments and the like. Pillow puts a comment together block by block, in the square of its length.

    Raises IndexError if the file is cut short before its first picture.
    """
    return b"".join(_gif_parts(encoded))


def _jpeg_parts(encoded: bytes) -> Iterator[bytes]:
    """All of a JPEG but the application segments and comments before its first scan.

    Kept are those of which decoders learn the colour space, if they are whole, and EXIF and XMP, which have an orientation.
    """
    yield encoded[:2]
    at = 2
    while encoded[at] == 0xFF and encoded[at + 1] != _JPEG_SCAN:
        marker = encoded[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        start, at = at, at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        data = encoded[start + 4 : at]
        if (
            not (_JPEG_JFIF <= marker <= 0xEF or marker == _JPEG_COMMENT)
            or (marker == _JPEG_JFIF and data.startswith(b"JFIF\0") and len(data) >= 14)
            or (marker == _JPEG_ADOBE and data.startswith(b"Adobe") and len(data) >= 12)
            or (marker == _JPEG_EXIF and data.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")))
        ):
            yield encoded[start:at]
    yield encoded[at:]


def _bare_tiff(encoded: bytes) -> bytes:
    """The TIFF with a shorter first directory; everything else stays where it is. Later images are out of reach."""
    order = "<" if encoded.startswith(b"II") else ">"
    offset, number, entry = (struct.Struct(order + kind) for kind in (_BIG_TIFF if 43 in encoded[2:4] else _TIFF))
    [at] = offset.unpack_from(encoded, 8 if 43 in encoded[2:4] else 4)
    [entries] = number.unpack_from(encoded, at)
    first = at + number.size
    kept = [
        encoded[start : start + entry.size]
        for start in range(first, first + entries * entry.size, entry.size)
        if _is_for_pixels(*entry.unpack_from(encoded, start)[:3])
    ]
    directory = number.pack(len(kept)) + b"".join(kept) + bytes(offset.size)
    return encoded[:at] + directory + encoded[at + len(directory) :]


def _is_for_pixels(tag: int, kind: int, values: int) -> bool:
    return tag in _TIFF_PIXEL_TAGS and (tag != ExifTags.Base.Orientation or (kind, values) == (_SHORT, 1))


def _gif_parts(encoded: bytes) -> Iterator[bytes]:
    """A GIF up to its first image with no extensions but the whole one that has its transparent colour; then all of it."""
    at = 13 + (3 << (encoded[10] & 7) + 1 if encoded[10] & 0x80 else 0)
    yield encoded[:at]
    while encoded[at] == _GIF_EXTENSION:
        start, at = at, at + 2
        while encoded[at]:  # the length of a block, 0 behind the last one
            at += 1 + encoded[at]
        at += 1
        if encoded[start + 1] == _GIF_CONTROL and encoded[start + 2] >= 4:
            yield encoded[start:at]
    yield encoded[at:]
