"""Of a WebP animation the first frame alone is decoded, to the pixels that Pillow's decoder of animations gives."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidRequest
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode, open_image, to_pixels
from service.model.webp import FirstFrame, canvas, is_animation
from tests.hostile_pictures import file_of, riff, webp_animation, webp_canvas

LIMIT = 25_000_000


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8), "RGBA").convert(mode)


def by_pillow(encoded: bytes, spec: InputSpec) -> np.ndarray:
    return to_pixels(Image.open(io.BytesIO(encoded)), spec)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize(("place", "size"), [((0, 0), (40, 30)), ((6, 4), (11, 9)), ((38, 28), (2, 2))])
def test_the_first_frame_is_as_pillow_decodes_it(
    lossless: bool, mode: str, alpha: bool, place: tuple[int, int], size: tuple[int, int]
) -> None:
    first = file_of(picture(mode, *size), "WEBP", lossless=lossless)
    other = file_of(picture("RGB", 40, 30, 1), "WEBP", lossless=True)
    encoded = webp_animation(40, 30, [(*place, first), (0, 0, other)], alpha)
    assert isinstance(open_image(encoded, LIMIT), FirstFrame)
    for spec in (InputSpec(height=30, width=40, channels=3), InputSpec(height=7, width=9, channels=1)):
        assert np.array_equal(decode(encoded, spec, LIMIT), by_pillow(encoded, spec))


def test_an_animation_that_pillow_writes_is_its_first_picture() -> None:
    frames = [picture("RGBA", 16, 12, seed) for seed in range(4)]
    encoded = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True)
    spec = InputSpec(height=12, width=16, channels=3)
    assert is_animation(encoded)
    assert np.array_equal(decode(encoded, spec, LIMIT), by_pillow(file_of(frames[0], "PNG"), spec))


def test_an_animation_is_turned_upright() -> None:
    image = picture("RGB", 16, 12)
    exif = Image.Exif()
    exif[0x0112] = 3
    frames = {"save_all": True, "append_images": [picture("RGB", 16, 12, 1)], "lossless": True}
    encoded, upright = (file_of(image, "WEBP", **frames, **options) for options in ({"exif": exif}, {}))
    spec = InputSpec(height=12, width=16, channels=3)
    assert np.array_equal(decode(encoded, spec, LIMIT), decode(upright, spec, LIMIT)[::-1, ::-1])


def test_the_canvas_is_known_from_every_kind_of_header() -> None:
    for options in ({"lossless": True}, {"lossless": False}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}):
        assert canvas(file_of(picture("RGBA", 37, 23), "WEBP", **options)) == (37, 23)
    assert canvas(webp_canvas(1234)) == (1234, 1234)


def test_a_canvas_that_is_too_large_is_not_even_made() -> None:
    tracemalloc.start()
    for encoded in (webp_canvas(16_000), file_of(picture("RGB", 40, 30), "WEBP")):
        with pytest.raises(InvalidRequest, match=r"the image has \d+ x \d+ pixels; at most 1000 are accepted"):
            open_image(encoded, 1000)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_broken_animation_is_refused() -> None:
    still = file_of(picture("RGBA", 16, 12), "WEBP", lossless=True)
    whole = webp_animation(16, 12, [(0, 0, still)])
    spec = InputSpec(height=12, width=16, channels=3)
    decode(whole, spec, LIMIT)
    for cut in range(30, len(whole) - 1, 7):
        with pytest.raises(InvalidRequest):
            decode(whole[:cut], spec, LIMIT)
    frameless = riff(b"RIFF", b"WEBP" + whole[12:44])
    outside = webp_animation(16, 12, [(2, 0, still)])
    larger = bytearray(whole)
    struct.pack_into("<I", larger, whole.index(b"ANMF") + 14, 7)  # the frame's width
    for broken in (frameless, outside, bytes(larger)):
        with pytest.raises(InvalidRequest, match="the image's header is broken"):
            decode(broken, spec, LIMIT)
