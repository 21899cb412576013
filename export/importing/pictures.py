"""The pictures that an import is tried on: labelled ones of the user, or some that are always there.

Real pictures matter: on noise a classifier saturates, and what it computes of zeros shows nothing. Without the user's, crops of the
photographs that scikit-learn brings are used, at odd sizes, and beside them pictures that are drawn and noise.
"""

import functools
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from export.data.image_files import MAX_PIXELS
from export.data.labelled_pictures import LabelledPictures
from export.evaluation.label_mapping import map_labels
from service.errors import InvalidRequest, UserError
from service.model.input_spec import InputSpec
from service.model.preprocessing import decode, encode_png

_CROPS = 12
_DRAWN = 4
_NOISE = 2
_SHORT_SIDES = (96, 320)
_SMALLEST = InputSpec(height=1, width=1, channels=3, filter="nearest")
PROBE_ITEMS = 24


def intact_pictures(folder: LabelledPictures, order: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """The index and the bytes of each picture that can be decoded, in this order. The others are named once all are measured."""
    for index in order:
        try:
            encoded = folder.encoded(index)
            decode(encoded, _SMALLEST, MAX_PIXELS)
        except (OSError, InvalidRequest, UserError):
            continue
        yield index, encoded


def probe_pictures(folder: LabelledPictures | None) -> tuple[list[bytes], str]:
    """Encoded pictures to try a graph on, and what they are, in words. Raises UserError if none of the folder can be decoded."""
    if folder is not None:
        order = np.random.default_rng(0).permutation(len(folder))
        found = intact_pictures(folder, _one_of_each_class_first(folder.classes[order], order))
        chosen = sorted(itertools.islice(found, PROBE_ITEMS))
        if not chosen:
            raise UserError(f"{folder.name}: none of its {len(folder)} pictures can be decoded")
        return [encoded for _, encoded in chosen], f"{len(chosen)} pictures of {folder.name}"
    return list(generated_pictures()), f"{_CROPS} crops of photographs, {_DRAWN} drawn pictures and {_NOISE} of noise"


@functools.cache
def generated_pictures() -> tuple[bytes, ...]:
    """PNG files of crops of real photographs, of drawn pictures, and of noise; the same ones every time."""
    random = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    pictures = [_crop(photos[at % len(photos)], random) for at in range(_CROPS)]
    pictures += [_drawn(random) for _ in range(_DRAWN)]
    pictures += [Image.fromarray(random.integers(0, 256, (160, 200, 3), np.uint8)) for _ in range(_NOISE)]
    return tuple(encode_png(np.asarray(picture)) for picture in pictures)


def small_png(encoded: bytes, side: int) -> bytes:
    """A PNG of a picture whose longer side is at most `side`, in 32 levels a channel: small enough for a contract."""
    opened = Image.open(io.BytesIO(encoded))
    gray = opened.mode in ("1", "L", "LA", "I", "F") or opened.mode.startswith("I;16")
    picture = opened.convert("L" if gray else "RGB")
    picture.thumbnail((side, side))
    return encode_png(np.asarray(picture, np.uint8) & np.uint8(0xF8))


def _one_of_each_class_first(truth: NDArray[np.int64], order: NDArray[np.intp]) -> Sequence[int]:
    _, first = np.unique(truth, return_index=True)
    return [int(index) for index in (*order[first], *np.delete(order, first))]


def _crop(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    width, height = (int(random.integers(*_SHORT_SIDES)) for _ in range(2))
    left, top = int(random.integers(0, photo.width - width)), int(random.integers(0, photo.height - height))
    return photo.crop((left, top, left + width, top + height))


def _drawn(random: np.random.Generator) -> Image.Image:
    """Shapes on a ground that changes slowly."""
    coarse = random.integers(0, 256, (4, 5, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((250, 190), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = int(random.integers(0, 200)), int(random.integers(0, 140))
        box = (left, top, left + int(random.integers(10, 80)), top + int(random.integers(10, 80)))
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return picture


def require_labels(folder: LabelledPictures, labels: Sequence[str]) -> NDArray[np.int64]:
    """The classes of the pictures as indices of a model's labels, int64[N]. Raises UserError if the model lacks one."""
    return np.array(map_labels(folder.labels, labels, way_out="class folders are named as labels are"), np.int64)[folder.classes]
