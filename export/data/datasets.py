"""Labelled images in three parts: training, validation and test.

Each part has its images as the pixels that a network takes, decoded by the code that serves them, and as the encoded files that a
client would send. Choices such as the epoch to keep are made on the validation part. The test part is measured once, at the end.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.data.augmentation import Augmentation
from export.data.cifar10 import load_cifar10
from export.data.image_files import ImageFile, check_memory, describe, read_pixels, suitable_input
from export.data.image_folder import count_classes, list_folder
from export.data.input_choice import InputChoice
from export.data.mnist import load_mnist
from export.data.splits import PARTS, files_digest, split_off_missing, stratified_split
from export.files import read_file
from export.progress import OnProgress, ignore_progress
from export.text import first_of
from service.errors import UserError
from service.model.input_spec import InputSpec
from service.model.preprocessing import encode_png, resize

DATA = ("digits", "mnist", "cifar10")
"""The data sets with a name; anything else is a folder of images."""

_LISTED = 5


@dataclass(frozen=True)
class Part:
    """Labelled images.

    Attributes:
        pixels: uint8[N,H,W,C], as the server decodes them.
        labels: int64[N], indices of the classes.
        encoded: gives the bytes of an image file by its index, as a client would send it.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    encoded: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A named set of labelled images.

    Attributes:
        name: can be the name of a model.
        labels: the names of the classes.
        input: the images that a network for these data takes.
        training: the part to train on.
        validation: the part to make choices by.
        test: the part to measure once, at the end.
        augmentation: how training images may be changed.
        source: what `load_dataset` takes to load the same images again, from any working folder.
        original_format: size and colours of the images before they were resized to `input`, in words.
        skipped: a line for each file that was left out.
        digest: changes when the parts change. One image more in a folder changes the whole split.
    """

    name: str
    labels: tuple[str, ...]
    input: InputSpec
    training: Part
    validation: Part
    test: Part
    augmentation: Augmentation = field(default_factory=Augmentation)
    source: str = ""
    original_format: str = ""
    skipped: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True)
class DatasetOptions:
    """Options of a data set; None takes its default.

    Attributes:
        input: of the network, if there is one already; else what is asked for.
        flip: as in Augmentation.
        shift_pixels: as in Augmentation.
    """

    input: InputSpec | InputChoice = field(default_factory=InputChoice)
    flip: bool | None = None
    shift_pixels: int | None = None


def load_dataset(
    data: str,
    seed: int,
    data_dir: Path | None = None,
    options: DatasetOptions = DatasetOptions(),
    on_progress: OnProgress = ignore_progress,
) -> Dataset:
    """Loads a data set. The same seed gives the same parts.

    Args:
        data: one of DATA, the path of a folder of images, or the `source` of a data set that was loaded before.
        seed: of the split into parts, as far as the data are not split already.
        data_dir: where the files of `mnist` or `cifar10` are, or are downloaded to; by default the user's cache.
        options: replace the data set's defaults.
        on_progress: called with each step.

    Raises:
        UserError: no such data; they cannot be downloaded or read; there are fewer than two classes; or an option does not fit.
    """
    name, _, source_dir = data.partition(":")
    if name not in DATA:
        if data_dir is not None:
            raise UserError(f"--data-dir is for mnist and cifar10; --data {data} is a folder of images itself")
        return _load_folder(data, seed, options, on_progress)
    if name == "digits":
        if data_dir is not None or source_dir:
            raise UserError("--data-dir is for mnist and cifar10; the digits come with scikit-learn")
        return _load_digits(seed, options)
    where = (data_dir or Path(source_dir)).expanduser().absolute() if data_dir or source_dir else None
    return _load_published(name, where, seed, options, on_progress)


def known_classes(data: str) -> int | None:
    """The number of classes of a data set or folder, found at once; None if it cannot be told before the data are read."""
    if data.partition(":")[0] in DATA:
        return 10
    return count_classes(Path(data).expanduser().absolute())


def reload_dataset(
    source: str,
    seed: int,
    spec: InputSpec,
    labels: tuple[str, ...],
    data: str | None = None,
    data_dir: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Dataset:
    """Loads the data that a network was trained on, with the same parts and input.

    Args:
        source: the `source` of the data set.
        seed: the seed of the training run.
        spec: the network's input.
        labels: the network's classes.
        data: where the data are now, if they have moved; as in `load_dataset`.
        data_dir: where the files of `mnist` or `cifar10` are now, if they have moved.
        on_progress: called with each step.

    Raises:
        UserError: as `load_dataset`; or the classes are not `labels`.
    """
    options = DatasetOptions(input=spec)
    try:
        dataset = load_dataset(data or source, seed, data_dir, options, on_progress)
    except UserError as error:
        if data is not None or data_dir is not None:
            raise
        raise UserError(
            f"cannot load the data of this run again: {error} (if they have moved, give --data or --data-dir)"
        ) from None
    if dataset.labels != labels:
        raise UserError(
            f"{data or source}: not the data of this run, whose classes are {first_of(labels, _LISTED)}; "
            f"these have {first_of(dataset.labels, _LISTED)}"
        )
    return dataset


def folder_name(folder: Path) -> str:
    """The name of the data in a folder; it can be the name of a model."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).lstrip("._-")[:64] or "pictures"


