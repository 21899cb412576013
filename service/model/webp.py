"""WebP files: the size of the canvas is read before Pillow makes one, and of an animation the first frame alone is decoded.

Pillow's decoder of animations makes two canvases beside the picture and decodes into them while it holds the interpreter's lock.
An animation of 90 bytes can have a canvas of any size. So its first frame is taken out of the file, decoded as a still picture, and
put in its place. See RFC 9649, section 2.7.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any

from PIL import Image

from service.errors import InvalidRequest

_VP8_START = b"\x9d\x01\x2a"
_VP8L_START = 0x2F
_EXIF_FLAG, _XMP_FLAG, _ALPHA_FLAG, _ANIMATION_FLAG = 8, 4, 16, 2
_MAX_CHUNKS = 100_000
"""Of an animation, in which its EXIF data and XMP are looked for behind the frames."""


class FirstFrame(Image.Image):
    """The first frame of an animation on its canvas, which is transparent, or black where nothing is. Decoded when it is loaded."""

    format = "WEBP"

    def __init__(self, mode: str, size: tuple[int, int], still: bytes, place: tuple[int, int]) -> None:
        super().__init__()
        self._mode, self._size = mode, size
        self._still: bytes | None = still
        self._place = place

    def load(self) -> Any:
        """Decodes the frame, the first time."""
        if self._still is not None:
            with Image.open(io.BytesIO(self._still), formats=["WEBP"]) as frame:
                canvas = Image.new(self.mode, self.size)
                canvas.paste(frame if frame.mode == self.mode else frame.convert(self.mode), self._place)
            self.im = canvas.im
            self._still = None
        return super().load()


def is_webp(encoded: bytes) -> bool:
    """Whether a file says that it is a WebP."""
    return encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP"


def canvas(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP, in pixels; None if its header cannot be read."""
    kind = encoded[12:16]
    if len(encoded) < 30:
        return None
    if kind == b"VP8X":
        return _three(encoded, 24) + 1, _three(encoded, 27) + 1
    if kind == b"VP8L" and encoded[20] == _VP8L_START:
        [bits] = struct.unpack_from("<I", encoded, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and encoded[23:26] == _VP8_START:
        width, height = struct.unpack_from("<HH", encoded, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def is_animation(encoded: bytes) -> bool:
    """Whether a WebP is an animation, by its header."""
    return encoded[12:16] == b"VP8X" and len(encoded) >= 30 and bool(encoded[20] & _ANIMATION_FLAG)


def open_webp(encoded: bytes, max_pixels: int) -> Image.Image:
    """Reads a WebP's header.

    Raises:
        InvalidRequest: the canvas has more than `max_pixels`. Other errors, Pillow's among them, for broken files.
    """
    size = canvas(encoded)
    if size is None:
        raise ValueError("the header is broken")
    if size[0] * size[1] > max_pixels:
        raise InvalidRequest(f"the image has {size[0]} x {size[1]} pixels; at most {max_pixels} are accepted")
    if not is_animation(encoded):
        return Image.open(io.BytesIO(encoded), formats=["WEBP"])
    return _first_frame(encoded, size)


def _first_frame(encoded: bytes, size: tuple[int, int]) -> FirstFrame:
    flags, image = encoded[20], None
    metadata: dict[bytes, bytes] = {}
    for kind, start, stop in _chunks(encoded):
        if kind == b"ANMF" and image is None:
            image = _frame(encoded[start:stop], "RGBA" if flags & _ALPHA_FLAG else "RGB", size)
            if not flags & (_EXIF_FLAG | _XMP_FLAG):
                break
        elif kind in (b"EXIF", b"XMP "):
            metadata.setdefault(kind, encoded[start:stop])
    if image is None:
        raise ValueError("an animation without a frame")
    for kind, flag, key in ((b"EXIF", _EXIF_FLAG, "exif"), (b"XMP ", _XMP_FLAG, "xmp")):
        if flags & flag and kind in metadata:
            image.info[key] = metadata[kind]
    return image


def _frame(data: bytes, mode: str, size: tuple[int, int]) -> FirstFrame:
    """The frame in an ANMF chunk (2.7.1.1)."""
    left, top, width, height = (2 * _three(data, 0), 2 * _three(data, 3), _three(data, 6) + 1, _three(data, 9) + 1)
    if left + width > size[0] or top + height > size[1]:
        raise ValueError("a frame reaches beyond the canvas")
    pictures = data[16:]
    still = _riff(b"WEBP" + pictures)
    if pictures.startswith(b"ALPH"):  # which only the extended form may have
        extended = bytes([_ALPHA_FLAG, 0, 0, 0]) + data[6:12]
        still = _riff(b"WEBPVP8X" + struct.pack("<I", len(extended)) + extended + pictures)
    if canvas(still) != (width, height):
        raise ValueError("a frame's picture has another size than the frame")
    return FirstFrame(mode, size, still, (left, top))


def _riff(content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The chunks behind the header: the kind of each, and where its data start and stop. Raises ValueError if one is cut short."""
    [length] = struct.unpack_from("<I", encoded, 4)
    end, at = 8 + length, 30
    for _ in range(_MAX_CHUNKS):
        if at + 8 > end:
            return
        kind, size = struct.unpack_from("<4sI", encoded, at)
        if at + 8 + size > min(end, len(encoded)):
            raise ValueError("the file is cut short")
        yield kind, at + 8, at + 8 + size
        at += 8 + size + size % 2


def _three(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")
