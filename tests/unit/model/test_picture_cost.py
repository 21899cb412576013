import struct

import numpy as np
import pytest
from PIL import Image

from service.model.input_spec import InputSpec
from service.model.picture_cost import CHEAP_BYTES, DEAR, bytes_needed, bytes_to_open, decoding_steps, resizes_cheaply
from service.model.preprocessing import open_image
from service.model.resizing import bytes_to_resize
from tests import hostile_pictures
from tests.hostile_pictures import file_of, png_chunk
from tests.unit.model.test_preprocessing import tiff_of

LIMIT = 25_000_000
SPEC = InputSpec(height=28, width=28, channels=3)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))


CHEAP = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"], "WEBP": ["L", "RGB", "RGBA"],
    "GIF": ["L", "P"], "BMP": ["1", "L", "P", "RGB", "RGBA"], "PPM": ["1", "L", "RGB"],
}  # fmt: skip


@pytest.mark.parametrize(("file_format", "mode"), [(name, mode) for name, modes in CHEAP.items() for mode in modes])
def test_a_small_picture_is_cheap_and_has_as_many_steps_as_pixels(file_format: str, mode: str) -> None:
    image = Image.new(mode, PICTURE.size) if mode == "I;16" else PICTURE.convert(mode)
    assert decoding_steps(file_of(image, file_format)) == PICTURE.width * PICTURE.height


def test_each_scan_of_a_jpeg_is_counted() -> None:
    encoded = file_of(PICTURE, "JPEG", progressive=True)
    assert decoding_steps(encoded) == 1200 * encoded.count(b"\xff\xda\0")
    assert decoding_steps(encoded) > 5 * 1200


@pytest.mark.parametrize("file_format", ["TIFF", "AVIF"])
def test_what_its_library_alone_understands_is_dear(file_format: str) -> None:
    assert decoding_steps(file_of(PICTURE, file_format)) == DEAR
    assert decoding_steps(b"\0\0\0\x18ftypheic") == DEAR


@pytest.mark.parametrize(
    "encoded", [b"", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"Pa", b"RIFF    WEBP", b"%PDF", b"a" * 99]
)
def test_what_has_no_header_has_no_steps(encoded: bytes) -> None:
    assert decoding_steps(encoded) == 0


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "PPM"])
def test_a_picture_that_needs_much_memory_is_dear(file_format: str) -> None:
    def steps(side: int) -> int:
        return decoding_steps(file_of(Image.new("P" if file_format == "GIF" else "RGB", (side, side)), file_format))

    assert steps(2000) == 4_000_000
    assert steps(4500) == DEAR


HOSTILE_AND_CHEAP = {"JPEG, EXIF", "JPEG, further pictures", "PNG, chunks", "PNG, text", "PNG, EXIF", "WebP, EXIF"}
"""They are opened without what would be dear."""


@pytest.mark.parametrize("name", hostile_pictures.HOSTILE)
def test_what_costs_much_is_dear(name: str) -> None:
    assert (decoding_steps(hostile_pictures.HOSTILE[name]()) == DEAR) == (name not in HOSTILE_AND_CHEAP)


def test_a_header_that_is_not_the_first_chunk_of_a_png_is_not_believed() -> None:
    whole = file_of(PICTURE, "PNG")
    assert decoding_steps(whole[:8] + png_chunk(b"tEXt", struct.pack(">II", 1, 1) * 3) + whole[8:]) == DEAR


def test_padding_between_the_segments_of_a_jpeg_is_none_of_its_cost() -> None:
    encoded = file_of(PICTURE, "JPEG", progressive=True)
    assert decoding_steps(encoded[:2] + b"\xff" * 9 + encoded[2:]) == decoding_steps(encoded)


@pytest.mark.parametrize(
    "between",
    [b"\0", b"a", b"\xff\0", b"\xff\xd0", b"\xff\xd8", b"\xff\xd9", b"\xff\1", b"\xff\xf0", b"\xff\xfe\0\0", b"\xff\xfe\0\1"],
    ids=bytes.hex,
)
def test_a_jpeg_in_which_a_decoder_may_find_more_than_its_header_says_is_dear(between: bytes) -> None:
    encoded = hostile_pictures.jpeg_scans(256)
    assert open_image(encoded, LIMIT).size == (256, 256)
    assert decoding_steps(encoded) == 100 * 256 * 256
    for at in (2, encoded.index(b"\xff\xc2"), encoded.index(b"\xff\xda")):
        assert decoding_steps(encoded[:at] + between + encoded[at:]) == DEAR


@pytest.mark.parametrize("between", [b"\0", b"a", b"!\1\0" * 300], ids=["zero", "letter", "empty extensions"])
def test_a_gif_in_which_pillow_may_find_more_than_its_header_says_is_dear(between: bytes) -> None:
    encoded = file_of(PICTURE.convert("P"), "GIF")
    start = 13 + (3 << (encoded[10] & 7) + 1)
    assert encoded[start : start + 1] == b","
    assert decoding_steps(encoded[:start] + between + b"!\xfe" + b"\1c" * 20_000 + b"\0" + encoded[start:]) == DEAR
    assert decoding_steps(encoded[:start] + between + encoded[start:]) == DEAR
    assert decoding_steps(encoded[:start] + b"!\1\0" * 200 + encoded[start:]) == 1200


def test_a_webp_needs_its_canvas_to_be_opened() -> None:
    assert bytes_to_open(hostile_pictures.webp_canvas(), LIMIT) >= 2 * 4 * LIMIT
    assert bytes_to_open(hostile_pictures.webp_canvas(16_000), LIMIT) == 0  # it is refused
    assert bytes_to_open(file_of(PICTURE, "JPEG"), LIMIT) == 0


def test_what_a_picture_needs_follows_from_its_header() -> None:
    for file_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF"):
        images = (open_image(file_of(Image.new("RGB", (side, 64)), file_format), LIMIT) for side in (64, 128))
        small, large = (bytes_needed(image, SPEC) - bytes_to_resize(image.size, SPEC) for image in images)
        assert large == 2 * small > 4 * 64 * 64


def test_what_becomes_a_large_picture_is_dear_and_needs_as_much() -> None:
    image = open_image(file_of(PICTURE, "PNG"), LIMIT)
    for resize, size in (("stretch:4000x5000", (4000, 5000)), ("short:4000", (4000, 5333)), ("cover:4000x5000", (4000, 5000))):
        spec = InputSpec(height=28, width=28, channels=3, resize=resize, crop="center")
        assert bytes_needed(image, spec) > 4 * size[0] * size[1]
        assert not resizes_cheaply(image, spec)
    assert resizes_cheaply(image, SPEC)


def test_a_tile_of_a_tiff_that_is_larger_than_it_is_counted() -> None:
    assert bytes_needed(open_image(tiff_of(1000, 1000, 1024, 512), LIMIT), SPEC) >= 1000 * 1000
    assert bytes_needed(open_image(tiff_of(16, 16, 1024, 512), LIMIT), SPEC) >= 1024 * 512


def test_cheap_pictures_fit_into_their_memory() -> None:
    assert decoding_steps(file_of(Image.new("RGB", (2000, 2000)), "PNG")) * 4 < CHEAP_BYTES
