"""CIFAR-10's archive, pickled as Python 2 did: whole, broken and malicious."""

import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from export.data import cifar10, datasets
from export.data.augmentation import Augmentation
from service.errors import UserError
from tests.unit.data.pictures import RNG


def old_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2's pickle wrote it: texts are bytes, and NumPy's modules have their names of 2009."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = pixels.tobytes()
    number = [b"K" + bytes([label]) for label in labels]
    return b"".join([
        b"\x80\x02}(", text(b"data"), b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85", text(b"b"), b"\x87R",
        b"(K\x01", b"M", struct.pack("<H", pixels.shape[0]), b"M", struct.pack("<H", pixels.shape[1]), b"\x86",
        b"cnumpy\ndtype\n", text(b"u1"), b"K\x00K\x01\x87R(K\x03", text(b"|"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        b"\x89T", struct.pack("<I", len(raw)), raw, b"tb", text(b"labels"), b"](", *number, b"eu.",
    ])  # fmt: skip


def archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def cifar10_members() -> dict[str, bytes]:
    members = {
        name: old_pickle(RNG.integers(0, 256, (20, 3072), dtype=np.uint8), [*range(10), *range(10)]) for name in cifar10.BATCHES
    }
    names = [f"kind {number}" for number in range(10)]
    return {**members, "batches.meta": pickle.dumps({"label_names": names}, protocol=2), "readme.html": b"<html>"}


def put_cifar10(folder: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "cifar-10-python.tar.gz"
    archive(path, members)
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "URLS", ("http://127.0.0.1:9/",))
    return path


def test_cifar10_is_read_as_its_authors_packed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar10_members()
    put_cifar10(tmp_path, members, monkeypatch)
    found = datasets.load_dataset("cifar10", 0, tmp_path)
    assert [len(part) for part in (found.training, found.validation, found.test)] == [90, 10, 20]
    assert found.labels[3] == "kind 3"
    assert found.augmentation == Augmentation(4, flip=True, padding="reflect")
    raw = np.frombuffer(members["test_batch"], np.uint8)
    start = members["test_batch"].index(b"\x89T") + 6
    assert np.array_equal(found.test.pixels[0].transpose(2, 0, 1).ravel(), raw[start : start + 3072])  # planes of red, green, blue


class _Evil:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("touched"),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = put_cifar10(tmp_path, {**cifar10_members(), "test_batch": pickle.dumps(_Evil())}, monkeypatch)
    with pytest.raises(UserError, match=r"not the archive of CIFAR-10 \(its pickle asks for pathlib") as raised:
        datasets.load_dataset("cifar10", 0, tmp_path)
    assert str(path) in str(raised.value)
    assert not (tmp_path / "touched").exists()


def test_the_error_of_a_broken_archive_has_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar10_members()
    path = put_cifar10(tmp_path, {name: content for name, content in members.items() if name != "data_batch_3"}, monkeypatch)
    with pytest.raises(UserError, match=r"not the archive of CIFAR-10 \('data_batch_3'\)"):
        datasets.load_dataset("cifar10", 0, tmp_path)
    put_cifar10(tmp_path, {**members, "data_batch_1": old_pickle(np.zeros((3, 300), np.uint8), [1, 2, 3])}, monkeypatch)
    with pytest.raises(UserError, match=r"a batch of uint8 \(3, 300\) for 3 labels"):
        datasets.load_dataset("cifar10", 0, tmp_path)
    expected = cifar10.MD5
    path.write_bytes(path.read_bytes()[:-1000])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"the MD5 of its content is {found}, expected {expected}"):
        datasets.load_dataset("cifar10", 0, tmp_path)
