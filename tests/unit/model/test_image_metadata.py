"""Whole pictures are taken whatever their metadata are, and turned upright where an orientation can be read."""

import contextlib
import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidRequest
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode, open_image, to_pixels
from tests.hostile_pictures import gif_comment
from tests.unit.model.metadata_files import (
    BROKEN_CHUNKS,
    BROKEN_GIF_EXTENSIONS,
    BROKEN_SEGMENTS,
    BROKEN_TAGS,
    FAR,
    UPRIGHT_EXIF,
    chunk,
    exif,
    file_of,
    gif_with,
    jpeg_with,
    png_with,
    raw_profile,
    segment,
    tiff_with,
    turned,
    webp_with,
)

# Pillow warns of metadata that are cut off.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

WIDTH, HEIGHT = 16, 12
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
PNG, GRAY, PALETTE = file_of(PICTURE), file_of(PICTURE.convert("L")), file_of(PICTURE.quantize(16))
JPEG, WEBP = file_of(PICTURE, "JPEG", quality=95), file_of(PICTURE, "WEBP", lossless=True)
TIFF, LZW = file_of(PICTURE, "TIFF"), file_of(PICTURE, "TIFF", compression="tiff_lzw")
GIF = file_of(PICTURE.quantize(16), "GIF")

WITH_EXIF: dict[str, Callable[[bytes], bytes]] = {
    "PNG": lambda data: png_with(PNG, chunk(b"eXIf", data)),
    "PNG, behind the pixels": lambda data: png_with(PNG, chunk(b"eXIf", data), late=True),
    "PNG, raw profile": lambda data: png_with(PNG, raw_profile(data)),
    "PNG, palette": lambda data: png_with(PALETTE, chunk(b"eXIf", data)),
    "JPEG": lambda data: jpeg_with(JPEG, segment(0xE1, b"Exif\0\0" + data)),
    "WebP": lambda data: webp_with(WEBP, (WIDTH, HEIGHT), b"EXIF", data),
    "WebP, with JPEG's prefix": lambda data: webp_with(WEBP, (WIDTH, HEIGHT), b"EXIF", b"Exif\0\0" + data),
}
BARE = {"PNG": PNG, "PNG, palette": PALETTE, "JPEG": JPEG, "WebP": WEBP}


def bare(kind: str) -> bytes:
    return BARE.get(kind) or BARE[kind.partition(",")[0]]


def pixels(encoded: bytes, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    return decode(encoded, InputSpec(height=height, width=width, channels=3), 1_000_000)


@pytest.mark.parametrize("kind", WITH_EXIF)
@pytest.mark.parametrize("name", UPRIGHT_EXIF)
def test_an_orientation_that_cannot_be_read_is_none(kind: str, name: str) -> None:
    assert np.array_equal(pixels(WITH_EXIF[kind](UPRIGHT_EXIF[name])), pixels(bare(kind)))


@pytest.mark.parametrize("kind", WITH_EXIF)
@pytest.mark.parametrize("turn", range(1, 9))
def test_an_orientation_that_can_be_read_is_applied(kind: str, turn: int) -> None:
    upright = Image.fromarray(pixels(bare(kind)))
    expected = np.asarray(upright if turn == 1 else upright.transpose(
        [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE,
         Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90][turn - 2]
    ))  # fmt: skip
    assert np.array_equal(pixels(WITH_EXIF[kind](turned(turn)), *expected.shape[:2]), expected)


@pytest.mark.parametrize("kind", WITH_EXIF)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda after: turned(1)[:10] + after))
@settings(max_examples=40, deadline=None)
def test_any_bytes_as_exif_leave_the_pixels_as_they_are(kind: str, data: bytes) -> None:
    assume(b"\x12\x01" not in data[10:] and b"\x01\x12" not in data)  # an orientation, found by chance
    assert np.array_equal(pixels(WITH_EXIF[kind](data)), pixels(bare(kind)))


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="%s"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("xmp", "turn"),
    [(XMP % b"3", True), (XMP % b"9", False), (XMP % b"0", False), (XMP % b"top", False), (b"<<<\xff\xfe\0", False), (b"", False)],
)
def test_an_orientation_in_xmp_is_applied_where_it_can_be_read(xmp: bytes, turn: bool) -> None:
    for with_xmp, without in (
        (png_with(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)), PNG),
        (jpeg_with(JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)), JPEG),
        (webp_with(WEBP, (WIDTH, HEIGHT), b"XMP ", xmp), WEBP),
    ):
        assert np.array_equal(pixels(with_xmp), pixels(without)[::-1, ::-1] if turn else pixels(without))


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
@pytest.mark.parametrize("late", [False, True])
def test_a_png_with_broken_metadata_is_taken(name: str, late: bool) -> None:
    for whole in (PNG, GRAY, PALETTE):
        assert np.array_equal(pixels(png_with(whole, BROKEN_CHUNKS[name], late=late)), pixels(whole))


def test_of_an_animated_png_the_first_picture_is_taken() -> None:
    frames = file_of(PICTURE, save_all=True, append_images=[PICTURE.rotate(90), PICTURE.rotate(180)], duration=100)
    assert np.array_equal(pixels(frames), PIXELS)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS"])
