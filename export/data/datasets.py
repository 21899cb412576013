"""Labelled pictures in three parts: training, validation and test.

A part holds its pictures twice over: as the pixels that a network takes, brought there by the same code that serves them, and as
the encoded files that a client would send. The test part is for one look at the end. What to stop on or choose by is measured on
the validation part.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.data import downloads, image_folder
from export.data.augmentation import Augmentation
from export.files import read_file
from export.progress import OnProgress, ignore_progress
from service.errors import UserError
from service.model.contract import InputSpec
from service.model.preprocessing import encode_png, resize

DATA = ("digits", "mnist", "cifar10")
"""The data sets with a name; anything else is a folder of pictures."""


@dataclass(frozen=True)
class Part:
    """Labelled pictures.

    `pixels` are uint8[N,H,W,C] as the server would see them, `labels` int64[N] indices of classes, and `encoded` gives one picture
    by its index as a client would send it: the bytes of an image file.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    encoded: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A named set of labelled pictures.

    `name` can name a model. `labels` are the names of the classes. `input` suits the pictures, and `augmentation` may be done to
    those of the training part. `source` is what `load` takes to find the same pictures again, from any working folder. `pictures`
    says in words what they were before they were brought to `input`; `skipped` has a line for each file that was left out. `digest`
    tells whether the parts hold what they held another time: adding one picture to a folder deals all of them out anew.
    """

    name: str
    labels: tuple[str, ...]
    input: InputSpec
    training: Part
    validation: Part
    test: Part
    augmentation: Augmentation = field(default_factory=Augmentation)
    source: str = ""
    pictures: str = ""
    skipped: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class Choices:
    """What may be chosen about the pictures; None leaves it to the data.

    `image_size` is (height, width) of the network's input, `channels` 1 (gray) or 3, `fit` as in the contract; `flip` and
    `shift_pixels` as in Augmentation.
    """

    image_size: tuple[int, int] | None = None
    channels: int | None = None
    fit: str | None = None
    flip: bool | None = None
    shift_pixels: int | None = None


def load_dataset(
    data: str,
    seed: int,
    data_dir: Path | None = None,
    choices: Choices = Choices(),
    on_progress: OnProgress = ignore_progress,
) -> Dataset:
    """Loads a data set. The same seed gives the same parts.

    Args:
        data: one of DATA, or the path of a folder of pictures, or the `source` of a data set that was loaded before.
        seed: of the split into parts, as far as the data are not split already.
        data_dir: where the files of `mnist` or `cifar10` are, or are downloaded to; a cache folder of the user's if not given.
        choices: what to do otherwise than the data suggest.
        on_progress: called with each step.

    Raises:
        UserError: there are no such data, or they cannot be had or read, or are no classes to tell apart, or a choice does not fit.
    """
    name, _, at = data.partition(":")
    if name not in DATA:
        if data_dir is not None:
            raise UserError(f"--data-dir is for mnist and cifar10; --data {data} says by itself where the pictures are")
        return _folder(data, seed, choices, on_progress)
    if name == "digits":
        if data_dir is not None or at:
            raise UserError("--data-dir is for mnist and cifar10; the digits come with scikit-learn")
        return _digits(seed, choices)
    where = (data_dir or Path(at)).expanduser().absolute() if data_dir or at else None
    return _published(name, where, seed, choices, on_progress)


def reload_dataset(
    source: str,
    seed: int,
    spec: InputSpec,
    labels: tuple[str, ...],
    data: str | None = None,
    data_dir: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Dataset:
    """Loads the data that a network was trained on, in the same parts, brought to the same input.

    Args:
        source: the `source` of the data set that it was trained on.
        seed: that of its training.
        spec: the input that it takes.
        labels: its classes.
        data: where the data are now, if they were moved: as `load` takes it.
        data_dir: where the files of `mnist` or `cifar10` are now, if they were moved.
        on_progress: called with each step.

    Raises:
        UserError: as `load`; or these data have other classes.
    """
    choices = Choices((spec.height, spec.width), spec.channels, spec.fit)
    try:
        dataset = load_dataset(data or source, seed, data_dir, choices, on_progress)
    except UserError as error:
        if data is not None or data_dir is not None:
            raise
        raise UserError(
            f"the data of this run cannot be loaded again: {error} (--data and --data-dir say where they are now)"
        ) from None
    if dataset.labels != labels:
        raise UserError(
            f"{data or source}: not the data of this run, whose classes are {_some(labels)}; these have {_some(dataset.labels)}"
        )
    return dataset


def _digits(seed: int, choices: Choices) -> Dataset:
    """1,797 handwritten digits, 8x8, gray, white on black: the UCI test set that ships inside scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pictures = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 17 levels of gray to 256
    labels = bunch.target.astype(np.int64)
    spec = _input(InputSpec(height=28, width=28, channels=1), choices)
    training, validation, test = (
        _part(pictures[chosen], labels[chosen], spec) for chosen in stratified_parts(labels, (0.7, 0.1, 0.2), seed)
    )
    return Dataset(
        "digits", tuple(str(digit) for digit in range(10)), spec, training, validation, test,
        augmentation=_augmentation(Augmentation(shift_pixels=2), choices, spec, readable=True),
        source="digits", pictures="8x8, gray", digest="digits",
    )  # fmt: skip


