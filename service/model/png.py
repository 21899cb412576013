"""PNG files, opened without their metadata; plain ones are decoded without Pillow's own class, which takes twice as long.

Text, colour profiles, times and the like do not change the pixels that Pillow decodes. But Pillow refuses the whole file if one of
them is broken, and unfolds compressed ones. So they are left out, and only the orientation is kept, from wherever it may stand.
See the PNG specification, sections 5 and 11.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHUNK = struct.Struct(">I4s")
_IHDR = struct.Struct(">IIBBBBB")
_PLAIN_MODES = {0: "L", 2: "RGB"}

_METADATA = frozenset(
    b"tEXt zTXt iTXt eXIf tIME pHYs iCCP sRGB gAMA cHRM cICP mDCV cLLI sBIT bKGD hIST sPLT oFFs pCAL sCAL sTER dSIG gIFg gIFt gIFx "
    b"caBX acTL fcTL fdAT".split()
)
"""Without acTL, fcTL and fdAT an animation is its first picture."""

_RAW_PROFILE = "Raw profile type exif"
_XMP = b"XML:com.adobe.xmp"
_MAX_TEXT_BYTES = 256 * 1024
"""Of unfolded text in which an orientation is looked for: EXIF data have at most 64 KiB, and two digits a byte here."""


class PlainPng(Image.Image):
    """A PNG of 8-bit gray or RGB without palette, transparency or interlacing, which most clients send.

    Pillow's own class decodes it to the same pixels.
    """

    format = "PNG"

    def __init__(self, mode: str, size: tuple[int, int], compressed: bytes) -> None:
        super().__init__()
        self._mode, self._size = mode, size
        self._compressed: bytes | None = compressed

    def load(self) -> Any:
        """Decodes the pixels, the first time."""
        if self._compressed is not None:
            self.im = Image.frombytes(self.mode, self.size, self._compressed, "zip", self.mode).im
            self._compressed = None
        return super().load()


def open_png(encoded: bytes) -> Image.Image:
    """Reads a PNG's header. Its `info` has the metadata in which an orientation may stand, as Pillow has it.

    Raises what Pillow raises for broken files.
    """
    header, compressed = b"", []
    info: dict[str, Any] = {}
    pixels = [(0, len(SIGNATURE))]  # where the chunks are that pixels depend on
    plain, ended, at = True, False, len(SIGNATURE)
    while not ended and at + _CHUNK.size <= len(encoded):
        length, kind = _CHUNK.unpack_from(encoded, at)
        data = encoded[at + _CHUNK.size : at + _CHUNK.size + length]
        start, at = at, at + _CHUNK.size + length + 4
        if kind == b"IDAT":
            compressed.append(data)  # zlib data has its own checksum
            pixels.append((start, at))
            continue
        intact = encoded[at - 4 : at] == zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big")
        if kind in _METADATA:
            if intact:
                _note(kind, data, info)
            continue
        pixels.append((start, at))
        ended = kind == b"IEND"
        plain = plain and intact and (ended or kind == b"IHDR")
        if kind == b"IHDR":
            header = data
    image: Image.Image | None = _plain(header, compressed) if plain and ended else None
    if image is None:
        bare = b"".join(encoded[start:stop] for start, stop in pixels)
        image = Image.open(io.BytesIO(bare), formats=["PNG"])
    image.info.update(info)
    return image


def _plain(header: bytes, compressed: list[bytes]) -> PlainPng | None:
    if len(header) != _IHDR.size:
        return None
    width, height, depth, colours, *methods = _IHDR.unpack(header)
    mode = _PLAIN_MODES.get(colours)
    if mode is None or depth != 8 or any(methods) or not (width and height):
        return None
    return PlainPng(mode, (width, height), compressed[0] if len(compressed) == 1 else b"".join(compressed))


def _note(kind: bytes, data: bytes, info: dict[str, Any]) -> None:
    """Adds a chunk to `info` if an orientation may stand in it and it can be unfolded."""
    if kind == b"eXIf":
        info["exif"] = b"Exif\0\0" + data
        return
    key, _, text = data.partition(b"\0")
    if key == _RAW_PROFILE.encode() and _RAW_PROFILE not in info:
        info[_RAW_PROFILE] = (_unfolded(text[1:]) if kind == b"zTXt" else text).decode("latin-1")
    elif key == _XMP and kind == b"iTXt" and "xmp" not in info:
        compressed, [*_, text] = text[:1] == b"\1", text[2:].split(b"\0", 2)
        info["xmp"] = _unfolded(text) if compressed else text


def _unfolded(compressed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(compressed, _MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def write_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of uint8[h,w,3] that is not compressed, for a reader in this process: a third of the time that Pillow takes."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter, none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = _IHDR.pack(width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 0)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        _CHUNK.pack(len(data), kind) + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))) for kind, data in parts
    )
