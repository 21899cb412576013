"""Data sets: published files that are whole, broken, missing or downloaded; folders of pictures as people have them."""

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.data import datasets, downloads, image_folder
from export.data.augmentation import Augmentation, augment
from export.data.datasets import Choices
from service.errors import UserError
from service.model.contract import InputSpec
from service.model.preprocessing import decode

RNG = np.random.default_rng(0)


def test_digits_come_in_three_disjoint_stratified_parts(digits: datasets.Dataset) -> None:
    parts = (digits.training, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1257, 180, 360]
    for part in parts:
        shares = np.bincount(part.labels) / len(part)
        assert shares.min() > 0.08
        assert shares.max() < 0.12
    assert digits.test.pixels.shape == (360, 28, 28, 1)
    assert digits.test.pixels.dtype == np.uint8
    assert digits.test.pixels.max() == 255
    assert not digits.augmentation.flip


def test_parts_are_everything_once_and_the_same_for_the_same_seed() -> None:
    labels = np.repeat(np.arange(5), 40)
    parts = datasets.stratified_parts(labels, (0.7, 0.1, 0.2), seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[28] * 5, [4] * 5, [8] * 5]
    again, other = datasets.stratified_parts(labels, (0.7, 0.1, 0.2), 3), datasets.stratified_parts(labels, (0.7, 0.1, 0.2), 4)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[2], other[2])


def test_a_class_of_three_is_in_every_part() -> None:
    labels = np.array([0] * 1000 + [1] * 3 + [2] * 7)
    for seed in range(20):
        for part in datasets.stratified_parts(labels, (0.8, 0.1, 0.1), seed):
            assert set(labels[part]) == {0, 1, 2}
    training, validation, test = datasets.stratified_parts(labels, (0.9, 0.0, 0.1), 0)
    assert len(validation) == 0
    assert len(training) + len(test) == 1010


# MNIST: the four files, small ones with checksums of their own


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four small files in MNIST's form, which are what MNIST now is."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    files = []
    for file, items in zip(downloads.MNIST_FILES, (200, 200, 50, 50), strict=True):
        images = "images" in file.name
        array = RNG.integers(0, 256, (items, 28, 28), dtype=np.uint8) if images else np.arange(items, dtype=np.uint8) % 10
        packed = gzip.compress(idx(array))
        (folder / file.name).write_bytes(packed)
        hashes = hashlib.sha256(packed).hexdigest(), hashlib.sha256(idx(array)).hexdigest()
        files.append(downloads._Idx(file.name, file.magic, *hashes))
    monkeypatch.setattr(downloads, "MNIST_FILES", tuple(files))
    monkeypatch.setattr(downloads, "MNIST_URLS", ("http://127.0.0.1:9/nobody/",))
    return folder