def _published(name: str, where: Path | None, seed: int, choices: Choices, on_progress: OnProgress) -> Dataset:
    """A set that its authors split into training and test; 5,000 pictures or a tenth of training become validation."""
    read, default = {
        "mnist": (downloads.mnist, Augmentation(shift_pixels=1)),
        "cifar10": (downloads.cifar10, Augmentation(shift_pixels=4, flip=True, padding="reflect")),
    }[name]
    names, training, test = read(where, on_progress)
    height, width, *color = training.pixels.shape[1:]
    spec = _input(InputSpec(height=height, width=width, channels=3 if color else 1), choices)
    share = min(0.1, 5000 / len(training.labels))
    kept, held_out, _ = stratified_parts(training.labels, (1 - share, share, 0), seed)
    return Dataset(
        name, names, spec,
        _part(training.pixels[kept], training.labels[kept], spec, "training", on_progress),
        _part(training.pixels[held_out], training.labels[held_out], spec, "validation", on_progress),
        _part(test.pixels, test.labels, spec, "test", on_progress),
        augmentation=_augmentation(default, choices, spec, readable=name == "mnist"),
        source=name if where is None else f"{name}:{where}",
        pictures=f"{height}x{width}, {'color' if color else 'gray'}", digest=name,  # its files were checked
    )  # fmt: skip


def _folder(data: str, seed: int, choices: Choices, on_progress: OnProgress) -> Dataset:
    """A folder of pictures. Parts that it does not have are split off training: a tenth of everything each."""
    path = Path(data).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"--data {data!r} is not {', '.join(repr(name) for name in DATA)}, nor a folder of pictures")
    found = image_folder.listing(path, on_progress)
    every = [file for files in found.parts.values() for file in files]
    spec = _input(image_folder.suitable_input(every), choices)
    image_folder.check_memory(len(every), spec)
    files = dict(found.parts)
    missing = [part for part in ("validation", "test") if part not in files]
    if missing:
        labels = np.array([file.label for file in files["training"]])
        least = np.bincount(labels, minlength=len(found.labels)).argmin()
        if np.count_nonzero(labels == least) <= len(missing):
            raise UserError(
                f"{path}: class {found.labels[least]!r} has {np.count_nonzero(labels == least)} pictures, too few to be split into "
                f"training and {' and '.join(missing)}: it needs {len(missing) + 1} at the very least"
            )
        validation, test = (0.1 if part in missing else 0.0 for part in ("validation", "test"))
        chosen = stratified_parts(labels, (1 - validation - test, validation, test), seed)
        whole = files["training"]
        for part, indices in zip(("training", "validation", "test"), chosen, strict=True):
            if part not in found.parts or part == "training":
                files[part] = [whole[index] for index in indices]
    skipped = list(found.skipped)
    parts = {part: _read(files[part], spec, part, skipped, on_progress) for part in ("training", "validation", "test")}
    for part, has in parts.items():
        lacking = sorted(set(range(len(found.labels))) - set(has.labels.tolist()))
        if lacking:
            raise UserError(
                f"{path}: no picture of class {found.labels[lacking[0]]!r} is left for {part}; left out: {_some(skipped)}"
            )
    shift = max(1, round(min(spec.height, spec.width) / 8))
    return Dataset(
        re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).lstrip("._-")[:64] or "pictures", found.labels, spec, **parts,
        augmentation=_augmentation(Augmentation(shift, flip=True, padding="reflect"), choices, spec),
        source=str(path), pictures=image_folder.description(every), skipped=tuple(skipped), digest=_digest(path, files),
    )  # fmt: skip


