import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from service.errors import InvalidRequest
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode, encode_png, open_image, resize, to_pixels

LIMIT = 1_000_000


def spec(height: int = 4, width: int = 4, channels: int = 1, fit: str = "stretch") -> InputSpec:
    return InputSpec.model_validate({"height": height, "width": width, "channels": channels, "resize": fit})


def file_of(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_the_right_size_are_unchanged(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, channels), np.uint8)
    assert np.array_equal(decode(encode_png(pixels), spec(28, 20, channels), LIMIT), pixels)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["stretch", "cover", "pad"]),
)
@settings(max_examples=60, deadline=None)
def test_any_image_is_brought_to_the_models_shape(height: int, width: int, channels: int, fit: str) -> None:
    pixels = np.full((height, width, channels), 77, np.uint8)
    out = decode(encode_png(pixels), spec(9, 13, channels, fit), LIMIT)
    assert out.shape == (9, 13, channels)
    assert out.dtype == np.uint8
    if fit != "pad":
        assert (out == 77).all()


def test_training_and_serving_see_the_same_pixels() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)
    assert np.array_equal(resize(picture, spec(28, 28)), decode(encode_png(picture), spec(28, 28), LIMIT))


def test_cover_takes_the_middle_and_pad_adds_black() -> None:
    wide = np.zeros((2, 6), np.uint8)
    wide[:, 2:4] = 200
    assert (resize(wide, spec(2, 2, fit="cover")) == 200).all()
    padded = resize(np.full((2, 4), 200, np.uint8), spec(4, 4, fit="pad"))[:, :, 0]
    assert (padded[1:3] == 200).all()
    assert (padded[[0, 3]] == 0).all()


@pytest.mark.parametrize("size", [(1, 40), (1, 5000), (500, 1), (3000, 2)])
def test_something_of_a_long_and_thin_picture_is_left_when_it_is_padded(size: tuple[int, int]) -> None:
    padded = decode(file_of(Image.new("L", size, 200)), spec(9, 13, fit="pad"), LIMIT)
    assert (padded == 200).sum() == (9 if size[0] == 1 else 13)


def test_gray_is_the_luma_of_colour_and_colour_of_gray_is_gray() -> None:
    red = file_of(Image.new("RGB", (4, 4), (255, 0, 0)))
    assert (decode(red, spec(), LIMIT) == 76).all()  # 0.299 * 255, ITU-R BT.601
    assert (decode(file_of(Image.new("L", (4, 4), 9)), spec(channels=3), LIMIT) == 9).all()


