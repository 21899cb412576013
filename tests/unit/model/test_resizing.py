"""Sizes, crops and borders. That they are those of the frameworks, tests/conformance/pixels proves; the digests are of its run."""

import hashlib
import io
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.errors import InvalidRequest
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode, encode_png, open_image, to_pixels
from service.model.resizing import bytes_to_resize, resized_pixels

LIMIT = 10**6
PILLOW_FILTERS = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
FILTERS = [*PILLOW_FILTERS, "tf-bilinear", "cv2-linear"]
RESIZES = ["stretch", "cover", "pad", "short:29"]


def spec_of(height: int, width: int, channels: int = 3, **further: Any) -> InputSpec:
    return InputSpec.model_validate({"height": height, "width": width, "channels": channels, **further})


def resized(picture: NDArray[np.uint8], spec: InputSpec) -> NDArray[Any]:
    return to_pixels(Image.fromarray(picture), spec)


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


SPECS = {
    f"{resize} {filter_} {dtype}": {"resize": resize, "filter": filter_, "dtype": dtype}
    | ({"crop": "center"} if resize.startswith("short") else {"pad": {"color": (124, 116, 104)}} if resize == "pad" else {})
    for resize in RESIZES
    for filter_ in FILTERS
    for dtype in (["uint8", "float32"] if filter_ == "tf-bilinear" else ["uint8"])
}


def digest_of(name: str) -> str:
    """Of pictures wider, higher, larger and smaller than the input."""
    digest = hashlib.sha256()
    for height, width in ((61, 40), (30, 77), (11, 9), (26, 22), (1, 5)):
        digest.update(resized(noise(height, width), spec_of(23, 21, **SPECS[name])).tobytes())
    return digest.hexdigest()[:16]


DIGESTS = {
    "stretch nearest uint8": "477d8ac2bd41562e", "stretch bilinear uint8": "2c2ec2ae7adc1488",
    "stretch bicubic uint8": "84f43597aeaa91d6", "stretch lanczos uint8": "2625b3da286fcdc5",
    "stretch box uint8": "a9a1885f838b7bad", "stretch hamming uint8": "ace3beaea70ca9e3",
    "stretch tf-bilinear uint8": "d13d1f00750e76c9", "stretch tf-bilinear float32": "ed7d1daedc2069e8",
    "stretch cv2-linear uint8": "d2851d4bcc06e4ae", "cover nearest uint8": "fcfb5772ceda6f24",
    "cover bilinear uint8": "1b2ceecf0c7dc125", "cover bicubic uint8": "92e69778801cde35",
    "cover lanczos uint8": "f50071d7350a3538", "cover box uint8": "e15f67416285d138",
    "cover hamming uint8": "0f37ab19a54342a8", "cover tf-bilinear uint8": "9c0bcc46338bac64",
    "cover tf-bilinear float32": "639a2774e1d9a440", "cover cv2-linear uint8": "ad8df11ed4fe2ef2",
    "pad nearest uint8": "10b310a469bf75b3", "pad bilinear uint8": "7740e87c31fdecfc",
    "pad bicubic uint8": "ec07994b751bad4e", "pad lanczos uint8": "2667da1db030262c",
    "pad box uint8": "ee38fb71e2894475", "pad hamming uint8": "2dc86309b821efcd",
    "pad tf-bilinear uint8": "47c21109a9b6d2a3", "pad tf-bilinear float32": "bf858e950c9f6d92",
    "pad cv2-linear uint8": "40edb04eb724f66e", "short:29 nearest uint8": "64e29899e5761520",
    "short:29 bilinear uint8": "68bf7873608174ce", "short:29 bicubic uint8": "7ffb24e4e5b022fd",
    "short:29 lanczos uint8": "32e0b533ea48b8f7", "short:29 box uint8": "daf2f14d31760e1f",
    "short:29 hamming uint8": "652c9671ed771613", "short:29 tf-bilinear uint8": "f71426cfbeb56e47",
    "short:29 tf-bilinear float32": "da9e11e756ddfbc1", "short:29 cv2-linear uint8": "22c529df6eb66083",
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_the_pixels_are_those_that_were_proved(name: str) -> None:
    assert digest_of(name) == DIGESTS[name]


SIDES = st.integers(1, 60)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3]))
@settings(max_examples=100, deadline=None)
def test_cover_and_pad_are_pillows_fit_and_pad(height: int, width: int, rows: int, columns: int, channels: int) -> None:
    image = Image.fromarray(noise(height, width)).convert("L" if channels == 1 else "RGB")
    nearest = Image.Resampling.NEAREST  # it has no order: Pillow's other filters change one side first, some versions the other
    spec = spec_of(rows, columns, channels, resize="cover", filter="nearest")
    assert to_pixels(image, spec).tobytes() == ImageOps.fit(image, (columns, rows), nearest).tobytes()
    assume(round(width * rows / height) and round(height * columns / width))  # or Pillow leaves nothing
    for align, place in (("center", 0.5), ("start", 0)):
        spec = spec_of(rows, columns, channels, resize="pad", filter="nearest", pad={"color": (1, 2, 3), "align": align})
        color = (1, 2, 3) if channels == 3 else 1
        assert to_pixels(image, spec).tobytes() == ImageOps.pad(image, (columns, rows), nearest, color, (place, place)).tobytes()