def test_a_png_is_refused_when_a_chunk_is_broken_that_its_pixels_depend_on(kind: bytes) -> None:
    whole = file_of(PICTURE.quantize(16), transparency=3)
    at = whole.index(kind) + 4
    with pytest.raises(InvalidRequest):
        pixels(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


@pytest.mark.parametrize("name", BROKEN_SEGMENTS)
def test_a_jpeg_with_broken_metadata_is_taken_and_turned(name: str) -> None:
    assert np.array_equal(pixels(jpeg_with(JPEG, BROKEN_SEGMENTS[name])), pixels(JPEG))
    upside_down = jpeg_with(JPEG, segment(0xE1, b"Exif\0\0" + turned(3)), BROKEN_SEGMENTS[name])
    assert np.array_equal(pixels(upside_down), pixels(JPEG)[::-1, ::-1])


def test_a_cmyk_jpeg_with_broken_metadata_keeps_its_colours() -> None:
    cmyk = file_of(PICTURE.convert("CMYK"), "JPEG")
    assert np.array_equal(pixels(jpeg_with(cmyk, BROKEN_SEGMENTS["profile short"])), pixels(cmyk))


@pytest.mark.parametrize("name", BROKEN_TAGS)
def test_a_tiff_with_broken_metadata_is_taken(name: str) -> None:
    for whole in (TIFF, LZW):
        assert np.array_equal(pixels(tiff_with(whole, *BROKEN_TAGS[name])), PIXELS)


def test_a_tiff_with_a_title_far_away_is_turned_upright() -> None:
    upside_down = tiff_with(tiff_with(TIFF, 0x0112, 3, 1, b"\3\0\0\0"), *BROKEN_TAGS["title far away"])
    assert np.array_equal(pixels(upside_down), PIXELS[::-1, ::-1])


def test_a_bigtiff_with_a_title_far_away_is_taken() -> None:
    big = file_of(PICTURE, "TIFF", big_tiff=True)
    assert np.array_equal(pixels(tiff_with(big, 269, 2, 100, FAR + bytes(4))), PIXELS)


@pytest.mark.parametrize("name", BROKEN_GIF_EXTENSIONS)
def test_a_gif_with_broken_extensions_is_taken(name: str) -> None:
    assert np.array_equal(pixels(gif_with(GIF, BROKEN_GIF_EXTENSIONS[name])), pixels(GIF))
    transparent = file_of(PICTURE.quantize(16), "GIF", transparency=3)
    assert np.array_equal(pixels(gif_with(transparent, BROKEN_GIF_EXTENSIONS[name])), pixels(transparent))


def test_a_bmp_may_say_any_resolution() -> None:
    whole = bytearray(file_of(PICTURE, "BMP"))
    whole[38:46] = b"\xff" * 8
    assert np.array_equal(pixels(bytes(whole)), PIXELS)


def test_what_is_cut_short_stays_refused_with_broken_metadata() -> None:
    for whole in (
        png_with(PNG, BROKEN_CHUNKS["text's checksum"]), jpeg_with(JPEG, BROKEN_SEGMENTS["profile short"]),
        WITH_EXIF["WebP"](b"no TIFF"), gif_with(GIF, BROKEN_GIF_EXTENSIONS["application empty"]),
    ):  # fmt: skip
        for cut in range(0, len(whole) - 60, 29):
            with pytest.raises(InvalidRequest):
                pixels(whole[:cut])


def test_exif_that_cannot_be_written_again_is_applied() -> None:
    # Pillow's own function turns the picture, then writes all EXIF data anew.
    data = exif([(0x0112, 3, 1, b"\3\0\0\0"), (0x8769, 2, 4, b"abc\0"), (0x9999, 5, 1, b"\xff\xff\xff\x7f")])
    for kind, with_exif in WITH_EXIF.items():
        assert np.array_equal(pixels(with_exif(data)), pixels(bare(kind))[::-1, ::-1]), kind


MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBX",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_become_gray_and_rgb(mode: str, channels: int) -> None:
    image: Any = Image.new(mode, (4, 4))
    for side in (4, 6):
        assert to_pixels(image.copy(), InputSpec(height=side, width=side, channels=channels)).shape == (side, side, channels)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_with_32_bits_are_refused_by_name(mode: str) -> None:
    for channels in (1, 3):
        with pytest.raises(InvalidRequest, match="images with 32-bit pixels are not accepted"):
            decode(file_of(Image.new(mode, (4, 4)), "TIFF"), InputSpec(height=4, width=4, channels=channels), 100)


def test_a_lab_tiff_is_as_light_in_gray_as_in_rgb() -> None:
    lab = Image.merge("LAB", [Image.linear_gradient("L").resize((8, 8)), *[Image.new("L", (8, 8), 128)] * 2])
    encoded = file_of(lab, "TIFF")
    assert Image.open(io.BytesIO(encoded)).mode == "LAB"
    colour = decode(encoded, InputSpec(height=8, width=8, channels=3), 100)
    gray = decode(encoded, InputSpec(height=8, width=8, channels=1), 100)
    assert np.array_equal(gray[..., 0], np.asarray(Image.fromarray(colour).convert("L")))
    assert gray.max() > 200
    assert gray.min() < 50


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_a_large_transparent_picture_is_over_white_in_every_row(mode: str, channels: int) -> None:
    height = 1500
    random = np.random.default_rng(0).integers(0, 256, (height, 400, 4), np.uint8)
    image = Image.fromarray(random, "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    at_once = Image.alpha_composite(white, image.convert("RGBA")).convert("L" if channels == 1 else "RGB")
    found = to_pixels(image, InputSpec(height=height, width=400, channels=channels))
    assert np.array_equal(found.squeeze(), np.asarray(at_once))


@pytest.mark.parametrize("whole", [True, False])
def test_a_comment_of_a_gif_is_not_put_together(whole: bool) -> None:
    commented = gif_comment(400_000)
    encoded = commented if whole else commented[:300_000]
    tracemalloc.start()
    try:
        with contextlib.nullcontext() if whole else pytest.raises(InvalidRequest):
            assert "comment" not in open_image(encoded, 1_000_000).info
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