def test_transparency_is_composited_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (decode(file_of(half), spec(channels=3), LIMIT) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert (decode(file_of(palette, "GIF", transparency=0), spec(channels=3), LIMIT) == 255).all()
    assert (decode(file_of(palette, "GIF"), spec(channels=3), LIMIT) == [10, 20, 30]).all()


def png_with_transparency(depth: int, colours: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row of two pixels, of a kind that Pillow may not write."""
    header = struct.pack(">IIBBBBB", 2, 1, depth, colours, 0, 0, 0)
    kinds = {b"IHDR": header, b"tRNS": transparent, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in kinds.items())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("depth", "colours", "row", "transparent", "other"),
    [
        (1, 0, b"\x40", b"\0\0", 255),
        (2, 0, b"\x60", b"\0\1", 170),
        (4, 0, b"\x12", b"\0\1", 0x22),
        (8, 0, b"\1\2", b"\0\1", 2),
        (16, 0, b"\1\2\1\3", b"\1\2", 1),
        (8, 2, b"\1\1\1\2\2\2", b"\0\1\0\1\0\1", 2),
        (16, 2, b"\1\0\1\0\1\0\2\0\2\0\2\0", b"\1\0\1\0\1\0", 2),
    ],
)
def test_a_transparent_colour_becomes_white_in_gray_and_rgb(
    depth: int, colours: int, row: bytes, transparent: bytes, other: int, channels: int
) -> None:
    pixels = decode(png_with_transparency(depth, colours, row, transparent), spec(1, 2, channels), LIMIT)
    assert (pixels[0, 0] == 255).all()
    assert (pixels[0, 1] == other).all()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"P5 2 1 65535\n\x01\xff\x80\x40", [1, 0x80]),
        (b"P5 2 1 1000\n\x01\xf4\x03\xe8", [128, 255]),
        (b"P2 2 1 1000 500 1000", [128, 255]),
    ],
)
def test_a_pgm_of_sixteen_bits_is_scaled_too(content: bytes, expected: list[int]) -> None:
    assert decode(content, spec(1, 2), LIMIT).ravel().tolist() == expected


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    gray = Image.fromarray(np.full((4, 4), 0x8040, np.uint16))
    assert (decode(file_of(gray), spec(), LIMIT) == 0x80).all()
    assert (decode(file_of(gray), spec(channels=3), LIMIT) == 0x80).all()


def test_exif_orientation_is_applied() -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8).repeat(8, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    turned = decode(file_of(image, "JPEG", exif=exif, quality=100), spec(8, 16), LIMIT)
    assert turned[:, :8].min() > 200
    assert turned[:, 8:].max() < 50


def by_pillows_own_class(encoded: bytes, channels: int) -> NDArray[np.uint8] | None:
    """The pixels; None if the file is refused."""
    try:
        return to_pixels(Image.open(io.BytesIO(encoded), formats=["PNG"]), spec(9, 7, channels))
    except Exception:  # noqa: BLE001 - as in open_image
        return None


def as_it_is_served(encoded: bytes, channels: int) -> NDArray[np.uint8] | None:
    try:
        return decode(encoded, spec(9, 7, channels), LIMIT)
    except InvalidRequest:
        return None


def assert_as_pillow(encoded: bytes, channels: int) -> NDArray[np.uint8] | None:
    expected, found = by_pillows_own_class(encoded, channels), as_it_is_served(encoded, channels)
    assert (expected is None and found is None) or np.array_equal(expected, found)  # type: ignore[arg-type]
    return found


def png_of(mode: str, random: np.random.Generator, level: int) -> bytes:
    height, width = random.integers(1, 20, 2)
    image = Image.fromarray(random.integers(0, 256, (height, width, 4), np.uint8)).convert(mode.split()[0])
    options: dict[str, Any] = {"compress_level": level}
    if mode.endswith("transparent"):
        options["transparency"] = image.getpixel((0, 0))
    if level % 2:
        options["dpi"] = (72, 72)
    if level % 3 == 1:
        options["pnginfo"] = note = PngImagePlugin.PngInfo()
        note.add_text("Comment", "a" * level)
    if level % 4 == 1:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        options["exif"] = exif
    return file_of(image, **options)


MODES = ["L", "RGB", "RGB transparent", "RGBA", "LA", "P", "1", "I;16"]


@given(st.sampled_from(MODES), st.integers(0, 9), st.sampled_from([1, 3]), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_every_kind_of_png_decodes_as_by_pillows_own_class(mode: str, level: int, channels: int, seed: int) -> None:
    assert assert_as_pillow(png_of(mode, np.random.default_rng(seed), level), channels) is not None


@given(st.sampled_from(["L", "RGB"]), st.sampled_from([0, 2, 6]), st.integers(0, 10_000), st.integers(0, 2), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_broken_png_is_refused_when_pillows_own_class_refuses_it(
    mode: str, level: int, seed: int, broken: int, cut: bool
) -> None:
    random = np.random.default_rng(seed)
    content = bytearray(png_of(mode, random, level))
    for at in random.integers(8, len(content), broken):
        content[at] = random.integers(0, 256)
    assert_as_pillow(bytes(content[: random.integers(8, len(content))] if cut else content), 3)


def test_a_png_may_have_many_data_chunks_between_ignored_ones() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (9, 7, 3), np.uint8)
    whole = encode_png(pixels)
    at = whole.index(b"IDAT")
    data = whole[at + 4 : whole.index(b"IEND") - 8]
    pieces = b"".join(chunk(b"IDAT", data[first : first + 10]) for first in range(0, len(data), 10))
    split = whole[: at - 4] + chunk(b"gAMA", (45455).to_bytes(4, "big")) + pieces + chunk(b"IEND", b"") + b"and more"
    assert isinstance(open_image(split, LIMIT), type(open_image(whole, LIMIT)))
    assert np.array_equal(decode(split, spec(9, 7, 3), LIMIT), pixels)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_an_image_that_is_too_large_is_refused_by_its_header() -> None:
    large = file_of(Image.new("L", (2000, 1000)))
    with pytest.raises(InvalidRequest, match="2000 x 1000 pixels; at most 1000000 are accepted"):
        open_image(large[:60], LIMIT)


def tiff_of(width: int, height: int, tile_width: int, tile_height: int) -> bytes:
    """A gray TIFF whose tiles all point to the same place, which is empty."""
    tiles = -(-width // tile_width) * -(-height // tile_height)
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile_width, 323: tile_height}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    after = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries += [struct.pack("<HHII", tag, 4, tiles, 8 if tiles == 1 else after) for tag in (324, 325)]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + struct.pack("<I", 8) * 2 * tiles


@pytest.mark.parametrize(
    ("width", "height", "tile_width", "tile_height"), [(1, 128, 2**20, 16), (1, 1, 2**20, 512), (1, 10**4, 4096, 16)]
)
def test_a_tiff_with_tiles_far_larger_than_itself_is_refused(width: int, height: int, tile_width: int, tile_height: int) -> None:
    with pytest.raises(InvalidRequest, match=r"the image's tiles have \d+ pixels; at most 1000000 are accepted"):
        open_image(tiff_of(width, height, tile_width, tile_height), LIMIT)


def test_a_tiff_with_tiles_beyond_its_edges_is_accepted() -> None:
    assert open_image(tiff_of(20, 20, 256, 256), 400).size == (20, 20)
    assert open_image(tiff_of(1000, 1000, 256, 256), LIMIT).size == (1000, 1000)
    assert open_image(file_of(Image.new("RGB", (100, 100)), "TIFF", compression="tiff_lzw"), 10_000).size == (100, 100)


def test_a_side_that_is_too_long_is_refused() -> None:
    assert open_image(file_of(Image.new("L", (65_535, 1))), LIMIT).width == 65_535
    for size in ((65_536, 1), (1, 65_536)):
        with pytest.raises(InvalidRequest, match=f"{size[0]} x {size[1]}; at most 65535 pixels a side are accepted"):
            open_image(file_of(Image.new("L", size)), LIMIT)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_very_many_scans_is_refused(progressive: bool) -> None:
    whole = file_of(Image.new("RGB", (16, 16)), "JPEG", progressive=progressive)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    before = whole.count(b"\xff\xda")
    assert open_image(whole[:-2] + scan * (100 - before) + whole[-2:], LIMIT).size == (16, 16)
    with pytest.raises(InvalidRequest, match="101 scans; at most 100 are accepted"):
        open_image(whole[:-2] + scan * (101 - before) + whole[-2:], LIMIT)


@given(cut=st.integers(0, 600), seed=st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_broken_files_are_refused_and_nothing_else_is_raised(cut: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (12, 12, 3), np.uint8)
    file_format = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"][seed % 8]
    content = bytearray(file_of(Image.fromarray(pixels), file_format)[:cut])
    for at in random.integers(0, max(len(content), 1), 3):
        if content:
            content[at] = random.integers(0, 256)
    try:
        shape = decode(bytes(content), spec(8, 8, 3), LIMIT).shape
    except InvalidRequest:
        return
    assert shape == (8, 8, 3)
