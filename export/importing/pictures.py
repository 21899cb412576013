"""The pictures that an import is tried on: labelled ones of the user, or some that are always there.

Real pictures matter: on noise a classifier saturates, and what it computes of zeros shows nothing. Without the user's, crops of the
photographs that scikit-learn brings are used, at odd sizes, and beside them pictures that are drawn and noise.
"""

import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from export.data.image_folder import list_folder
from export.evaluation.label_mapping import map_labels
from export.files import read_file
from export.progress import OnProgress, ignore_progress
from service.model.preprocessing import encode_png

_CROPS = 12
_DRAWN = 4
_NOISE = 2
_SHORT_SIDES = (96, 320)
PROBE_ITEMS = 24


@dataclass(frozen=True)
class LabelledFolder:
    """The labelled pictures of a folder, all parts together.

    Attributes:
        name: of the folder.
        labels: names of its classes.
        paths: of its N pictures.
        truth: int64[N], indices of `labels`.
        skipped: a line for each file that was left out.
        digest: changes when the pictures or their classes do.
    """

    name: str
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    truth: NDArray[np.int64]
    skipped: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, index: int) -> bytes:
        """The bytes of a picture's file."""
        return read_file(self.paths[index])


def read_folder(folder: Path, on_progress: OnProgress = ignore_progress) -> LabelledFolder:
    """All labelled pictures of a folder. Raises UserError as `image_folder.list_folder`."""
    listing = list_folder(folder, on_progress)
    files = [file for part in listing.parts.values() for file in part]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{listing.labels[file.label]}\0{hashlib.sha256(read_file(file.path)).hexdigest()}\n".encode())
    truth = np.array([file.label for file in files], np.int64)
    return LabelledFolder(
        folder.resolve().name, listing.labels, tuple(file.path for file in files), truth, tuple(listing.skipped), digest.hexdigest()
    )


def probe_pictures(folder: LabelledFolder | None) -> tuple[list[bytes], str]:
    """Encoded pictures to try a graph on, and what they are, in words."""
    if folder is not None and len(folder):
        order = np.random.default_rng(0).permutation(len(folder))
        chosen = sorted(_one_of_each_class_first(folder.truth[order], order)[:PROBE_ITEMS])
        return [folder.encoded(index) for index in chosen], f"{len(chosen)} pictures of {folder.name}"
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


def require_labels(folder: LabelledFolder, labels: Sequence[str]) -> NDArray[np.int64]:
    """The classes of the pictures as indices of a model's labels, int64[N]. Raises UserError if the model lacks one."""
    return np.array(map_labels(folder.labels, labels, way_out="class folders are named as labels are"), np.int64)[folder.truth]