def test_mnist_is_read_and_its_training_part_split(mnist: Path) -> None:
    found = datasets.load_dataset("mnist", 0, mnist)
    assert [len(part) for part in (found.training, found.validation, found.test)] == [180, 20, 50]
    assert np.bincount(found.validation.labels).tolist() == [2] * 10
    assert all(part.pixels.flags.writeable for part in (found.training, found.validation, found.test))  # PyTorch warns otherwise
    original = np.frombuffer(gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    assert np.array_equal(found.test.pixels.ravel(), original)
    assert np.array_equal(decode(found.validation.encoded(3), found.input, 1 << 20), found.validation.pixels[3])
    assert (found.input.shape, found.augmentation.flip, found.name) == ((28, 28, 1), False, "mnist")


def test_mnist_unpacked_or_packed_anew_is_mnist_too(mnist: Path) -> None:
    packed = mnist / "t10k-images-idx3-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    labels = mnist / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes()), 1, mtime=1))
    assert len(datasets.load_dataset("mnist", 0, mnist).test) == 50


def test_the_same_data_are_loaded_again_from_what_a_checkpoint_says(mnist: Path, tmp_path: Path) -> None:
    found = datasets.load_dataset("mnist", 5, mnist, Choices(image_size=(20, 24), channels=3, fit="pad"))
    assert found.source == f"mnist:{mnist}"
    assert found.test.pixels.shape == (50, 20, 24, 3)
    again = datasets.reload_dataset(found.source, 5, found.input, found.labels)
    assert again.input == found.input
    assert np.array_equal(again.validation.pixels, found.validation.pixels)
    moved = mnist.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the data of this run cannot be loaded again: .*--data-dir say where they are now"):
        datasets.reload_dataset(found.source, 5, found.input, found.labels)
    assert np.array_equal(
        datasets.reload_dataset(found.source, 5, found.input, found.labels, None, moved).test.pixels, found.test.pixels
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-100], "train-images-idx3-ubyte.gz: cut short or damaged"),
        (lambda content: content[:5000] + b"\0\0\0\0" + content[5004:], "train-images-idx3-ubyte.gz: "),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), "bytes unpacked, but 200 x 28 x 28 need 156,816: cut short"),
        (lambda content: gzip.compress(idx(np.zeros(9, np.uint8))), "not an IDX file of pictures: it begins with '00000801'"),
        (lambda content: b"", "not an IDX file of pictures: it begins with ''"),
        (lambda content: gzip.compress(idx(np.zeros((200, 28, 28), np.uint8))), "the SHA-256 of its unpacked content is 8"),
    ],
)
def test_a_broken_file_of_mnist_is_named(mnist: Path, change: functools.partial, message: str) -> None:
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError) as raised:
        datasets.load_dataset("mnist", 0, mnist)
    assert str(path) in str(raised.value)
    assert message.startswith("the SHA") or message in str(raised.value)
    if message.startswith("the SHA"):
        assert f"expected {downloads.MNIST_FILES[0].content}" in str(raised.value)


def test_a_missing_file_without_a_network_says_what_to_put_where(mnist: Path) -> None:
    path = mnist / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    with pytest.raises(UserError) as raised:
        datasets.load_dataset("mnist", 0, mnist)
    assert f"{path} is missing, and downloading it failed (" in str(raised.value)
    assert "fetch http://127.0.0.1:9/nobody/t10k-labels-idx1-ubyte.gz on another machine and put it there" in str(raised.value)
    assert "\n" not in str(raised.value)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server's address and its folder."""
    root = tmp_path / "site"
    root.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", root
        server.shutdown()
        thread.join()