@pytest.mark.parametrize(("resize", "crop"), [*itertools.product([*RESIZES, "stretch:9x40", "cover:31x19", "pad:31x19", "none"],
                                                                ["center", "center-floor"])])  # fmt: skip
@pytest.mark.parametrize("filter_", FILTERS)
def test_every_input_gives_its_shape_and_type_for_pictures_of_any_size(resize: str, crop: str, filter_: str) -> None:
    for (height, width), channels, dtype in itertools.product([(1, 1), (1, 40), (33, 2), (20, 21)], [1, 3], ["uint8", "float32"]):
        spec = spec_of(12, 15, channels, resize=resize, crop=crop, filter=filter_, dtype=dtype)
        found = resized(np.full((height, width, 3), 200, np.uint8), spec)
        assert (found.shape, found.dtype) == (spec.shape, np.dtype(dtype))
        assert set(np.unique(found)) <= {0, 200}
        assert (found == 200).any()


@pytest.mark.parametrize("filter_", FILTERS)
def test_a_crop_is_a_part_of_the_whole(filter_: str) -> None:
    picture = noise(50, 70)
    whole = resized(picture, spec_of(31, 43, resize="stretch", filter=filter_))
    for crop, top in (("center", 8), ("center-floor", 7)):  # of 15 rows too many, half is 7.5
        part = resized(picture, spec_of(16, 21, resize="stretch:31x43", filter=filter_, crop=crop))
        assert np.array_equal(part, whole[top : top + 16, 11:32])


