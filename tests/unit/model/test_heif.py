"""AVIF and HEIC: decoded as other formats are, turned as their boxes say, and refused before frames of any size are unfolded."""

import io
import struct
import sys
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, features

from service.errors import InvalidRequest
from service.model import heif
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode, open_image
from tests.unit.model.metadata_files import ORIENTATION, UPRIGHT_EXIF, file_of, turned

# Pillow warns of metadata that are cut off.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

pillow_heif.register_heif_opener()  # so that Pillow writes HEIC

WIDTH, HEIGHT = 64, 48
LIMIT = 1_000_000
COLOURS = np.array([[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (240, 240, 240)]], np.uint8)
PICTURE = Image.fromarray(COLOURS.repeat(HEIGHT // 2, 0).repeat(WIDTH // 2, 1))
MARK = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x010F, 2, 40, 26, 0) + b"Z" * 40
"""EXIF data that encoders take, with a place in it for others."""


def heic(image: Image.Image = PICTURE, **options: object) -> bytes:
    return file_of(image, "HEIF", **{"quality": 95} | options)


def avif(image: Image.Image = PICTURE, **options: object) -> bytes:
    return file_of(image, "AVIF", **{"quality": 95, "speed": 10} | options)


ENCODERS = {"AVIF": avif, "HEIC": heic}
every_kind = pytest.mark.parametrize("kind", ENCODERS)


def pixels(encoded: bytes, size: tuple[int, int] = (WIDTH, HEIGHT), channels: int = 3) -> NDArray[np.uint8]:
    return decode(encoded, InputSpec(height=size[1], width=size[0], channels=channels), LIMIT)


def differ(found: NDArray[np.uint8], expected: Image.Image) -> float:
    return float(np.abs(found.astype(int) - np.asarray(expected)).mean())


@every_kind
def test_pictures_are_decoded(kind: str) -> None:
    encoded = ENCODERS[kind]()
    assert heif.kind_of(encoded) == kind
    assert open_image(encoded, LIMIT).size == (WIDTH, HEIGHT)
    assert differ(pixels(encoded), PICTURE) < 5
    assert differ(pixels(encoded, channels=1)[..., 0], PICTURE.convert("L")) < 5
    assert differ(pixels(ENCODERS[kind](PICTURE.convert("L"))), PICTURE.convert("L").convert("RGB")) < 5
    clear = ENCODERS[kind](Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0)))
    assert pixels(clear).min() > 250, "transparency over white"


TURNS = dict(
    enumerate(
        [
            Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
        ],
        start=2,
    )
)  # fmt: skip


@every_kind
@pytest.mark.parametrize("turn", TURNS)
def test_they_are_turned_as_their_boxes_say(kind: str, turn: int) -> None:
    encoded = ENCODERS[kind](exif=b"Exif\0\0" + turned(turn))
    assert b"irot" in encoded or b"imir" in encoded
    upright = PICTURE.transpose(TURNS[turn])
    assert differ(pixels(encoded, upright.size), upright) < 5


@every_kind
@pytest.mark.parametrize("name", UPRIGHT_EXIF)
def test_exif_that_cannot_be_read_is_ignored(kind: str, name: str) -> None:
    data = UPRIGHT_EXIF[name].ljust(len(MARK), b"\0")[: len(MARK)]
    for turn in (1, 3):
        exif = Image.Exif()
        exif.load(b"Exif\0\0" + MARK)
        exif[ORIENTATION] = turn
        whole = ENCODERS[kind](exif=exif.tobytes())
        start = whole.rindex(b"II*\0", 0, whole.index(b"Z" * 38))
        broken = whole[:start] + data + whole[start + len(data) :]
        assert np.array_equal(pixels(broken), pixels(whole))
        assert differ(pixels(broken), PICTURE if turn == 1 else PICTURE.transpose(Image.Transpose.ROTATE_180)) < 5


@every_kind
def test_xmp_says_nothing_of_how_they_are_turned(kind: str) -> None:
    marked = ENCODERS[kind](xmp=b'<x tiff:Orientation="1"/>')
    at = marked.index(b'Orientation="1"')
    assert np.array_equal(pixels(marked[:at] + b'Orientation="3"' + marked[at + 15 :]), pixels(marked))


def test_of_an_animation_the_first_picture_is_taken_and_of_several_the_primary() -> None:
    red, green, blue = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "green", "blue"))
    animation = avif(red, save_all=True, append_images=[green, blue])
    assert animation[8:12] == b"avis"
    assert differ(pixels(animation), red) < 3
    new_file: Any = pillow_heif.HeifFile  # typed or not, as it is installed or not
    several = new_file()
    for image in (red, green, blue):
        several.add_from_pillow(image)
    buffer = io.BytesIO()
    several.save(buffer, primary_index=1, quality=95)
    assert differ(pixels(buffer.getvalue()), green) < 3


def test_ten_bits_are_scaled() -> None:
    buffer = io.BytesIO()
    deep = np.asarray(PICTURE).astype(np.uint16) << 8
    pillow_heif.encode("RGB;16", (WIDTH, HEIGHT), deep.tobytes(), buffer, quality=95)
    assert open_image(buffer.getvalue(), LIMIT).info["bit_depth"] == 10
    assert differ(pixels(buffer.getvalue()), PICTURE) < 5


