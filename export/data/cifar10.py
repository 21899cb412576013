"""CIFAR-10: the archive that its author published, with pickled batches."""

import hashlib
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from export.data.downloads import LabelledPixels, PublishedDataset, check_checksum, data_folder, fetch
from export.progress import OnProgress
from service.errors import UserError

URLS = ("https://www.cs.toronto.edu/~kriz/",)
FILE = "cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def load_cifar10(folder: Path | None, on_progress: OnProgress) -> PublishedDataset:
    """60,000 photos of ten kinds of things, 32x32, RGB (Krizhevsky, 2009): 50,000 for training, 10,000 for test.

    Args:
        folder: where the archive is, or is downloaded to; by default the user's cache.
        on_progress: called with each step.

    Raises:
        UserError: the archive is missing and cannot be downloaded, is broken or is not CIFAR-10's.
    """
    path = data_folder(folder) / FILE
    fetch(path, URLS, f"md5:{MD5}", on_progress)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        check_checksum(path, "content", "MD5", found, MD5)
        batches = {}
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                content = archive.extractfile(member)
                if content is not None and name in (*BATCHES, "batches.meta"):
                    batches[name] = read_batch(content)
                    on_progress(f"reading {FILE}", len(batches), len(BATCHES) + 1)
        names = tuple(batches["batches.meta"]["label_names"])
        parts = [_labelled_pixels(batches[name]) for name in BATCHES]
    except (OSError, EOFError, zlib.error, tarfile.TarError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the archive of CIFAR-10 ({error})") from None
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    return PublishedDataset(names, LabelledPixels(pixels, labels), parts[-1])


def read_batch(file: IO[bytes]) -> dict[str, Any]:
    """Reads a pickle of arrays, texts, numbers, lists and dicts, and refuses any that could run code.

    Raises:
        pickle.UnpicklingError: it has anything else in it.
    """
    batch: dict[str, Any] = _ArraysOnly(file, encoding="latin1").load()
    return batch


class _ArraysOnly(pickle.Unpickler):
    """Python 2 wrote the archive, with the module names of the NumPy of its time."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]  # wherever this NumPy keeps it
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which no array needs")


def _labelled_pixels(batch: dict[str, Any]) -> LabelledPixels:
    rows, labels = batch["data"], np.asarray(batch["labels"], dtype=np.int64)
    if rows.dtype != np.uint8 or rows.shape != (len(labels), 3072):
        raise ValueError(f"a batch of {rows.dtype} {rows.shape} for {len(labels)} labels")
    return LabelledPixels(np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels)  # (N, 32, 32, 3)
