"""MNIST: the four IDX files that its authors published."""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.data.downloads import LabelledPixels, PublishedDataset, check_checksum, data_folder, fetch
from export.files import read_file
from export.progress import OnProgress
from service.errors import UserError


@dataclass(frozen=True)
class IdxFile:
    """A gzipped file in the IDX format, with the SHA-256 of the file (`packed`) and of what it unpacks to (`content`)."""

    name: str
    magic: int
    packed: str
    content: str


_IMAGES, _LABELS = 0x0803, 0x0801  # IDX: unsigned bytes in three dimensions, and in one

URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
FILES = (
    IdxFile(
        "train-images-idx3-ubyte.gz", _IMAGES,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    IdxFile(
        "train-labels-idx1-ubyte.gz", _LABELS,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    IdxFile(
        "t10k-images-idx3-ubyte.gz", _IMAGES,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte.gz", _LABELS,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)  # fmt: skip


def load_mnist(folder: Path | None, on_progress: OnProgress) -> PublishedDataset:
    """70,000 handwritten digits, 28x28, gray, white on black (LeCun, Cortes and Burges): 60,000 for training, 10,000 for test.

    Args:
        folder: where the files are, gzipped or not, or are downloaded to; by default the user's cache.
        on_progress: called with each step.

    Raises:
        UserError: a file is missing and cannot be downloaded, is broken or is not MNIST's; the message names it.
    """
    folder = data_folder(folder)
    arrays = []
    for file in FILES:
        unpacked = folder / file.name.removesuffix(".gz")
        path = folder / file.name
        if unpacked.is_file() and not path.exists():
            path = unpacked
        else:
            fetch(path, URLS, f"sha256:{file.packed}", on_progress)
        content = _unpacked(path)
        arrays.append(read_idx(content, file.magic, path))
        check_checksum(path, "unpacked content", "SHA-256", hashlib.sha256(content).hexdigest(), file.content)
    training, test = (LabelledPixels(arrays[at], arrays[at + 1].astype(np.int64)) for at in (0, 2))
    return PublishedDataset(tuple(str(digit) for digit in range(10)), training, test)


def read_idx(content: bytes, magic: int, path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file: a magic number whose last byte is the number of dimensions, the sizes, then unsigned bytes.

    Raises:
        UserError: the magic number is another, or the length does not match the sizes; the message names `path`.
    """
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    header = np.frombuffer(content[:start], dtype=">u4") if len(content) >= start else None
    if header is None or header[0] != magic:
        kind = "images" if magic == _IMAGES else "labels"
        raise UserError(f"{path}: not an IDX file of {kind}: it begins with {content[:4].hex()!r} and not {magic:08x}")
    shape = tuple(int(side) for side in header[1:])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise UserError(
            f"{path}: {len(content):,} bytes unpacked, but {' x '.join(map(str, shape))} need {expected:,}: cut short or damaged"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()  # writable, as PyTorch requires


def _unpacked(path: Path) -> bytes:
    content = read_file(path)
    try:
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: cut short or damaged ({error})") from None
