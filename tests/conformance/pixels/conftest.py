"""Compares the pixels that a model is served with those that the frameworks make, picture by picture.

Run by `make pixels`, in an environment of its own that holds the frameworks; Pillow, numpy and PyTorch are those of the server's.
"""

import io
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile(
    "pixels", max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("pixels")

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_TALLY: dict[str, list[int]] = {}


def import_torchvision() -> None:
    """torchvision's operators, which are compiled, may not fit this PyTorch: only its Python is needed here."""
    register = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        import torchvision.transforms  # noqa: F401
    finally:
        torch.library.register_fake = register


class Picture(NamedTuple):
    """A picture file, how it was made, and its (width, height) before it is turned."""

    encoded: bytes
    kind: str
    size: tuple[int, int]

    def opened(self) -> Image.Image:
        """As frameworks open it."""
        return Image.open(io.BytesIO(self.encoded))

    def loaded(self, channels: int, exif: str = "ignore") -> Image.Image:
        """As frameworks load it."""
        image = self.opened()
        return (ImageOps.exif_transpose(image) if exif == "apply" else image).convert("L" if channels == 1 else "RGB")


KINDS = (
    "PNG L", "PNG RGB", "PNG RGBA", "PNG LA", "PNG P", "PNG P transparent", "PNG L transparent", "PNG RGB transparent", "PNG 1",
    "PNG I;16", "PNG RGB turned", "JPEG L", "JPEG RGB", "JPEG CMYK", "JPEG RGB turned", "WEBP RGB", "WEBP RGBA", "GIF P",
    "GIF P transparent", "BMP RGB", "TIFF CMYK", "TIFF RGBA", "TIFF I;16", "TIFF RGB turned", "PPM RGB",
)  # fmt: skip


def picture(kind: str, width: int, height: int, seed: int) -> Picture:
    """A picture of smooth and of random parts."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (*random.integers(1, 9, 2), 4), np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    noise = Image.fromarray(random.integers(0, 256, (height, width, 4), np.uint8))
    image = Image.blend(image, noise, float(random.choice([0, 0.2, 1])))
    file_format, mode, *how = kind.split()
    options: dict[str, Any] = {}
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, random.choice([300, 65536]), (height, width), np.uint16))
    elif mode in ("LA", "1"):
        image = image.convert("LA" if mode == "LA" else "L").convert(mode)
    elif mode == "P":
        image = image.convert("RGB").quantize(int(random.integers(2, 40)))
    else:
        image = (image.convert("RGB") if mode == "CMYK" else image).convert(mode)
    if how == ["transparent"]:
        options["transparency"] = image.getpixel((0, 0))
    if how == ["turned"]:
        exif = Image.Exif()
        exif[0x0112] = int(random.integers(2, 9))
        options["exif"] = exif
    if file_format == "WEBP":
        options["lossless"] = bool(random.integers(2))
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return Picture(buffer.getvalue(), kind, (width, height))


SIDES = st.integers(1, 12) | st.integers(1, 160)
PICTURES = st.builds(picture, st.sampled_from(KINDS), SIDES, SIDES, st.integers(0, 2**32 - 1))
TARGETS = st.integers(1, 96)
CHANNELS = st.sampled_from([3, 3, 1])


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Callable[[NDArray[Any], NDArray[Any]], None]:
    """Asserts that pixels are the same, shape, type and every value, and counts what was compared."""
    tally = _TALLY.setdefault(request.node.originalname, [0, 0, 0])

    def compare(found: NDArray[Any], expected: NDArray[Any]) -> None:
        expected = np.asarray(expected)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        different = int((found != expected).sum())
        tally[0] += 1
        tally[1] += found.size
        tally[2] += different
        assert different == 0, f"of {found.size} values {different} differ, by up to {np.abs(found - expected.astype(float)).max()}"

    return compare


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of what was compared."""
    terminalreporter.section("pixels")
    for name, (pictures, values, different) in _TALLY.items():
        what = name.removeprefix("test_").replace("_", " ")
        terminalreporter.write_line(f"{pictures:>7} pictures {values:>11} values {different:>7} differ   {what}")
