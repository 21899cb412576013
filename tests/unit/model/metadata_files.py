"""Pictures with metadata of every kind, whole and broken, as bytes of files."""

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from PIL import Image

ORIENTATION = 0x0112
_JPEG_COMMENT = 0xFE


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return (
        struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data) if checksum is None else checksum)
    )


def png_with(png: bytes, *chunks: bytes, late: bool = False) -> bytes:
    """The chunks stand behind the header, or before the end."""
    at = png.index(b"IEND") - 4 if late else 33
    return png[:at] + b"".join(chunks) + png[at:]


def raw_profile(exif: bytes) -> bytes:
    """As ImageMagick writes EXIF data into a PNG."""
    text = f"\nexif\n{len(exif) + 6:8}\n{(b'Exif' + bytes(2) + exif).hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def webp_with(webp: bytes, size: tuple[int, int], kind: bytes, data: bytes) -> bytes:
    """Of a simple WebP, one with a chunk of metadata."""
    flag = {b"EXIF": 8, b"XMP ": 4, b"ICCP": 32}[kind]
    extended = struct.pack("<4sIB3x", b"VP8X", 10, flag) + b"".join(struct.pack("<I", side - 1)[:3] for side in size)
    extra = struct.pack("<4sI", kind, len(data)) + data + bytes(len(data) % 2)
    content = b"WEBP" + extended + (extra + webp[12:] if kind == b"ICCP" else webp[12:] + extra)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def tiff_with(tiff: bytes, tag: int, kind: int, values: int, value: bytes) -> bytes:
    """A TIFF or BigTIFF, little-endian, with one more entry, or another one, in its directory."""
    big = tiff[2] == 43
    offset, number, entry = (struct.Struct(kinds) for kinds in (("<Q", "<Q", "<HHQ8s") if big else ("<I", "<H", "<HHI4s")))
    header = 16 if big else 8
    [at] = offset.unpack_from(tiff, header - offset.size)
    [count] = number.unpack_from(tiff, at)
    at += number.size
    entries = {found[0]: found for found in entry.iter_unpack(tiff[at : at + count * entry.size])}
    entries[tag] = (tag, kind, values, value)
    directory = number.pack(len(entries)) + b"".join(entry.pack(*entries[tag]) for tag in sorted(entries)) + bytes(offset.size)
    return tiff[: header - offset.size] + offset.pack(len(tiff)) + tiff[header:] + directory


