"""Labelled pictures to measure a model on: any folder of class folders, or a part of a data set with a name.

Nothing is decoded or held here: a folder may be larger than memory. So a folder that is measured is not read as one to train on is
(`image_folder.py`): it may have one class, classes without a picture, broken pictures, or nothing but `test/`. It is taken whole,
unless it has parts, or is the very data that the model was trained on: then what the model has not seen is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.data.datasets import DATA, Dataset, folder_name, load_dataset
from export.data.image_files import SUFFIXES, ImageFile
from export.data.image_folder import by_part, called_like_parts, images_under, list_folder, loose_images, subfolders
from export.data.splits import PARTS, files_digest, split_off_missing
from export.progress import OnProgress, ignore_progress
from service.errors import UserError
from service.model.contract import Contract
from service.model.files import read_file

ALL = "all"


@dataclass(frozen=True)
class LabelledPictures:
    """N encoded pictures and the class of each.

    Attributes:
        name: of the data.
        part: `training`, `validation`, `test` or `all`.
        labels: names of the classes as the data have them.
        classes: int64[N], indices of `labels`.
        path: where a picture is, by its index; in a data set with a name, its part and number.
        encoded: the bytes of a picture by its index. Raises OSError or UserError if it cannot be read.
        skipped: a line for each file and folder that was left out.
        digest: of the files, as `splits.files_digest`, or of the data set.
        of_training: whether these are, unchanged, the data that the model was trained on.
    """

    name: str
    part: str
    labels: tuple[str, ...]
    classes: NDArray[np.int64]
    path: Callable[[int], str]
    encoded: Callable[[int], bytes]
    skipped: tuple[str, ...] = ()
    digest: str = ""
    of_training: bool = False

    def __len__(self) -> int:
        return len(self.classes)


class _Split(NamedTuple):
    """A folder as a training takes it: names of its classes, files of each part, and a line for each file that is left out."""

    labels: tuple[str, ...]
    parts: dict[str, list[ImageFile]]
    skipped: list[str]
    digest: str


class _Class(NamedTuple):
    """A class folder. Of several parts there may be several of one label."""

    label: str
    folder: Path


def load_pictures(
    data: str, contract: Contract, part: str | None = None, data_dir: Path | None = None, on_progress: OnProgress = ignore_progress
) -> LabelledPictures:
    """The pictures to measure a model with this contract on.

    Args:
        data: one of `datasets.DATA`, or a folder.
        contract: says what the model was trained on, and how that was split.
        part: of the data, or `all`; by default what the model has not seen, as above.
        data_dir: where the files of `mnist` or `cifar10` are, or are downloaded to.
        on_progress: called with each step.

    Raises:
        UserError: there are no such data, or no such part of them; or there is no picture.
    """
    if data.partition(":")[0] in DATA:
        # At their own size: they are resized as they are measured.
        dataset = load_dataset(data, contract.seed, data_dir, on_progress=on_progress)
        return _of_dataset(dataset, part or "test", contract)
    if data_dir is not None:
        raise UserError(f"--data-dir is for mnist and cifar10; --data {data} is a folder of images itself")
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UserError(f"--data {data!r} is not {', '.join(repr(name) for name in DATA)}, nor a folder of images")
    return pictures_of_folder(folder, contract, part, on_progress)


def pictures_of_folder(
    folder: Path, contract: Contract | None = None, part: str | None = None, on_progress: OnProgress = ignore_progress
) -> LabelledPictures:
    """As `load_pictures`, of a folder: `FOLDER/<class>/...`, or any of `FOLDER/train/<class>/...`, `val/` and `test/`.

    Without a contract no picture was seen in training.
    """
    try:
        parts = {name: [_Class(path.name, path) for path in subfolders(where)] for name, where in _parts(folder).items()}
        trained = _split_of_training(folder, parts, contract, on_progress)
        if trained is not None and part != ALL:
            return _of_split(folder, part or "test", trained, of_training=True)
        if part in PARTS and part not in parts:
            return _of_split(folder, part, _split(folder, contract.seed if contract is not None else 0, on_progress))
        chosen = part or next((name for name in ("test", "validation") if name in parts), ALL)
        classes = [one for name, found in parts.items() if chosen in (ALL, name) for one in found]
        return _of_classes(folder, chosen, classes, of_training=trained is not None)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None


def _parts(folder: Path) -> dict[str, Path]:
    """The folder of each part; or, of `all`, the folder itself. Raises UserError if a part is there twice."""
    named = [(part, path) for part, path in called_like_parts(folder) if subfolders(path)]
    # A class may be called "test"; then it has no folders in it, or classes beside it.
    has_parts = any(part == "training" for part, _ in named) or len(named) == len(subfolders(folder)) > 0
    return by_part(named) if has_parts else {ALL: folder}


def _split(folder: Path, seed: int, on_progress: OnProgress) -> _Split:
    """Raises UserError if a training could not take the folder."""
    listing = list_folder(folder, on_progress)
    parts = split_off_missing(listing, folder, seed)
    digest = files_digest(folder, {part: [file.path for file in files] for part, files in parts.items()})
    return _Split(listing.labels, parts, listing.skipped, digest)


def _split_of_training(
    folder: Path, parts: dict[str, list[_Class]], contract: Contract | None, on_progress: OnProgress
) -> _Split | None:
    """The split of the training, if the model was trained on this folder as it is now."""
    training = contract.training if contract is not None else None
    if contract is None or training is None or {one.label for found in parts.values() for one in found} != set(contract.labels):
        return None  # which spares reading the headers of all pictures
    try:
        split = _split(folder, training.seed, on_progress)
    except UserError:
        return None
    return split if split.digest == training.data_digest else None


def _of_split(folder: Path, part: str, split: _Split, *, of_training: bool = False) -> LabelledPictures:
    files = split.parts[part]
    paths, classes = [file.path for file in files], [file.label for file in files]
    return _of_files(folder, part, split.labels, paths, classes, split.skipped, split.digest, of_training)


def _of_classes(folder: Path, part: str, classes: Sequence[_Class], *, of_training: bool) -> LabelledPictures:
    """All pictures of these class folders."""
    if not classes:
        raise UserError(f"{folder}: no class folder; pictures are looked for in folders named as labels are: {folder}/cat/1.jpg")
    around = sorted({folder, *(one.folder.parent for one in classes)})
    skipped = [f"{path}: not in the folder of a class" for where in around for path in loose_images(where)]
    labels = tuple(dict.fromkeys(one.label for one in classes))
    every = {one.folder for one in classes}
    paths: list[Path] = []
    found: list[int] = []
    for label, where in classes:
        before = len(paths)
        paths += images_under(where, every - {where}, skipped)
        found += [labels.index(label)] * (len(paths) - before)
        if len(paths) == before:
            skipped.append(f"{where}: a class folder without a picture")
    if not paths:
        raise UserError(f"{folder}: no picture in its class folders; pictures are files named {', '.join(SUFFIXES)}")
    digest = files_digest(folder, {part: [path for path in paths if path.exists()]})
    return _of_files(folder, part, labels, paths, found, skipped, digest, of_training)


def _of_files(
    folder: Path, part: str, labels: tuple[str, ...], paths: Sequence[Path], classes: Sequence[int], skipped: Sequence[str],
    digest: str, of_training: bool,
) -> LabelledPictures:  # fmt: skip
    return LabelledPictures(
        folder_name(folder.absolute()), part, labels, np.array(classes, np.int64),
        path=lambda index: str(paths[index]), encoded=lambda index: read_file(paths[index]),
        skipped=tuple(skipped), digest=digest, of_training=of_training,
    )  # fmt: skip


def _of_dataset(dataset: Dataset, part: str, contract: Contract) -> LabelledPictures:
    chosen = {name: getattr(dataset, name) for name in PARTS if part in (ALL, name)}
    places = [(name, number) for name, pictures in chosen.items() for number in range(len(pictures))]
    return LabelledPictures(
        dataset.name, part, dataset.labels, np.concatenate([pictures.labels for pictures in chosen.values()]),
        path=lambda index: "{}/{}".format(*places[index]), encoded=lambda index: chosen[places[index][0]].encoded(places[index][1]),
        digest=dataset.digest, of_training=contract.training is not None and contract.training.data_digest == dataset.digest,
    )  # fmt: skip
