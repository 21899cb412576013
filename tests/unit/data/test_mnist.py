"""MNIST's files: whole, unpacked and broken."""

import functools
import gzip
from pathlib import Path

import numpy as np
import pytest

from export.data import datasets
from export.data import mnist as mnist_files
from service.errors import UserError
from service.model.preprocessing import decode
from tests.unit.data.conftest import idx


def test_mnist_is_read_and_its_training_part_split(mnist: Path) -> None:
    found = datasets.load_dataset("mnist", 0, mnist)
    assert [len(part) for part in (found.training, found.validation, found.test)] == [180, 20, 50]
    assert np.bincount(found.validation.labels).tolist() == [2] * 10
    assert all(part.pixels.flags.writeable for part in (found.training, found.validation, found.test))  # PyTorch warns otherwise
    original = np.frombuffer(gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    assert np.array_equal(found.test.pixels.ravel(), original)
    assert np.array_equal(decode(found.validation.encoded(3), found.input, 1 << 20), found.validation.pixels[3])
    assert (found.input.shape, found.augmentation.flip, found.name) == ((28, 28, 1), False, "mnist")


def test_files_may_be_unpacked_or_compressed_again(mnist: Path) -> None:
    packed = mnist / "t10k-images-idx3-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    labels = mnist / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes()), 1, mtime=1))
    assert len(datasets.load_dataset("mnist", 0, mnist).test) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-100], "train-images-idx3-ubyte.gz: cut short or damaged"),
        (lambda content: content[:5000] + b"\0\0\0\0" + content[5004:], "train-images-idx3-ubyte.gz: "),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), "bytes unpacked, but 200 x 28 x 28 need 156,816: cut short"),
        (lambda content: gzip.compress(idx(np.zeros(9, np.uint8))), "not an IDX file of images: it begins with '00000801'"),
        (lambda content: b"", "not an IDX file of images: it begins with ''"),
        (lambda content: gzip.compress(idx(np.zeros((200, 28, 28), np.uint8))), "the SHA-256 of its unpacked content is 8"),
    ],
)
def test_the_error_of_a_broken_file_has_its_path(mnist: Path, change: functools.partial, message: str) -> None:
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError) as raised:
        datasets.load_dataset("mnist", 0, mnist)
    assert str(path) in str(raised.value)
    assert message.startswith("the SHA") or message in str(raised.value)
    if message.startswith("the SHA"):
        assert f"expected {mnist_files.FILES[0].content}" in str(raised.value)
