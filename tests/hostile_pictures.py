"""Pictures made to cost much more than they seem to: small files that unfold, and files whose reading never ends.

Each is whole by the rules of its format or close to it, and passes the server's limits of bytes and pixels.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIDE = 5000
"""SIDE x SIDE pixels are what a model takes by default, `max_image_pixels`."""


def file_of(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def riff(kind: bytes, data: bytes) -> bytes:
    """A chunk of a WebP."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def webp_animation(width: int, height: int, frames: list[tuple[int, int, bytes]], alpha: bool = True) -> bytes:
    """A WebP animation of frames: each with its place and a still WebP."""
    chunks = riff(b"VP8X", bytes([2 | 16 * alpha, 0, 0, 0]) + _three(width - 1) + _three(height - 1)) + riff(b"ANIM", bytes(6))
    for x, y, still in frames:
        with Image.open(io.BytesIO(still)) as opened:
            size = opened.size
        pictures = still[12:] if still[12:16] != b"VP8X" else still[30:]
        place = _three(x // 2) + _three(y // 2) + _three(size[0] - 1) + _three(size[1] - 1)
        chunks += riff(b"ANMF", place + _three(100) + b"\0" + pictures)
    return riff(b"RIFF", b"WEBP" + chunks)


def webp_canvas(side: int = SIDE) -> bytes:
    """A WebP animation of one pixel on a large canvas, in 90 bytes."""
    return webp_animation(side, side, [(0, 0, file_of(Image.new("RGBA", (1, 1)), "WEBP", lossless=True))])


def webp_still(side: int = SIDE) -> bytes:
    """A lossless WebP of one colour."""
    return file_of(Image.new("RGBA", (side, side), (1, 2, 3, 4)), "WEBP", lossless=True, method=0)


def webp_frames(side: int = 2000, frames: int = 2000) -> bytes:
    """A WebP animation of very many frames, each of the whole canvas."""
    frame = file_of(Image.new("RGBA", (side, side), (1, 2, 3, 4)), "WEBP", lossless=True, method=0)
    one = webp_animation(side, side, [(0, 0, frame)])
    header, animated = one[12:44], one[44:]
    return riff(b"RIFF", b"WEBP" + header + animated * frames)


def jpeg_scans(side: int = SIDE, scans: int = 100) -> bytes:
    """A progressive JPEG of as many scans as are accepted, each of which touches every pixel."""
    whole = file_of(Image.new("RGB", (side, side)), "JPEG", progressive=True, subsampling=0)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scan * (scans - whole.count(b"\xff\xda\0")) + whole[-2:]


def jpeg_baseline(side: int = SIDE) -> bytes:
    """A large JPEG of one colour."""
    return file_of(Image.new("RGB", (side, side)), "JPEG")


def jpeg_comments(size: int = 3_000_000) -> bytes:
    """A JPEG with very many empty comments."""
    whole = file_of(Image.new("L", (16, 16)), "JPEG")
    return whole[:2] + b"\xff\xfe\0\2" * (size // 4) + whole[2:]


def _entries(data_bytes: int, entries: int) -> bytes:
    """EXIF data whose every entry refers to all of it."""
    tags = [tag for tag in range(1, 65_535) if tag != 0x0112][:entries]
    directory = b"".join(struct.pack("<HHII", tag, 7, data_bytes - 8, 8) for tag in tags)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + directory + bytes(4)).ljust(data_bytes, b"\0")


def jpeg_exif() -> bytes:
    """A JPEG whose EXIF data unfold to hundreds of megabytes."""
    whole = file_of(Image.new("L", (16, 16)), "JPEG")
    data = b"Exif\0\0" + _entries(65_000, 5_000)
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + whole[2:]


def jpeg_mpf() -> bytes:
    """A JPEG whose index of further pictures unfolds to hundreds of megabytes."""
    whole = file_of(Image.new("L", (16, 16)), "JPEG")
    data = b"MPF\0" + _entries(65_000, 5_000)
    return whole[:2] + b"\xff\xe2" + struct.pack(">H", len(data) + 2) + data + whole[2:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_exif(size: int = 900_000) -> bytes:
    """A PNG whose EXIF data unfold to gigabytes."""
    whole = file_of(Image.new("L", (16, 16)), "PNG")
    return whole[:33] + png_chunk(b"eXIf", _entries(size, 5_000)) + whole[33:]


def webp_exif(size: int = 900_000) -> bytes:
    """A WebP whose EXIF data unfold to gigabytes."""
    still = file_of(Image.new("RGB", (16, 16)), "WEBP", lossless=True)
    extended = riff(b"VP8X", bytes([8, 0, 0, 0]) + _three(15) * 2)
    return riff(b"RIFF", b"WEBP" + extended + still[12:] + riff(b"EXIF", _entries(size, 5_000)))


def _png(side: int, depth: int, colours: int, samples: int, interlaced: bool, extra: bytes = b"") -> bytes:
    row_bytes = side * samples * depth // 8 + 1
    packer = zlib.compressobj(1)
    if interlaced:
        rows = 0
        for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
            columns, lines = -(-(side - x) // dx), -(-(side - y) // dy)
            rows += lines * (columns * samples * depth // 8 + 1)
    else:
        rows = row_bytes * side
    data = b"".join(packer.compress(bytes(2**20)) for _ in range(rows // 2**20)) + packer.compress(bytes(rows % 2**20))
    data += packer.flush()
    header = struct.pack(">IIBBBBB", side, side, depth, colours, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_deep(side: int = SIDE) -> bytes:
    """A PNG of 16 bits a sample, with transparency, interlaced."""
    return _png(side, 16, 6, 4, interlaced=True)


def png_transparent(side: int = SIDE) -> bytes:
    """A PNG of 8-bit gray of which one value is transparent."""
    return _png(side, 8, 0, 1, interlaced=False, extra=png_chunk(b"tRNS", b"\0\1"))


def png_chunks(size: int = 3_000_000) -> bytes:
    """A PNG with very many empty chunks."""
    whole = file_of(Image.new("L", (16, 16)), "PNG")
    return whole[:33] + png_chunk(b"IDAT", b"") * (size // 12) + whole[33:]


def png_text(size: int = 100 * 2**20) -> bytes:
    """A PNG with text that unfolds to a hundred megabytes."""
    packer = zlib.compressobj(1)
    text = b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()
    whole = file_of(Image.new("L", (16, 16)), "PNG")
    return whole[:33] + png_chunk(b"zTXt", b"Raw profile type exif\0\0" + text) + whole[33:]


def gif_comment(size: int = 3_000_000) -> bytes:
    """A GIF with one long comment, which Pillow puts together block by block."""
    whole = file_of(Image.new("P", (16, 16)), "GIF")
    at = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)
    return whole[:at] + b"\x21\xfe" + (b"\xff" + b"a" * 255) * (size // 256) + b"\0" + whole[at:]


def gif_large(side: int = SIDE) -> bytes:
    """A large GIF of one colour, with transparency."""
    return file_of(Image.new("P", (side, side)), "GIF", transparency=1)


def bmp_runs(side: int = SIDE) -> bytes:
    """A BMP of runs of one pixel, which Pillow unfolds in Python."""
    palette = bytes(4 * 256)
    pixels = (b"\1\0" * side + b"\0\0") * 60 + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header + palette + pixels


def ppm_plain(side: int = 1000) -> bytes:
    """A PPM of numbers in text, which Pillow reads in Python."""
    return b"P3 %d %d 255\n" % (side, side) + b"1 " * (3 * side * side)


def ppm_scaled(side: int = 1500) -> bytes:
    """A PPM whose largest value is not 255: Pillow scales it in Python."""
    return b"P6 %d %d 254\n" % (side, side) + bytes(3 * side * side)


def tiff_lzw(side: int = SIDE) -> bytes:
    """A large TIFF with transparency, by LZW."""
    return file_of(Image.new("RGBA", (side, side)), "TIFF", compression="tiff_lzw")


def tiff_floats(side: int = SIDE) -> bytes:
    """A large TIFF of 32-bit numbers, by Deflate."""
    return file_of(Image.new("F", (side, side)), "TIFF", compression="tiff_adobe_deflate")


def tiff_entries(size: int = 900_000) -> bytes:
    """A TIFF whose directory unfolds to gigabytes."""
    pixels = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}
    tags = sorted([*pixels, *(tag for tag in range(1000, 6000))])
    directory = b"".join(
        struct.pack("<HHII", tag, 4, 1, pixels[tag]) if tag in pixels else struct.pack("<HHII", tag, 7, size - 8, 8) for tag in tags
    )
    at = 264
    return (b"II*\0" + struct.pack("<I", at) + bytes(256) + struct.pack("<H", len(tags)) + directory + bytes(4)).ljust(size, b"\0")


def tiff_noise() -> bytes:
    """A TIFF of which libtiff says something by itself, on stderr."""
    whole = bytearray(file_of(Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)), "TIFF", compression="tiff_lzw"))
    whole[20:40] = b"\xff" * 20
    return bytes(whole)


def avif_large(side: int = SIDE) -> bytes:
    """A large AVIF of one colour, with transparency."""
    return file_of(Image.new("RGBA", (side, side), (1, 2, 3, 4)), "AVIF", speed=10)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "WebP, a canvas": webp_canvas,
    "WebP, large": webp_still,
    "WebP, many frames": webp_frames,
    "WebP, EXIF": webp_exif,
    "JPEG, large": jpeg_baseline,
    "JPEG, many scans": jpeg_scans,
    "JPEG, comments": jpeg_comments,
    "JPEG, EXIF": jpeg_exif,
    "JPEG, further pictures": jpeg_mpf,
    "PNG, deep": png_deep,
    "PNG, transparent": png_transparent,
    "PNG, chunks": png_chunks,
    "PNG, text": png_text,
    "PNG, EXIF": png_exif,
    "GIF, a comment": gif_comment,
    "GIF, large": gif_large,
    "BMP, runs": bmp_runs,
    "PPM, text": ppm_plain,
    "PPM, scaled": ppm_scaled,
    "TIFF, large": tiff_lzw,
    "TIFF, numbers": tiff_floats,
    "TIFF, directory": tiff_entries,
    "TIFF, noise": tiff_noise,
    "AVIF, large": avif_large,
}