@pytest.mark.parametrize(("crop", "before"), [("center", 1), ("center-floor", 2)])
def test_where_a_picture_is_smaller_than_the_crop_there_is_black(crop: str, before: int) -> None:
    found = resized(np.full((5, 9, 3), 200, np.uint8), spec_of(8, 9, resize="none", crop=crop))
    assert (found[:before] == 0).all()
    assert (found[before : before + 5] == 200).all()
    assert (found[before + 5 :] == 0).all()


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize(("align", "first"), [("center", 5), ("start", 0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_border_has_its_colour_and_its_place(filter_: str, align: str, first: int, channels: int) -> None:
    pad = {"color": (9, 8, 7), "align": align}
    found = resized(np.full((10, 20, 3), 200, np.uint8), spec_of(20, 20, channels, resize="pad", filter=filter_, pad=pad))
    assert (found[first : first + 10] == 200).all()
    border = np.concatenate([found[:first], found[first + 10 :]])
    assert (border == np.array((9, 8, 7)[:channels])).all()


def test_the_shorter_side_is_resized_and_the_fraction_of_the_longer_one_cut_off() -> None:
    for height, width, expected in ((7, 5, (5, 7)), (5, 7, (7, 5)), (100, 3, (3, 100))):
        spec = spec_of(5, 5, resize="short:5", crop="center")
        assert resized_pixels((width, height), spec) >= 5 * int(5 * max(expected) / min(expected))
    column = np.repeat(np.arange(10, dtype=np.uint8)[:, np.newaxis, np.newaxis] * 20, 3, 2).repeat(7, 1)
    found = resized(column, spec_of(4, 3, resize="short:3", crop="center", filter="nearest"))  # 3 * 10 / 7 = 4.3
    assert found[:, 0, 0].tolist() == [20, 60, 120, 160]


def test_a_picture_that_is_not_resized_must_have_the_size() -> None:
    picture = noise(9, 7)
    assert np.array_equal(resized(picture, spec_of(9, 7, resize="none")), picture)
    with pytest.raises(InvalidRequest, match="the image is 7 x 9; the model takes images of 9 x 7, which are not resized"):
        resized(picture, spec_of(7, 9, resize="none"))


@pytest.mark.parametrize("size", [(60_000, 3), (3, 60_000)])
def test_a_long_and_thin_picture_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    spec = spec_of(224, 224, resize="short:256", crop="center")
    cut_short = file_of(Image.new("RGB", size))[:60]
    with pytest.raises(InvalidRequest, match=r"too long and thin: .*5120000.* pixels; at most 16777216 are accepted"):
        decode(cut_short, spec, LIMIT)
    for filter_ in ("tf-bilinear", "cv2-linear"):  # compute what the crop keeps
        found = decode(file_of(Image.new("RGB", size, (1, 2, 3))), spec.model_copy(update={"filter": filter_}), LIMIT)
        assert (found == [1, 2, 3]).all()


def test_what_a_short_side_of_many_pixels_gives_is_accepted_up_to_four_squares() -> None:
    spec = spec_of(8, 8, resize="short:4096", crop="center", filter="nearest")
    image = Image.new("L", (4, 1))
    assert to_pixels(image, spec).shape == spec.shape
    with pytest.raises(InvalidRequest, match="4096 x 20480 pixels; at most 67108864"):
        to_pixels(Image.new("L", (1, 5)), spec)


def test_the_memory_of_a_resize_counts_what_it_passes_through() -> None:
    stretched = spec_of(2, 4096)
    assert bytes_to_resize((1, 60_000), stretched) > 4 * 4096 * 60_000
    assert bytes_to_resize((60_000, 1), stretched) > 4 * 4096 * 60_000  # it may be turned
    assert bytes_to_resize((60_000, 1), stretched.model_copy(update={"exif": "ignore"})) < 2**20
    assert bytes_to_resize((4000, 3000), spec_of(224, 224)) < 4 * 2**20
    assert bytes_to_resize((300, 200), spec_of(8, 8, resize="short:8192", crop="center")) > 4 * 8192 * 8192


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "I", "F", "LAB"])
def test_dropped_alpha_is_pillows_convert(mode: str, channels: int) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 600, (9, 7), np.uint16))
    elif mode in ("LA", "LAB"):
        image = Image.merge(mode, colours.split()[: len(mode)])
    else:
        image = colours.convert("RGB" if mode in ("CMYK", "P") else "L" if mode in ("I", "F") else "RGBA").convert(mode)
    transparency = {"transparency": image.getpixel((0, 0))} if mode in ("L", "P", "RGB") else {}
    encoded = file_of(image, "TIFF" if mode in ("CMYK", "I", "F", "LAB") else "PNG", **transparency)
    spec = spec_of(9, 7, channels, alpha="drop")
    if mode == "LAB" and channels == 1:  # as by Pillow
        with pytest.raises(InvalidRequest, match="pixels of the kind LAB, which cannot be converted to L"):
            decode(encoded, spec, LIMIT)
        return
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("L" if channels == 1 else "RGB"))
    found = decode(encoded, spec, LIMIT)
    assert np.array_equal(found, expected.reshape(9, 7, channels))


@pytest.mark.parametrize("turn", range(2, 9))
def test_an_ignored_orientation_leaves_a_picture_as_it_is(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = noise(9, 7)
    encoded = file_of(Image.fromarray(picture), exif=exif)
    assert np.array_equal(decode(encoded, spec_of(9, 7, exif="ignore"), LIMIT), picture)
    turned = np.asarray(ImageOps.exif_transpose(open_image(encoded, LIMIT)))
    assert np.array_equal(decode(encoded, spec_of(*turned.shape[:2], resize="none"), LIMIT), turned)


def test_unrounded_pixels_lie_between_the_rounded_ones() -> None:
    encoded = encode_png(noise(40, 30))
    exact = decode(encoded, spec_of(23, 21, filter="tf-bilinear", dtype="float32"), LIMIT)
    rounded = decode(encoded, spec_of(23, 21, filter="tf-bilinear"), LIMIT)
    assert (exact != np.rint(exact)).any()
    assert np.array_equal(np.rint(exact), rounded)
    assert np.abs(decode(encoded, spec_of(23, 21, filter="cv2-linear"), LIMIT) - exact).max() <= 1