def _digest(path: Path, files: Mapping[str, Sequence[image_folder.File]]) -> str:
    """Of which files are in which part; a file is known by its place in the folder and its size."""
    held = sorted((part, str(file.path.relative_to(path)), file.path.stat().st_size) for part in files for file in files[part])
    return hashlib.sha256(repr(held).encode(errors="surrogateescape")).hexdigest()


def _read(files: list[image_folder.File], spec: InputSpec, part: str, skipped: list[str], on_progress: OnProgress) -> Part:
    pixels, problems = image_folder.pixels(files, spec, f"reading {part}", on_progress)
    if any(problems):
        skipped += [f"{file.path}: {problem}" for file, problem in zip(files, problems, strict=True) if problem is not None]
        good = [index for index, problem in enumerate(problems) if problem is None]
        pixels, files = pixels[good], [files[index] for index in good]
    return Part(pixels, np.array([file.label for file in files], np.int64), lambda index: read_file(files[index].path))


def _input(natural: InputSpec, choices: Choices) -> InputSpec:
    """The input that suits the pictures, but for what was chosen."""
    height, width = choices.image_size or (natural.height, natural.width)
    return InputSpec.model_validate(
        {"height": height, "width": width, "channels": choices.channels or natural.channels, "fit": choices.fit or natural.fit}
    )


def _augmentation(default: Augmentation, choices: Choices, spec: InputSpec, readable: bool = False) -> Augmentation:
    if readable and choices.flip:
        raise UserError("--flip: a mirrored digit is another sign or none; digits and mnist are trained without")
    shift = default.shift_pixels if choices.shift_pixels is None else choices.shift_pixels
    most = (min(spec.height, spec.width) - 1) // 2
    if choices.shift_pixels is not None and shift > most:
        raise UserError(f"--shift {shift}: pictures of {spec.height}x{spec.width} can be shifted by at most {most} pixels")
    return Augmentation(min(shift, most), default.flip if choices.flip is None else choices.flip, default.padding)


def _part(
    pictures: NDArray[np.uint8],
    labels: NDArray[np.int64],
    spec: InputSpec,
    what: str = "",
    on_progress: OnProgress = ignore_progress,
) -> Part:
    """A part of pictures uint8[N,h,w] or uint8[N,h,w,3] that are in memory already."""
    pixels = pictures.reshape(len(pictures), *pictures.shape[1:3], -1)
    if pixels.shape[1:] != spec.shape:
        image_folder.check_memory(len(pictures), spec)
        pixels = np.empty((len(pictures), *spec.shape), np.uint8)
        for index, picture in enumerate(pictures):
            pixels[index] = resize(picture, spec)
            if index % 1000 == 999:
                on_progress(f"resizing {what}", index + 1, len(pictures))
    return Part(pixels, labels, lambda index: encode_png(pictures[index]))


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:5]) + (f", ... ({len(words)} in all)" if len(words) > 5 else "")


def stratified_parts(
    labels: NDArray[np.int64], fractions: tuple[float, float, float], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Indices of three disjoint parts that share every class out in the same fractions; together they are everything.

    A part whose fraction is not 0 has at least one item of every class that has three: scikit-learn's split does not promise that.
    """
    counts = np.bincount(labels)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.empty(len(labels), np.intp)  # the place of each item among those of its class
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # The rounding is carried from class to class, so that the parts' sizes are right to one item, too.
    share = [np.diff(np.ceil(np.round(np.cumsum(counts) * fraction, 6)), prepend=0) for fraction in fractions[1:]]
    validation, test = (np.maximum(items, 1) if fraction else items for items, fraction in zip(share, fractions[1:], strict=True))
    part = np.where(rank < test[labels], 2, np.where(rank < (test + validation)[labels], 1, 0))
    training, validation, test = (shuffled[part[shuffled] == which] for which in range(3))
    return training, validation, test