def test_what_is_missing_is_downloaded_and_checked(
    mnist: Path, site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, root = site
    for path in mnist.iterdir():
        path.rename(root / path.name)
    monkeypatch.setattr(downloads, "MNIST_URLS", ("http://127.0.0.1:9/", address))  # the first mirror is down
    seen: list[tuple[str, int, int]] = []
    cache = tmp_path / "new" / "cache"
    found = datasets.load_dataset("mnist", 0, cache, on_progress=lambda *step: seen.append(step))
    assert len(found.test) == 50
    size = (root / "train-images-idx3-ubyte.gz").stat().st_size
    assert ("downloading train-images-idx3-ubyte.gz", size, size) in seen
    assert sorted(path.name for path in cache.iterdir()) == sorted(path.name for path in root.iterdir())
    (root / "train-labels-idx1-ubyte.gz").write_bytes(b"not what it was")
    (cache / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(downloads, "MNIST_URLS", (address,))
    with pytest.raises(UserError) as raised:
        datasets.load_dataset("mnist", 0, cache)
    wanted, got = downloads.MNIST_FILES[1].packed, hashlib.sha256(b"not what it was").hexdigest()
    assert f"expected sha256:{wanted} but got {got}" in str(raised.value)
    assert not (cache / "train-labels-idx1-ubyte.gz").exists()


# CIFAR-10: an archive as Python 2 pickled it


def old_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2's pickle wrote it: texts are bytes, and NumPy's parts stand where they stood in 2009."""

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
        name: old_pickle(RNG.integers(0, 256, (20, 3072), dtype=np.uint8), [*range(10), *range(10)])
        for name in downloads._CIFAR10_BATCHES
    }
    names = [f"kind {number}" for number in range(10)]
    return {**members, "batches.meta": pickle.dumps({"label_names": names}, protocol=2), "readme.html": b"<html>"}


def put_cifar10(folder: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "cifar-10-python.tar.gz"
    archive(path, members)
    monkeypatch.setattr(downloads, "CIFAR10_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(downloads, "CIFAR10_URLS", ("http://127.0.0.1:9/",))
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


def test_a_broken_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar10_members()
    path = put_cifar10(tmp_path, {name: content for name, content in members.items() if name != "data_batch_3"}, monkeypatch)
    with pytest.raises(UserError, match=r"not the archive of CIFAR-10 \('data_batch_3'\)"):
        datasets.load_dataset("cifar10", 0, tmp_path)
    put_cifar10(tmp_path, {**members, "data_batch_1": old_pickle(np.zeros((3, 300), np.uint8), [1, 2, 3])}, monkeypatch)
    with pytest.raises(UserError, match=r"a batch of uint8 \(3, 300\) for 3 labels"):
        datasets.load_dataset("cifar10", 0, tmp_path)
    expected = downloads.CIFAR10_MD5
    path.write_bytes(path.read_bytes()[:-1000])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"the MD5 of its content is {found}, expected {expected}"):
        datasets.load_dataset("cifar10", 0, tmp_path)


# Folders


def draw(path: Path, size: tuple[int, int] = (16, 12), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    side = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], *side), dtype=np.uint8)).save(path)
    return path


def pets(root: Path, counts: dict[str, int], **kind: object) -> Path:
    for label, count in counts.items():
        for number in range(count):
            draw(root / label / f"{number:03}.png", **kind)  # type: ignore[arg-type]
    return root


def test_two_class_folders_are_split_in_three(tmp_path: Path) -> None:
    root = pets(tmp_path / "cats & dogs", {"cat": 30, "dog": 20})
    found = datasets.load_dataset(str(root), 0)
    assert [np.bincount(part.labels).tolist() for part in (found.training, found.validation, found.test)] == [
        [24, 16], [3, 2], [3, 2],
    ]  # fmt: skip
    assert (found.labels, found.name, found.source) == (("cat", "dog"), "cats-dogs", str(root))
    assert (found.input.shape, found.input.fit, found.pictures, found.skipped) == ((12, 16, 3), "stretch", "12x16, color", ())
    assert found.augmentation == Augmentation(2, flip=True, padding="reflect")
    everything = [part.encoded(index) for part in (found.training, found.validation, found.test) for index in range(len(part))]
    assert sorted(everything) == sorted(path.read_bytes() for path in root.rglob("*.png"))  # the files' own bytes, each once
    assert np.array_equal(decode(found.test.encoded(4), found.input, 1 << 20), found.test.pixels[4])
    again, other = datasets.load_dataset(str(root), 0), datasets.load_dataset(str(root), 1)
    assert np.array_equal(again.test.pixels, found.test.pixels)
    assert not np.array_equal(other.test.pixels, found.test.pixels)


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train", "test"), [18, 2, 6]),
        (("train", "val", "test"), [20, 6, 6]),
        (("Training", "validation", "testing"), [20, 6, 6]),
        (("train", "valid"), [18, 6, 2]),
        (("train",), [16, 2, 2]),
    ],
)
def test_parts_that_are_there_are_taken(tmp_path: Path, names: tuple[str, ...], sizes: list[int]) -> None:
    for name in names:
        pets(tmp_path / name, {"cat": 10, "dog": 10} if name.lower().startswith("train") else {"cat": 3, "dog": 3})
    found = datasets.load_dataset(str(tmp_path), 0)
    parts = {"training": found.training, "validation": found.validation, "test": found.test}
    assert [len(part) for part in parts.values()] == sizes
    for name in names:
        part = parts[image_folder.PARTS[name.lower()]]
        assert (tmp_path / name / "cat").is_dir()
        assert {part.encoded(index) for index in range(len(part))} <= {p.read_bytes() for p in (tmp_path / name).rglob("*.png")}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert datasets.load_dataset(str(pets(tmp_path, {"train": 5, "plane": 5})), 0).labels == ("plane", "train")


def test_what_people_have_in_their_folders(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 10, "dog": 10}, size=(300, 200))
    draw(root / "cat" / "holiday" / "deep" / "a.JPG", (40, 80))
    draw(root / "dog" / "gray.png", mode="L")
    draw(root / "dog" / "clear.webp", mode="RGBA")
    (root / "dog" / "sound.wav").write_bytes(b"RIFF")
    (root / "dog" / "text.png").write_text("no picture")
    (root / "dog" / "empty.jpg").touch()
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    cut = draw(root / "cat" / "cut.png", (300, 200))
    cut.write_bytes(cut.read_bytes()[:-5000])
    for hidden in (".DS_Store", "cat/._000.png", "cat/.cache/x.png", "__MACOSX/cat/x.png"):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_bytes(b"\0")
    (root / "notes.txt").write_text("beside the classes")
    found = datasets.load_dataset(str(root), 0)
    assert sum(len(part) for part in (found.training, found.validation, found.test)) == 23
    assert found.labels == ("cat", "dog")
    assert found.input.shape == (224, 224, 3)
    assert found.pictures == "12x16 to 200x300, 1 of 24 gray"
    assert len(found.skipped) == 5
    reasons = dict(line.removeprefix(f"{root}/").split(": ", 1) for line in found.skipped)
    assert reasons["dog/sound.wav"] == "not named like a picture"
    assert reasons["dog/text.png"].startswith("not an image in a format accepted here")
    assert reasons["dog/empty.jpg"] == "the image is empty (0 bytes)"
    assert reasons["dog/gone.png"] == "No such file or directory"
    assert reasons["cat/cut.png"].startswith("the image's data are broken or cut short")


def test_size_channels_and_fit_are_chosen_or_given(tmp_path: Path) -> None:
    gray = pets(tmp_path / "gray", {"a": 3, "b": 3}, size=(20, 20), mode="L")
    assert datasets.load_dataset(str(gray), 0).input.shape == (20, 20, 1)
    for size, expected in (((65, 60), 128), ((40, 66), 128), ((200, 300), 224)):
        files = [image_folder.File(Path("x"), 0, size, gray=False)] * 3
        assert image_folder.suitable_input(files).shape == (expected, expected, 3)
    mixed = [image_folder.File(Path("x"), 0, (side, side), gray=False) for side in (20, 30, 31)]
    assert image_folder.suitable_input(mixed).shape == (32, 32, 3)
    wide = pets(tmp_path / "wide", {"a": 3, "b": 3}, size=(40, 20))
    for fit in ("stretch", "crop", "pad"):
        found = datasets.load_dataset(str(wide), 0, choices=Choices(image_size=(16, 16), fit=fit, flip=False, shift_pixels=3))
        assert found.input == InputSpec(height=16, width=16, channels=3, fit=fit)
        assert np.array_equal(decode(found.test.encoded(0), found.input, 1 << 20), found.test.pixels[0])
        assert found.augmentation == Augmentation(3, flip=False, padding="reflect")


def test_a_folder_that_has_moved_is_found_again_and_another_is_not_taken_for_it(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 10, "dog": 10}, mode="L")
    found = datasets.load_dataset(str(root), 3, choices=Choices(image_size=(9, 9), channels=3))
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the data of this run cannot be loaded again: .*pets"):
        datasets.reload_dataset(found.source, 3, found.input, found.labels)
    again = datasets.reload_dataset(found.source, 3, found.input, found.labels, data=str(moved))
    assert np.array_equal(again.test.pixels, found.test.pixels)
    other = pets(tmp_path / "other", {"cat": 3, "cow": 3})
    with pytest.raises(UserError, match="whose classes are cat, dog; these have cat, cow"):
        datasets.reload_dataset(found.source, 3, found.input, found.labels, data=str(other))


def test_a_picture_more_is_other_data(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 10, "dog": 10})
    digest = datasets.load_dataset(str(root), 3).digest
    assert datasets.load_dataset(str(root), 3, choices=Choices(image_size=(9, 9))).digest == digest
    assert datasets.load_dataset(str(root), 4).digest != digest, "the same pictures in other parts"
    root = root.rename(tmp_path / "moved")
    assert datasets.load_dataset(str(root), 3).digest == digest
    added = draw(root / "cat" / "more.png")
    assert datasets.load_dataset(str(root), 3).digest != digest
    added.unlink()
    assert datasets.load_dataset(str(root), 3).digest == digest


def test_linked_folders_are_gone_into_once_and_loose_pictures_are_named(tmp_path: Path) -> None:
    root = pets(tmp_path / "pets", {"cat": 4, "dog": 4})
    pets(tmp_path, {"elsewhere": 5})
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "round").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "dogs").symlink_to(root / "dog")
    draw(root / "loose.png")
    found = datasets.load_dataset(str(root), 0)
    labels = np.concatenate([part.labels for part in (found.training, found.validation, found.test)])
    assert np.bincount(labels).tolist() == [9, 4]
    links = {f"{root}/{link}: a link to where other classes are" for link in ("cat/deep/dogs", "dog/up")}
    assert set(found.skipped) == {f"{root}/loose.png: not in the folder of a class"} | links


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("train_images", "test"), ("my-train", "my-val")])
def test_parts_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        pets(tmp_path / name, {"cat": 4, "dog": 4})
    with pytest.raises(UserError, match="look like parts and not like classes: name them train, val and test"):
        datasets.load_dataset(str(tmp_path), 0)


def test_classes_may_be_called_like_parts_or_have_the_same_folders(tmp_path: Path) -> None:
    for label in ("steam train", "plane"):
        pets(tmp_path / "one" / label, {"old": 4, "new": 4} if label == "plane" else {"all": 4})
    assert datasets.load_dataset(str(tmp_path / "one"), 0).labels == ("plane", "steam train")
    for label in ("large intestine", "stomach", "trainers"):
        pets(tmp_path / "two" / label, {"left": 4, "right": 4})
    assert datasets.load_dataset(str(tmp_path / "two"), 0).labels == ("large intestine", "stomach", "trainers")


def test_folders_that_are_no_data(tmp_path: Path) -> None:
    def refused(path: Path | str, **options: object) -> str:
        with pytest.raises(UserError) as raised:
            datasets.load_dataset(str(path), 0, **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "--data 'cifra10' is not 'digits', 'mnist', 'cifar10', nor a folder of pictures" in refused("cifra10")
    (tmp_path / "none").mkdir()
    assert "no class folder; wanted are two or more" in refused(tmp_path / "none")
    assert "one class folder alone, 'cat'" in refused(pets(tmp_path / "one", {"cat": 3}))
    empty = pets(tmp_path / "empty", {"cat": 3})
    (empty / "dog").mkdir()
    assert f"{empty}/dog: a class folder without a picture that can be read; left out: nothing" in refused(empty)
    (empty / "dog" / "readme.txt").touch()
    assert "left out: " in refused(empty)
    few = pets(tmp_path / "few", {"cat": 9, "dog": 2})
    assert "class 'dog' has 2 pictures, too few to be split into training and validation and test: it needs 3" in refused(few)
    pets(tmp_path / "odd" / "train", {"cat": 3, "dog": 3})
    pets(tmp_path / "odd" / "test", {"cat": 3, "cow": 3})
    assert f"{tmp_path}/odd/test has a class 'cow' that {tmp_path}/odd/train has not" in refused(tmp_path / "odd")
    pets(tmp_path / "twice" / "train", {"cat": 3, "dog": 3})
    pets(tmp_path / "twice" / "val", {"cat": 3, "dog": 3})
    pets(tmp_path / "twice" / "valid", {"cat": 3, "dog": 3})
    assert "are both the validation part: leave one of them" in refused(tmp_path / "twice")
    cut = pets(tmp_path / "cut", {"cat": 3, "dog": 3}, size=(100, 100))
    for path in (cut / "dog").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    assert "no picture of class 'dog' is left for training; left out: " in refused(cut)
    good = pets(tmp_path / "good", {"cat": 3, "dog": 3})
    assert "--data-dir is for mnist and cifar10" in refused(good, data_dir=tmp_path)
    assert "--data-dir is for mnist and cifar10; the digits come with scikit-learn" in refused("digits", data_dir=tmp_path)
    assert "--flip: a mirrored digit is another sign or none" in refused("digits", choices=Choices(flip=True))
    assert "--shift 14: pictures of 28x28 can be shifted by at most 13 pixels" in refused(
        "digits", choices=Choices(shift_pixels=14)
    )
    assert "is not a folder" in refused("mnist", data_dir=draw(tmp_path / "file.png"))


def test_too_many_pictures_for_the_memory_are_refused_before_they_are_read() -> None:
    with pytest.raises(
        UserError, match=r"pictures of 4096x4096x3 take .* GB, and this machine has .*: choose a smaller --image-size"
    ):
        image_folder.check_memory(1_000_000, InputSpec(height=4096, width=4096, channels=3))
    image_folder.check_memory(1_000, InputSpec(height=28, width=28, channels=1))


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    root = pets(tmp_path, {"cat": 90, "dog": 90})
    last: dict[str, tuple[int, int]] = {}
    datasets.load_dataset(str(root), 0, on_progress=lambda what, done, total: last.__setitem__(what, (done, total)))
    assert last == {
        "looking at training": (180, 180), "reading training": (144, 144), "reading validation": (18, 18), "reading test": (18, 18),
    }  # fmt: skip


# Augmentation


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", ["reflect", "replicate"])
def test_augmentation_is_a_crop_of_the_padded_picture(kind: torch.dtype, padding: str) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 7, 9)).to(kind)
    found = augment(images, Augmentation(2, flip=True, padding=padding))  # type: ignore[arg-type]
    assert (found.shape, found.dtype) == (images.shape, kind)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode=padding)
    draws = []
    for picture, whole in zip(found.float(), padded, strict=True):
        crops = {
            (y, x, flip): whole[:, y : y + 7, x : x + 9].flip(2) if flip else whole[:, y : y + 7, x : x + 9]
            for y in range(5) for x in range(5) for flip in (False, True)
        }  # fmt: skip
        draws.append(next(draw for draw, crop in crops.items() if torch.equal(crop, picture)))
    assert {draw[:2] for draw in draws} == {(y, x) for y in range(5) for x in range(5)}
    assert 60 < sum(draw[2] for draw in draws) < 140


def test_augmentation_by_its_generator_and_none_at_all() -> None:
    images = torch.rand(8, 1, 6, 6)
    twice = [augment(images, Augmentation(2, flip=True), torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*twice)
    assert not torch.equal(twice[0], images)
    assert torch.equal(augment(images, Augmentation(0)), images)
    strided = torch.rand(8, 6, 6, 3).permute(0, 3, 1, 2)
    assert torch.equal(augment(strided, Augmentation(0)), strided)
