"""Image files as images of one size: their headers, the input that suits them, and their pixels at that size.

Files are read twice: first their headers, to choose a size, then whole, keeping only the pixels at that size. Pillow decodes and
resizes without Python's lock, so threads speed up large images (500x375 JPEG: 3.2 ms in one thread, 1.7 in two). One thread reads
headers and small images, as passing the lock on takes longer than decoding (32x32 JPEG: 0.22 ms in one thread, 0.27 in two).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.progress import OnProgress
from service.errors import InvalidRequest, UserError
from service.model.input_spec import InputSpec
from service.model.preprocessing import open_image, to_pixels

MAX_PIXELS = 1 << 26
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif",
    ".avifs", ".heic", ".heif", ".hif",
)  # fmt: skip
"""Of the formats that are served, HEIC with an extra."""

_NATURAL_SIZE_UP_TO = 64
_SIZES = (32, 64, 128, 224)
_GRAY_MODES = ("1", "L", "LA", "I", "F")
_FILES_A_TASK = 64
_SMALL_PIXELS = 128 * 128
_MEMORY_SHARE = 0.7

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Header(NamedTuple):
    """The size (width, height) of an image, and whether it is gray."""

    size: tuple[int, int]
    gray: bool


class ImageFile(NamedTuple):
    """An image's file, the index of its class, and its header."""

    path: Path
    label: int
    header: Header


def read_headers(paths: Sequence[Path], step: str, on_progress: OnProgress) -> list[Header | str]:
    """The header of each file, or what is wrong with the file."""
    return list(_each(_read_header, paths, step, on_progress, threads=1))


def suitable_input(files: Sequence[ImageFile]) -> InputSpec:
    """The default input for these images.

    If all have the same size of at most 64x64, that size. Otherwise the smallest square of 32, 64, 128 and 224 that is not smaller
    than the median of their longer sides, or 224. Gray if all are gray.
    """
    width, height = files[0].header.size
    if len({file.header.size for file in files}) > 1 or max(width, height) > _NATURAL_SIZE_UP_TO:
        longer = float(np.median([max(file.header.size) for file in files]))
        width = height = next((side for side in _SIZES if longer <= side), _SIZES[-1])
    return InputSpec(height=height, width=width, channels=1 if all(file.header.gray for file in files) else 3)


def describe(files: Sequence[ImageFile]) -> str:
    """The sizes and colours of the images, in words."""
    widths, heights = zip(*(file.header.size for file in files), strict=True)
    smallest, largest = f"{min(heights)}x{min(widths)}", f"{max(heights)}x{max(widths)}"
    gray = sum(file.header.gray for file in files)
    colours = "gray" if gray == len(files) else "colour" if gray == 0 else f"{gray:,} of {len(files):,} gray"
    return f"{smallest if smallest == largest else f'{smallest} to {largest}'}, {colours}"


def check_memory(images: int, spec: InputSpec, copies: int = 1) -> None:
    """Raises UserError if `copies` copies of so many images at the size of `spec` do not fit into this machine's memory."""
    needed = copies * images * spec.size_bytes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _MEMORY_SHARE * memory:
        raise UserError(
            f"{images:,} images of {'x'.join(map(str, spec.shape))} take {needed / 1e9:.1f} GB"
            f"{f' in {copies} copies' if copies > 1 else ''}, and this machine has {memory / 1e9:.1f} GB: "
            "choose a smaller --image-size"
        )


def read_pixels(
    files: Sequence[ImageFile], spec: InputSpec, step: str, on_progress: OnProgress
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Decodes images as the server does: uint8[N,H,W,C], and for each file what is wrong with it, if anything.

    The pixels of a broken file are 0.
    """
    pixels = np.zeros((len(files), *spec.shape), spec.dtype)

    def decode_into(index: int) -> str | None:
        try:
            pixels[index] = to_pixels(open_image(files[index].path.read_bytes(), MAX_PIXELS), spec)
        except OSError as error:
            return error.strerror or str(error)
        except InvalidRequest as error:
            return str(error)
        return None

    small = not files or float(np.median([file.header.size[0] * file.header.size[1] for file in files])) <= _SMALL_PIXELS
    threads = 1 if small else len(os.sched_getaffinity(0))
    return pixels, list(_each(decode_into, range(len(files)), step, on_progress, threads))


def _read_header(path: Path) -> Header | str:
    try:
        with path.open("rb") as file:
            image = open_image(file.read(), MAX_PIXELS)
    except OSError as error:
        return error.strerror or str(error)
    except InvalidRequest as error:
        return str(error)
    return Header(image.size, image.mode in _GRAY_MODES or image.mode.startswith("I;16"))


def _each(
    function: Callable[[_Item], _Result], items: Sequence[_Item], step: str, on_progress: OnProgress, threads: int
) -> Iterator[_Result]:
    """The results of a function for each item, in order; the threads stop when the iterator is closed."""
    tasks = [items[at : at + _FILES_A_TASK] for at in range(0, len(items), _FILES_A_TASK)]
    pool = ThreadPoolExecutor(threads)
    done = 0
    try:
        for results in pool.map(lambda task: [function(item) for item in task], tasks):
            done += len(results)
            on_progress(step, done, len(items))
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)