def _load_digits(seed: int, options: DatasetOptions) -> Dataset:
    """1,797 handwritten digits, 8x8, gray, white on black: the UCI test set that comes with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 17 levels of gray to 256
    labels = bunch.target.astype(np.int64)
    spec = _chosen_input(InputSpec(height=28, width=28, channels=1), options)
    training, validation, test = (
        _resized(images[chosen], labels[chosen], spec) for chosen in stratified_split(labels, (0.7, 0.1, 0.2), seed)
    )
    return Dataset(
        "digits", tuple(str(digit) for digit in range(10)), spec, training, validation, test,
        augmentation=_chosen_augmentation(Augmentation(shift_pixels=2), options, spec, readable=True),
        source="digits", original_format="8x8, gray", digest="digits",
    )  # fmt: skip


def _load_published(name: str, where: Path | None, seed: int, options: DatasetOptions, on_progress: OnProgress) -> Dataset:
    """A data set whose authors split it into training and test. 5,000 images or a tenth of training become validation."""
    load, default = {
        "mnist": (load_mnist, Augmentation(shift_pixels=1)),
        "cifar10": (load_cifar10, Augmentation(shift_pixels=4, flip=True, padding="reflect")),
    }[name]
    names, training, test = load(where, on_progress)
    height, width, *colour = training.pixels.shape[1:]
    spec = _chosen_input(InputSpec(height=height, width=width, channels=3 if colour else 1), options)
    share = min(0.1, 5000 / len(training.labels))
    kept, held_out, _ = stratified_split(training.labels, (1 - share, share, 0), seed)
    return Dataset(
        name, names, spec,
        _resized(training.pixels[kept], training.labels[kept], spec, "resizing training", on_progress),
        _resized(training.pixels[held_out], training.labels[held_out], spec, "resizing validation", on_progress),
        _resized(test.pixels, test.labels, spec, "resizing test", on_progress),
        augmentation=_chosen_augmentation(default, options, spec, readable=name == "mnist"),
        source=name if where is None else f"{name}:{where}",
        original_format=f"{height}x{width}, {'colour' if colour else 'gray'}", digest=name,  # the files' checksums are fixed
    )  # fmt: skip


def _load_folder(data: str, seed: int, options: DatasetOptions, on_progress: OnProgress) -> Dataset:
    """A folder of images. The parts that it does not have are split off training, a tenth each."""
    folder = Path(data).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--data {data!r} is not {', '.join(repr(name) for name in DATA)}, nor a folder of images")
    listing = list_folder(folder, on_progress)
    every = [file for files in listing.parts.values() for file in files]
    spec = _chosen_input(suitable_input(every), options)
    check_memory(len(every), spec)
    files = split_off_missing(listing, folder, seed)
    skipped = list(listing.skipped)
    parts = {part: _read_part(files[part], spec, part, skipped, on_progress) for part in PARTS}
    _check_every_class_left(parts, listing.labels, folder, skipped)
    shift = max(1, round(min(spec.height, spec.width) / 8))
    return Dataset(
        folder_name(folder), listing.labels, spec, **parts,
        augmentation=_chosen_augmentation(Augmentation(shift, flip=True, padding="reflect"), options, spec),
        source=str(folder), original_format=describe(every), skipped=tuple(skipped),
        digest=files_digest(folder, {part: [file.path for file in files[part]] for part in PARTS}),
    )  # fmt: skip


def _read_part(files: list[ImageFile], spec: InputSpec, part: str, skipped: list[str], on_progress: OnProgress) -> Part:
    """Reads the images of a part; adds a line to `skipped` for each broken file."""
    pixels, problems = read_pixels(files, spec, f"reading {part}", on_progress)
    if any(problems):
        skipped += [f"{file.path}: {problem}" for file, problem in zip(files, problems, strict=True) if problem is not None]
        good = [index for index, problem in enumerate(problems) if problem is None]
        pixels, files = pixels[good], [files[index] for index in good]
    return Part(pixels, np.array([file.label for file in files], np.int64), lambda index: read_file(files[index].path))


def _check_every_class_left(parts: dict[str, Part], labels: tuple[str, ...], folder: Path, skipped: list[str]) -> None:
    for name, part in parts.items():
        lacking = sorted(set(range(len(labels))) - set(part.labels.tolist()))
        if lacking:
            raise UserError(
                f"{folder}: no image of class {labels[lacking[0]]!r} is left for {name}; left out: {first_of(skipped, _LISTED)}"
            )


def _chosen_input(default: InputSpec, options: DatasetOptions) -> InputSpec:
    return options.input if isinstance(options.input, InputSpec) else options.input.of(default)


def _chosen_augmentation(default: Augmentation, options: DatasetOptions, spec: InputSpec, readable: bool = False) -> Augmentation:
    """The augmentation with the options. Raises UserError if `readable` images are to be flipped, or the shift is too large."""
    if readable and options.flip:
        raise UserError("--flip: a mirrored digit is another sign or none; digits and mnist are trained without")
    shift = default.shift_pixels if options.shift_pixels is None else options.shift_pixels
    most = (min(spec.height, spec.width) - 1) // 2
    if options.shift_pixels is not None and shift > most:
        raise UserError(f"--shift {shift}: images of {spec.height}x{spec.width} can be shifted by at most {most} pixels")
    return Augmentation(min(shift, most), default.flip if options.flip is None else options.flip, default.padding)


def _resized(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    spec: InputSpec,
    step: str = "",
    on_progress: OnProgress = ignore_progress,
) -> Part:
    """A part of images uint8[N,h,w] or uint8[N,h,w,3] in memory."""
    pixels = images.reshape(len(images), *images.shape[1:3], -1)
    if pixels.shape[1:] != spec.shape or spec.crop is not None:  # a crop is of a picture that was made larger
        check_memory(len(images), spec)
        pixels = np.empty((len(images), *spec.shape), np.uint8)
        for index, image in enumerate(images):
            pixels[index] = resize(image, spec)
            if index % 1000 == 999:
                on_progress(step, index + 1, len(images))
    return Part(pixels, labels, lambda index: encode_png(images[index]))