def test_a_brand_for_any_such_picture_is_enough() -> None:
    for kind, encode in ENCODERS.items():
        whole = encode()
        end = int.from_bytes(whole[:4], "big")
        common = whole[:8] + b"mif1" + whole[12:16] + b"mif1" * ((end - 16) // 4) + whole[end:]
        assert heif.kind_of(common) == kind
    assert np.array_equal(pixels(heic()[:8] + b"mif1" + heic()[12:]), pixels(heic()))
    for other in (b"isom", b"qt  ", b"crx "):
        with pytest.raises(InvalidRequest, match=r"not an image in a format accepted here: PNG, JPEG, .*, AVIF, HEIC"):
            open_image(struct.pack(">I4s4sI", 16, b"ftyp", other, 0) + bytes(100), LIMIT)


@every_kind
def test_too_many_pixels_are_refused_by_the_header(kind: str) -> None:
    large = ENCODERS[kind](Image.new("RGB", (2000, 1000)))
    with pytest.raises(InvalidRequest, match="the image has 2000 x 1000 pixels; at most 1000000 are accepted"):
        open_image(large, LIMIT)


@every_kind
def test_frames_larger_than_the_header_says_are_refused(kind: str) -> None:
    large = ENCODERS[kind](Image.new("RGB", (3000, 2000)))
    box = b"ispe\0\0\0\0" + struct.pack(">II", 3000, 2000)
    assert box in large
    small = large.replace(box, b"ispe\0\0\0\0" + struct.pack(">II", 30, 20))
    with pytest.raises(InvalidRequest, match="the image's frames have 6000000 pixels" if kind == "AVIF" else "RuntimeError"):
        pixels(small)


@given(width=st.integers(1, 400), height=st.integers(1, 400), mode=st.sampled_from(["L", "RGB", "RGBA"]))
@settings(max_examples=20, deadline=None)
def test_the_size_of_frames_is_read_from_their_data(width: int, height: int, mode: str) -> None:
    frames = 2 if mode == "RGBA" else 1
    assert heif._frame_pixels(avif(Image.new(mode, (width, height)))) == frames * width * height


def bits(*fields: tuple[int, int]) -> bytes:
    """Numbers, each of so many bits, and zeros up to a whole byte."""
    text = "".join(f"{value:0{count}b}" for value, count in fields)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


SIZE = ((9, 4), (8, 4), (639, 10), (479, 9))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([(0, 3), (1, 1), (1, 1), (0, 5), *SIZE], 640 * 480),
        # A picture that is not a still one; its frames may be larger than it says.
        ([(0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 5), (0, 12), (8, 5), (0, 1), *SIZE], 640 * 480),
        ([(0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 5), (0, 12), (3, 5), (15, 4), (15, 4), (639, 16), (479, 16)], 2**30),
        # Timing, equal intervals, a decoder model, two operating points, a display delay.
        (
            [
                (0, 5), (1, 1), (0, 64), (1, 1), (0b00101, 5), (1, 1), (6, 5), (0, 42), (1, 1), (1, 5),
                (0, 12), (3, 5), (1, 1), (0, 15), (1, 1), (9, 4), (0, 12), (9, 5), (1, 1), (0, 1), (0, 1), *SIZE,
            ],
            640 * 480,
        ),
    ],
)  # fmt: skip
def test_every_form_of_a_sequence_header_is_read(fields: list[tuple[int, int]], expected: int) -> None:
    header = bits(*fields)
    assert heif._sequence_pixels(header) == expected
    data = b"\x12\0" + b"\x0a" + bytes([len(header)]) + header + b"\x32\x81\0\xff" + b"\x08" + header
    assert [heif._sequence_pixels(found) for found in heif._sequence_headers(data)] == [expected] * 2


@every_kind
def test_broken_files_are_refused_and_nothing_else_is_raised(kind: str) -> None:
    whole = ENCODERS[kind](Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)))
    for cut in range(0, len(whole) - 1, 13):
        with pytest.raises(InvalidRequest):
            pixels(whole[:cut], (24, 24))
    random = np.random.default_rng(1)
    for _ in range(200):
        broken = bytearray(whole)
        for at in random.integers(0, min(len(whole), 500), 3):
            broken[at] = random.integers(0, 256)
        try:
            assert pixels(bytes(broken), (24, 24)).shape == (24, 24, 3)
        except InvalidRequest:
            continue


def test_without_the_extra_a_heic_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif._heic_opener.cache_clear()
    try:
        with pytest.raises(InvalidRequest, match=r"a HEIC image, .*: that needs an extra, `pip install 'convoy-serving\[heic\]'`"):
            open_image(heic(), LIMIT)
    finally:
        heif._heic_opener.cache_clear()


def test_a_pillow_without_avif_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = avif()
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    assert "AVIF" not in heif.formats()
    with pytest.raises(InvalidRequest, match=r"an AVIF image, .*: the Pillow that is installed was built without AVIF"):
        open_image(encoded, LIMIT)
