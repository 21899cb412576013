"""A small MNIST: four files in MNIST's format, with checksums of their own."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from export.data import mnist as mnist_files
from tests.unit.data.pictures import RNG


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small files in MNIST's form, which are what MNIST now is."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    files = []
    for file, items in zip(mnist_files.FILES, (200, 200, 50, 50), strict=True):
        images = "images" in file.name
        array = RNG.integers(0, 256, (items, 28, 28), dtype=np.uint8) if images else np.arange(items, dtype=np.uint8) % 10
        packed = gzip.compress(idx(array))
        (folder / file.name).write_bytes(packed)
        hashes = hashlib.sha256(packed).hexdigest(), hashlib.sha256(idx(array)).hexdigest()
        files.append(mnist_files.IdxFile(file.name, file.magic, *hashes))
    monkeypatch.setattr(mnist_files, "FILES", tuple(files))
    monkeypatch.setattr(mnist_files, "URLS", ("http://127.0.0.1:9/none/",))
    return folder
