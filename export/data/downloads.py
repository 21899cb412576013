"""MNIST and CIFAR-10, from the files that their authors published.

A file that is already in the folder is used; one that is missing is downloaded. Either way its content must be the published one,
by its checksum: neither half a file nor another data set with the same file names is trained on.
"""

import gzip
import hashlib
import math
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.files import read_file
from export.progress import OnProgress
from service.errors import UserError


class Pictures(NamedTuple):
    """uint8[N,h,w] or uint8[N,h,w,3], and int64[N] indices of classes."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Published(NamedTuple):
    """A data set as its authors split it; `labels` are the names of the classes."""

    labels: tuple[str, ...]
    training: Pictures
    test: Pictures


@dataclass(frozen=True)
class _Idx:
    """A file in the IDX format, gzipped. Both checksums are SHA-256: of the file that is downloaded, and of what it unpacks to."""

    name: str
    magic: int
    packed: str
    content: str


_IMAGES, _LABELS = 0x0803, 0x0801  # IDX: unsigned bytes in three dimensions, and in one

MNIST_URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
MNIST_FILES = (
    _Idx(
        "train-images-idx3-ubyte.gz", _IMAGES,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    _Idx(
        "train-labels-idx1-ubyte.gz", _LABELS,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    _Idx(
        "t10k-images-idx3-ubyte.gz", _IMAGES,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    _Idx(
        "t10k-labels-idx1-ubyte.gz", _LABELS,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)  # fmt: skip

CIFAR10_URLS = ("https://www.cs.toronto.edu/~kriz/",)
CIFAR10_FILE = "cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
_CIFAR10_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def mnist(folder: Path | None, on_progress: OnProgress) -> Published:
    """70,000 handwritten digits, 28x28, gray, white on black (LeCun, Cortes and Burges): 60,000 for training, 10,000 for test.

    Raises:
        UserError: a file is missing and cannot be downloaded, or is broken, or is not MNIST's; the message names it.
    """
    folder = _folder(folder)
    arrays = []
    for file in MNIST_FILES:
        unpacked = folder / file.name.removesuffix(".gz")
        path = folder / file.name
        if unpacked.is_file() and not path.exists():
            path = unpacked
        else:
            _fetch(path, MNIST_URLS, f"sha256:{file.packed}", on_progress)
        content = _unpacked(path)
        arrays.append(read_idx(content, file.magic, path))
        _check(path, "unpacked content", "SHA-256", hashlib.sha256(content).hexdigest(), file.content)
    training, test = (Pictures(arrays[at], arrays[at + 1].astype(np.int64)) for at in (0, 2))
    return Published(tuple(str(digit) for digit in range(10)), training, test)


def read_idx(content: bytes, magic: int, path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file (magic number, sizes, then unsigned bytes), of as many dimensions as the magic number's last byte.

    Raises:
        UserError: the content is of another kind, or shorter or longer than it says; the message names `path`.
    """
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    header = np.frombuffer(content[:start], dtype=">u4") if len(content) >= start else None
    if header is None or header[0] != magic:
        kind = "pictures" if magic == _IMAGES else "labels"
        raise UserError(f"{path}: not an IDX file of {kind}: it begins with {content[:4].hex()!r} and not {magic:08x}")
    shape = tuple(int(side) for side in header[1:])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise UserError(
            f"{path}: {len(content):,} bytes unpacked, but {' x '.join(map(str, shape))} need {expected:,}: cut short or damaged"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()  # that one can write to it, as PyTorch asks


def cifar10(folder: Path | None, on_progress: OnProgress) -> Published:
    """60,000 photos of ten kinds of things, 32x32, RGB (Krizhevsky, 2009): 50,000 for training, 10,000 for test.

    Raises:
        UserError: as `mnist`.
    """
    path = _folder(folder) / CIFAR10_FILE
    _fetch(path, CIFAR10_URLS, f"md5:{CIFAR10_MD5}", on_progress)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        _check(path, "content", "MD5", found, CIFAR10_MD5)
        batches = {}
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                content = archive.extractfile(member)
                if content is not None and name in (*_CIFAR10_BATCHES, "batches.meta"):
                    batches[name] = read_batch(content)
                    on_progress(f"reading {CIFAR10_FILE}", len(batches), len(_CIFAR10_BATCHES) + 1)
        names = tuple(batches["batches.meta"]["label_names"])
        parts = [_cifar10_pictures(batches[name]) for name in _CIFAR10_BATCHES]
    except (OSError, EOFError, zlib.error, tarfile.TarError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the archive of CIFAR-10 ({error})") from None
    training = Pictures(np.concatenate([part.pixels for part in parts[:-1]]), np.concatenate([part.labels for part in parts[:-1]]))
    return Published(names, training, parts[-1])


def read_batch(file: IO[bytes]) -> dict[str, Any]:
    """Reads a pickle that holds arrays, texts, numbers, lists and dicts, and nothing that could run code.

    Raises:
        pickle.UnpicklingError: it asks for anything else.
    """
    batch: dict[str, Any] = _ArraysOnly(file, encoding="latin1").load()
    return batch


class _ArraysOnly(pickle.Unpickler):
    """The archive was pickled by Python 2, whose NumPy had its parts elsewhere."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]  # wherever this NumPy keeps it
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which no array needs")


def _cifar10_pictures(batch: dict[str, Any]) -> Pictures:
    rows, labels = batch["data"], np.asarray(batch["labels"], dtype=np.int64)
    if rows.dtype != np.uint8 or rows.shape != (len(labels), 3072):
        raise ValueError(f"a batch of {rows.dtype} {rows.shape} for {len(labels)} labels")
    return Pictures(np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels)  # (N, 32, 32, 3)


def _folder(folder: Path | None) -> Path:
    import pooch

    chosen = folder or Path(pooch.os_cache("convoy"))
    if chosen.exists() and not chosen.is_dir():
        raise UserError(f"--data-dir {str(chosen)!r} is not a folder")
    return chosen


def _fetch(path: Path, urls: tuple[str, ...], known_hash: str, on_progress: OnProgress) -> None:
    """Downloads a file that is missing, from the first of `urls` (folders) that has it."""
    import pooch

    if path.is_file():
        return
    pooch.get_logger().setLevel("ERROR")  # what it would say is in the bar and in the error
    reasons = []
    for url in urls:
        downloader = pooch.HTTPDownloader(progressbar=_Bar(path.name, on_progress), chunk_size=1 << 16, timeout=30)
        try:
            pooch.retrieve(url + path.name, known_hash, fname=path.name, path=path.parent, downloader=downloader)
        except (OSError, ValueError) as error:  # the network's and the disk's errors; a wrong checksum
            reasons.append(" ".join(str(error).split()))
        else:
            return
    raise UserError(
        f"{path} is missing, and downloading it failed ({reasons[0]}); fetch {urls[0]}{path.name} on another machine and put it "
        "there, or name the folder that has it with --data-dir"
    )


class _Bar:
    """What pooch asks of a progress bar."""

    def __init__(self, name: str, on_progress: OnProgress) -> None:
        self.total = 0
        self._done = 0
        self._name = name
        self._on_progress = on_progress

    def update(self, amount: int) -> None:
        self._done += amount
        self._on_progress(f"downloading {self._name}", self._done, self.total)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        pass


def _unpacked(path: Path) -> bytes:
    content = read_file(path)
    try:
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: cut short or damaged ({error})") from None


def _check(path: Path, what: str, algorithm: str, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(
            f"{path}: not the published file: the {algorithm} of its {what} is {found}, expected {expected}; "
            "remove it to have it downloaded again"
        )
