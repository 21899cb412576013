"""Sizes, crops and borders. That they are those of the frameworks, tests/conformance/pixels proves; the digests are of its run."""

import hashlib
import io
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.errors import InvalidRequest
from service.model.contract import InputSpec
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
    """Of pictures larger and smaller than the input. None is high: of those, other versions of Pillow resize the height last."""
    digest = hashlib.sha256()
    for height, width in ((40, 61), (30, 77), (9, 11), (22, 26), (1, 5)):
        digest.update(resized(noise(height, width), spec_of(23, 21, **SPECS[name])).tobytes())
    return digest.hexdigest()[:16]


DIGESTS = {
    "stretch nearest uint8": "49de6708150b3e79", "stretch bilinear uint8": "b9be8973d8eae453",
    "stretch bicubic uint8": "e8b4fbbe9aa85324", "stretch lanczos uint8": "9ad52436d383ef5a",
    "stretch box uint8": "1d650a5b3af5ab17", "stretch hamming uint8": "2096157f2ecb9e20",
    "stretch tf-bilinear uint8": "9a43781f28cc2db8", "stretch tf-bilinear float32": "df145ac749499185",
    "stretch cv2-linear uint8": "9255540e1ecd9c5b", "cover nearest uint8": "18870826c12bb81e",
    "cover bilinear uint8": "d70a9232e492705c", "cover bicubic uint8": "650b4d1fdca0044e",
    "cover lanczos uint8": "ef8b64c4be06193f", "cover box uint8": "aaffce1f2f6d9ec1",
    "cover hamming uint8": "7d32cc550e55d796", "cover tf-bilinear uint8": "283cae68edd5616b",
    "cover tf-bilinear float32": "571891af91457b07", "cover cv2-linear uint8": "ec5afc9e9e0af738",
    "pad nearest uint8": "00b3346f107106fd", "pad bilinear uint8": "2444b329b1051bf2",
    "pad bicubic uint8": "8cc55fa83dbc9d4c", "pad lanczos uint8": "b36e538d33df9e04",
    "pad box uint8": "f9535ab391e900c6", "pad hamming uint8": "5eb5befa052f7f0d",
    "pad tf-bilinear uint8": "d8d3ba19761f3790", "pad tf-bilinear float32": "6ee08a6e9c83da48",
    "pad cv2-linear uint8": "3c9addff2b9853ba", "short:29 nearest uint8": "327f6071a07ef85c",
    "short:29 bilinear uint8": "3938763d0351d5ff", "short:29 bicubic uint8": "5f7227242baf32a2",
    "short:29 lanczos uint8": "4528f428af8406ff", "short:29 box uint8": "7c94a70699031b83",
    "short:29 hamming uint8": "4d81929cee292905", "short:29 tf-bilinear uint8": "476eebeddeaf0928",
    "short:29 tf-bilinear float32": "ac9b5f674724736c", "short:29 cv2-linear uint8": "712436af6345ae0a",
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_the_pixels_are_those_that_were_proved(name: str) -> None:
    assert digest_of(name) == DIGESTS[name]


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
