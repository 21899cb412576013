"""The images of a folder, by part and class.

Two layouts: `FOLDER/<class>/...`, and `FOLDER/train/<class>/...` with `test/` and `val/` beside it, either of which may be missing.
A class may have subfolders. Files that are broken or not images are left out and listed. Layouts that would give wrong classes
are refused.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from export.data.image_files import SUFFIXES, ImageFile, read_headers
from export.progress import OnProgress
from export.text import first_of
from service.errors import UserError
from service.model.files import NOT_REGULAR

PARTS = {
    "train": "training", "training": "training", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The part that a folder of each name is, in lower case."""

_PART_LIKE = re.compile(r"(?<![a-z])(train(ing)?|val(id(ation)?)?|test(ing)?)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """The images of a folder by part: `training`, and those of `validation` and `test` that the folder has.

    `skipped` has a line for each file that is left out.
    """

    labels: tuple[str, ...]
    parts: dict[str, list[ImageFile]]
    skipped: list[str]


def list_folder(folder: Path, on_progress: OnProgress) -> Listing:
    """Finds the images of a folder and reads their headers.

    Raises:
        UserError: the folder cannot be read, has fewer than two classes with images, or one with images in some parts alone, or its
            parts have different classes.
    """
    try:
        parts, skipped = _find_parts(folder)
        skipped += [f"{path}: not in the folder of a class" for where in {folder, *parts.values()} for path in loose_images(where)]
        classes = {part: subfolders(where) for part, where in parts.items()}
        labels = _labels(parts, classes)
        every = {where for folders in classes.values() for where in folders}
        found = {
            part: [(path, label) for label, where in enumerate(folders) for path in images_under(where, every - {where}, skipped)]
            for part, folders in classes.items()
        }
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None
    files = {}
    for part, paths in found.items():
        headers = read_headers([path for path, _ in paths], f"looking at {part}", on_progress)
        files[part] = [
            ImageFile(path, label, header)
            for (path, label), header in zip(paths, headers, strict=True)
            if not isinstance(header, str)
        ]
        skipped += [f"{path}: {header}" for (path, _), header in zip(paths, headers, strict=True) if isinstance(header, str)]
    empty = {label for label in range(len(labels)) if all(file.label != label for found in files.values() for file in found)}
    if len(labels) - len(empty) < 2:
        empty = set()
    for part in files:
        _check_no_class_empty(files[part], classes[part], skipped, empty)
    return _without_classes(Listing(labels, files, skipped), empty, parts["training"])


def _find_parts(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of the parts, and a line for each folder beside them."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    named = called_like_parts(folder)
    # A class may be called "train", say of railway trains; a part contains folders, a class images.
    if not any(part == "training" and subfolders(path) for part, path in named):
        return {"training": folder}, []
    beside = [f"{path}: not one of train, val and test" for path in subfolders(folder) if path.name.lower() not in PARTS]
    return by_part(named), beside


def called_like_parts(folder: Path) -> list[tuple[str, Path]]:
    """The folders directly in a folder that are called like a part, each with the part."""
    return [(PARTS[path.name.lower()], path) for path in subfolders(folder) if path.name.lower() in PARTS]


def by_part(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """The folder of each part. Raises UserError if there are two of one."""
    parts: dict[str, Path] = {}
    for part, path in named:
        if part in parts:
            raise UserError(f"{parts[part]} and {path} are both the {part} part: leave one of them")
        parts[part] = path
    return {part: parts[part] for part in ("training", "validation", "test") if part in parts}


def count_classes(folder: Path) -> int | None:
    """The number of class folders that hold files named like images, found without reading any; None if it cannot be told."""
    try:
        training = _find_parts(folder)[0]["training"]
        return sum(any(images_under(path, (), [])) for path in subfolders(training))
    except (OSError, UserError):
        return None


def _labels(parts: dict[str, Path], classes: dict[str, list[Path]]) -> tuple[str, ...]:
    """The names of the classes. Raises UserError unless they are two or more, printable, not parts, and the same in every part."""
    folder = parts["training"]
    labels = tuple(path.name for path in classes["training"])
    if len(labels) < 2:
        found = f"only one class folder, {labels[0]!r}" if labels else "no class folder"
        raise UserError(f"{folder}: {found}; two or more are needed, such as {folder}/cat/1.jpg and {folder}/dog/1.jpg")
    if all(_PART_LIKE.search(label) for label in labels) and len({tuple(_classes_of(path)) for path in classes["training"]}) == 1:
        raise UserError(
            f"{folder}: {', '.join(labels)} have the same subfolders, so they look like parts and not classes: name them train, "
            "val and test"
        )
    for label in labels:
        if not label.isprintable():
            raise UserError(f"{folder}: the name of the class folder {label!r} is not printable: rename it")
    for part, where in parts.items():
        names = {path.name for path in classes[part]}
        if difference := sorted(names ^ set(labels)):
            has, lacks = (where, folder) if difference[0] in names else (folder, where)
            raise UserError(
                f"{has} has a class {difference[0]!r} that {lacks} does not have: every part needs the same class folders"
            )
    return labels


def _without_classes(listing: Listing, empty: set[int], folder: Path) -> Listing:
    """The listing without the classes that have no image at all, each named first among what is left out."""
    if not empty:
        return listing
    named = [
        f"{folder / listing.labels[label]}: a class folder without an image that can be read: no class" for label in sorted(empty)
    ]
    kept = [label for label in range(len(listing.labels)) if label not in empty]
    number = {label: index for index, label in enumerate(kept)}
    parts = {part: [file._replace(label=number[file.label]) for file in files] for part, files in listing.parts.items()}
    return Listing(tuple(listing.labels[label] for label in kept), parts, named + listing.skipped)


def _check_no_class_empty(files: list[ImageFile], folders: list[Path], skipped: list[str], left_out_too: set[int]) -> None:
    """Raises UserError if a class that is in other parts has no image in this one."""
    empty = sorted(set(range(len(folders))) - {file.label for file in files} - left_out_too)
    if not empty:
        return
    inside = [line for line in skipped if line.startswith(f"{folders[empty[0]]}/")]
    left_out = first_of(inside or skipped, 1) or "nothing"
    raise UserError(
        f"{folders[empty[0]]}: a class folder without an image that can be read; left out: {left_out}; "
        f"images are files named {', '.join(SUFFIXES)}"
    )


def _classes_of(part: Path) -> list[str]:
    """The class folders of a part; the folder's own path if it is a class, as it has images or fewer than two folders."""
    names = [path.name for path in subfolders(part)]
    return names if len(names) > 1 and not loose_images(part) else [str(part)]


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def loose_images(folder: Path) -> list[Path]:
    """The images directly in a folder."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.name)
    )


def images_under(folder: Path, others: Collection[Path], skipped: list[str]) -> Iterator[Path]:
    """The images under a class folder, at any depth, in the order of their names; other files are added to `skipped`.

    Links to folders are followed once each, unless they lead into one of the `others` or to a folder that contains one.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for where, inside, names in os.walk(folder, onerror=refuse, followlinks=True):
        stat = Path(where).stat()
        if (stat.st_dev, stat.st_ino) in seen:  # a link back up
            inside[:] = []
            continue
        seen.add((stat.st_dev, stat.st_ino))
        inside[:] = sorted(name for name in inside if not _hidden(name))
        for link in [Path(where, name) for name in inside if Path(where, name).is_symlink()]:
            if _leads_to(link, others):
                inside.remove(link.name)
                skipped.append(f"{link}: a symlink into another class")
        for name in sorted(names):
            path = Path(where, name)
            if _hidden(name):
                continue
            if path.suffix.lower() not in SUFFIXES:
                skipped.append(f"{path}: not named like an image")
            elif path.exists() and not path.is_file():  # a pipe would be waited for, a device read without end
                skipped.append(f"{path}: {NOT_REGULAR}")
            else:
                yield path


def _leads_to(link: Path, folders: Collection[Path]) -> bool:
    """Whether a link leads into one of the folders, or to a folder that contains one."""
    end = link.resolve()
    return any(end.is_relative_to(folder) or folder.is_relative_to(end) for folder in (path.resolve() for path in folders))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