def exif(entries: Iterable[tuple[int, int, int, bytes]], after: bytes = b"", following: int = 0) -> bytes:
    """EXIF data of one directory of entries: tag, type, number of values, and value or offset; `after` stands at 26 behind one."""
    entries = list(entries)
    content = b"".join(struct.pack("<HHI", tag, kind, values) + value for tag, kind, values, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + content + struct.pack("<I", following) + after


def turned(value: int) -> bytes:
    return exif([(ORIENTATION, 3, 1, struct.pack("<HH", value, 0))])


AT_8, FAR = struct.pack("<I", 8), b"\xff\xff\xff\x7f"
UPRIGHT_EXIF = {
    "no TIFF": b"this is no TIFF at all",
    "empty": b"",
    "one byte": b"I",
    "cut in the header": b"II*\0\x08",
    "cut in an entry": turned(6)[:16],
    "a directory beyond the end": b"II*\0" + FAR,
    "another byte order's BigTIFF": b"II+\0" + AT_8,
    "orientation 0": turned(0),
    "orientation 9": turned(9),
    "orientation 65535": turned(65535),
    "a text": exif([(ORIENTATION, 2, 2, b"6\0\0\0")]),
    "a fraction by zero": exif([(ORIENTATION, 5, 1, struct.pack("<I", 26))], struct.pack("<II", 6, 0)),
    "a fraction cut off": exif([(ORIENTATION, 5, 1, struct.pack("<I", 26))]),
    "not a number": exif([(ORIENTATION, 11, 1, struct.pack("<f", float("nan")))]),
    "bytes": exif([(ORIENTATION, 7, 4, b"\6\0\0\0")]),
    "no value": exif([(ORIENTATION, 3, 0, b"\6\0\0\0")]),
    "a type that is not defined": exif([(ORIENTATION, 99, 1, b"\6\0\0\0")]),
    "four billion values": exif([(ORIENTATION, 3, 0xFFFFFFFF, AT_8)]),
    "two billion characters": exif([(ORIENTATION, 2, 0x7FFFFFFF, AT_8)]),
    "a directory in itself": exif([(0x8769, 4, 1, AT_8)], following=8),
    "a position in itself": exif([(0x8825, 4, 1, AT_8)], following=8),
    "a directory that is a text": exif([(0x8769, 2, 4, b"abc\0")]),
    "a resolution by zero": exif([(282, 5, 1, struct.pack("<I", 26)), (296, 3, 1, b"\3\0\0\0")], struct.pack("<II", 72, 0)),
    "a resolution that is a text": exif([(282, 2, 4, b"abc\0"), (296, 3, 1, b"\3\0\0\0")]),
}
"""EXIF data without a readable orientation from 2 to 8."""

_BOMB = zlib.compress(bytes(80 << 20))
BROKEN_CHUNKS = {
    "profile unfolds": chunk(b"iCCP", b"x\0\0" + _BOMB),
    "profile's method": chunk(b"iCCP", b"x\0\7abcd"),
    "profile empty": chunk(b"iCCP", b""),
    "profile without content": chunk(b"iCCP", b"abc"),
    "profile not compressed": chunk(b"iCCP", b"x\0\0abcd"),
    "text unfolds": chunk(b"zTXt", b"a\0\0" + _BOMB),
    "EXIF unfolds": chunk(b"zTXt", b"Raw profile type exif\0\0" + _BOMB),
    "XMP unfolds": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + _BOMB),
    "international text unfolds": chunk(b"iTXt", b"a\0\1\0\0\0" + _BOMB),
    "text not compressed": chunk(b"zTXt", b"a\0\0zzz"),
    "EXIF not compressed": chunk(b"zTXt", b"Raw profile type exif\0\0zzz"),
    "EXIF not hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\n\n\nzz"),
    "text's method": chunk(b"zTXt", b"a\0\3zzz"),
    "text of six megabytes": chunk(b"tEXt", b"a\0" + bytes(6 << 20)),
    "XMP cut short": chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
    "international text not UTF-8": chunk(b"iTXt", b"a\0\0\0\0\0\xff\xfe"),
    "gamma short": chunk(b"gAMA", b"\0"),
    "chromaticity short": chunk(b"cHRM", b"\0"),
    "intent empty": chunk(b"sRGB", b""),
    "resolution short": chunk(b"pHYs", b"\0\0"),
    "animation short": chunk(b"acTL", b"\0"),
    "animation's frame out of order": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 5, 16, 12, 0, 0, 1, 1, 0, 0)),
    "animation's frame outside": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 600, 12, 0, 0, 1, 1, 0, 0)),
    "text's checksum": chunk(b"tEXt", b"a\0b", 0),
    "gamma's checksum": chunk(b"gAMA", bytes(4), 0),
    "EXIF's checksum": chunk(b"eXIf", turned(6), 0),
}
BROKEN_SEGMENTS = {
    "JFIF short": segment(0xE0, b"JFIF"),
    "Adobe short": segment(0xEE, b"Adobe"),
    "profile short": segment(0xE2, b"ICC_PROFILE\0"),
    "profile's parts missing": segment(0xE2, b"ICC_PROFILE\0\1\5abc"),
    "Photoshop short": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "several pictures, none listed": segment(0xE2, b"MPF\0" + exif([(0xB001, 4, 1, b"\2\0\0\0")])),
    "several pictures, garbage": segment(0xE2, b"MPF\0garbage garbage"),
    "comment": segment(_JPEG_COMMENT, b"\xff\xfe\0"),
}
BROKEN_TAGS = {
    "title far away": (269, 2, 100, FAR),
    "orientation far away": (ORIENTATION, 2, 100, FAR),
    "orientation 9": (ORIENTATION, 3, 1, b"\x09\0\0\0"),
    "private, two billion": (51, 2, 0x7FFFFFFF, AT_8),
    "resolution a text": (282, 2, 4, b"abc\0"),
    "XMP a number": (700, 3, 1, b"\1\0\0\0"),
    "XMP a text": (700, 2, 4, b"abc\0"),
    "XMP a fraction": (700, 5, 1, AT_8),
    "EXIF far away": (34665, 4, 1, FAR),
    "EXIF in itself": (34665, 4, 1, AT_8),
    "EXIF a text": (34665, 2, 4, b"abc\0"),
    "position far away": (34853, 4, 1, FAR),
    "profile a number": (34675, 3, 1, b"\1\0\0\0"),
}
BROKEN_GIF_EXTENSIONS = {
    "application empty": b"\x21\xff\0",
    "loop without count": b"\x21\xff\x0bNETSCAPE2.0\0",
    "control short": b"\x21\xf9\1\0\0",
    "control empty": b"\x21\xf9\0",
    "comment": b"\x21\xfe\5abc\xff\xfe\0",
    "unknown": b"\x21\x77\3abc\0",
}


def gif_with(gif: bytes, extension: bytes) -> bytes:
    at = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)
    return gif[:at] + extension + gif[at:]
