"""Splitting labelled data into training, validation and test, and a digest that tells whether a split is still the same."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.data.image_files import ImageFile
from export.data.image_folder import Listing
from service.errors import UserError

PARTS = ("training", "validation", "test")


def stratified_split(
    labels: NDArray[np.int64], fractions: tuple[float, float, float], seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Splits the indices of `labels` (int64[N]) into training, validation and test, with the same fractions of every class.

    A class with three items or more has at least one in every part whose fraction is not 0. scikit-learn's split does not do that.
    """
    counts = np.bincount(labels)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.empty(len(labels), np.intp)  # the position of each item within its class
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Rounding is carried from class to class, so that the sizes of the parts are right to one item, too.
    share = [np.diff(np.ceil(np.round(np.cumsum(counts) * fraction, 6)), prepend=0) for fraction in fractions[1:]]
    validation, test = (np.maximum(items, 1) if fraction else items for items, fraction in zip(share, fractions[1:], strict=True))
    part = np.where(rank < test[labels], 2, np.where(rank < (test + validation)[labels], 1, 0))
    training, validation, test = (shuffled[part[shuffled] == which] for which in range(3))
    return training, validation, test


def split_off_missing(listing: Listing, folder: Path, seed: int) -> dict[str, list[ImageFile]]:
    """The files of all three parts of a folder: a part that it does not have is a tenth of every class of its training part.

    Raises:
        UserError: a class has too few images to be in every part.
    """
    missing = [part for part in ("validation", "test") if part not in listing.parts]
    if not missing:
        return listing.parts
    files = listing.parts["training"]
    labels = np.array([file.label for file in files])
    counts = np.bincount(labels, minlength=len(listing.labels))
    smallest = counts.argmin()
    if counts[smallest] <= len(missing):
        raise UserError(
            f"{folder}: class {listing.labels[smallest]!r} has {counts[smallest]} images, too few to be split into training and "
            f"{' and '.join(missing)}: it needs at least {len(missing) + 1}"
        )
    validation, test = (0.1 if part in missing else 0.0 for part in ("validation", "test"))
    indices = stratified_split(labels, (1 - validation - test, validation, test), seed)
    split = {part: [files[index] for index in chosen] for part, chosen in zip(PARTS, indices, strict=True)}
    return {part: split[part] if part in ("training", *missing) else listing.parts[part] for part in PARTS}


def files_digest(folder: Path, parts: Mapping[str, Sequence[Path]]) -> str:
    """SHA-256 of which files of a folder are in which part. A file is identified by its path in the folder and its size."""
    held = sorted((part, str(path.relative_to(folder)), path.stat().st_size) for part, paths in parts.items() for path in paths)
    return hashlib.sha256(repr(held).encode(errors="surrogateescape")).hexdigest()
