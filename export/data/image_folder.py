"""A folder of pictures as labelled data: which files there are, what size suits them, and their pixels at that size.

Two layouts: `FOLDER/<class>/...` and `FOLDER/train/<class>/...` with `test/` and `val/` beside it, either of which may be missing.
A class may have folders of its own inside. What is no picture, or a broken one, is left out and named; what would make the classes
other than they seem is refused.

Pictures are read twice: their headers first, to choose a size, then whole, to be kept at that size alone. Pillow decodes and
resizes without holding Python's lock, so threads are enough for large ones (500x375 JPEG: 3.2 ms in one thread, 1.7 in two). For
headers and small pictures one thread is best, as handing the lock over costs more than decoding does (32x32 JPEG: 0.22 ms, 0.27).
"""

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.progress import OnProgress
from service.errors import InvalidRequest, UserError
from service.model.contract import InputSpec
from service.model.preprocessing import open_image, to_pixels

MAX_PIXELS = 1 << 26
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
"""Of the formats that are served."""

PARTS = {
    "train": "training", "training": "training", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

_PART_LIKE = re.compile(r"(?<![a-z])(train(ing)?|val(id(ation)?)?|test(ing)?)(?![a-z])", re.IGNORECASE)
_OWN_SIZE_UP_TO = 64
_SIZES = (32, 64, 128, 224)
_GRAY = ("1", "L", "LA", "I", "F")
_FILES_A_TASK = 64
_SMALL_PIXELS = 128 * 128
_MEMORY_SHARE = 0.7

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class File(NamedTuple):
    """A picture's file, the index of its class, and from its header its size (width, height) and whether it is gray."""

    path: Path
    label: int
    size: tuple[int, int]
    gray: bool


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder by part (`training`; `validation` and `test` where the folder has them), and what is left out."""

    labels: tuple[str, ...]
    parts: dict[str, list[File]]
    skipped: list[str]


def listing(folder: Path, on_progress: OnProgress) -> Listing:
    """Finds the pictures of a folder and reads their headers.

    Raises:
        UserError: the folder cannot be read, has fewer than two classes, a class without a picture, or parts whose classes differ.
    """
    try:
        parts, skipped = _parts(folder)
        skipped += [f"{path}: not in the folder of a class" for where in {folder, *parts.values()} for path in _loose(where)]
        classes = {part: _subfolders(where) for part, where in parts.items()}
        labels = _labels(parts, classes)
        every = {where for folders in classes.values() for where in folders}
        found = {
            part: [(path, label) for label, where in enumerate(folders) for path in _pictures(where, every - {where}, skipped)]
            for part, folders in classes.items()
        }
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None
    files = {}
    for part, paths in found.items():
        headers = list(_each(_header, [path for path, _ in paths], f"looking at {part}", on_progress, threads=1))
        files[part] = [File(*path, *header) for path, header in zip(paths, headers, strict=True) if not isinstance(header, str)]
        skipped += [f"{path}: {header}" for (path, _), header in zip(paths, headers, strict=True) if isinstance(header, str)]
        empty = sorted(set(range(len(labels))) - {file.label for file in files[part]})
        if empty:
            raise UserError(
                f"{classes[part][empty[0]]}: a class folder without a picture that can be read; left out: {_first(skipped)}; "
                f"pictures are files named {', '.join(SUFFIXES)}"
            )
    return Listing(labels, files, skipped)


def suitable_input(files: list[File]) -> InputSpec:
    """The input for these pictures.

    Their own size if all have the same of at most 64x64; else the smallest square of 32, 64, 128 and 224 that their longer side,
    taken in the middle of them, does not exceed, or 224. Gray if all are gray.
    """
    width, height = files[0].size
    if len({file.size for file in files}) > 1 or max(width, height) > _OWN_SIZE_UP_TO:
        longer = float(np.median([max(file.size) for file in files]))
        width = height = next((side for side in _SIZES if longer <= side), _SIZES[-1])
    return InputSpec(height=height, width=width, channels=1 if all(file.gray for file in files) else 3)


def description(files: list[File]) -> str:
    """What the pictures are like, in a few words."""
    widths, heights = zip(*(file.size for file in files), strict=True)
    gray = sum(file.gray for file in files)
    size = (
        f"{heights[0]}x{widths[0]}"
        if len({*zip(widths, heights, strict=True)}) == 1
        else f"{min(heights)}x{min(widths)} to {max(heights)}x{max(widths)}"
    )
    return f"{size}, {'gray' if gray == len(files) else 'color' if gray == 0 else f'{gray:,} of {len(files):,} gray'}"


def check_memory(pictures: int, spec: InputSpec, copies: int = 1) -> None:
    """Raises UserError if so many pictures do not fit into this machine's memory at the size of `spec`, so many times over."""
    needed = copies * pictures * spec.size_bytes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _MEMORY_SHARE * memory:
        raise UserError(
            f"{pictures:,} pictures of {'x'.join(map(str, spec.shape))} take {needed / 1e9:.1f} GB"
            f"{f' {copies} times over' if copies > 1 else ''}, and this machine has {memory / 1e9:.1f} GB: "
            "choose a smaller --image-size"
        )


def pixels(files: list[File], spec: InputSpec, what: str, on_progress: OnProgress) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Decodes pictures as serving does: uint8[N,H,W,C], and for each what is wrong with it, if anything (its pixels are then 0)."""
    kept = np.zeros((len(files), *spec.shape), dtype=np.uint8)

    def decode_into(index: int) -> str | None:
        try:
            kept[index] = to_pixels(open_image(files[index].path.read_bytes(), MAX_PIXELS), spec)
        except OSError as error:
            return error.strerror or str(error)
        except InvalidRequest as error:
            return str(error)
        return None

    small = float(np.median([file.size[0] * file.size[1] for file in files])) <= _SMALL_PIXELS if files else True
    return kept, list(_each(decode_into, range(len(files)), what, on_progress, threads=1 if small else _cores()))


def _parts(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of the parts, and what lies beside them."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    inside = _subfolders(folder)
    named = [path for path in inside if path.name.lower() in PARTS]
    # A class may be called "train", of railway trains say; a part holds folders, a class pictures.
    if not any(PARTS[path.name.lower()] == "training" and _subfolders(path) for path in named):
        return {"training": folder}, []
    parts: dict[str, Path] = {}
    for path in named:
        part = PARTS[path.name.lower()]
        if part in parts:
            raise UserError(f"{parts[part]} and {path} are both the {part} part: leave one of them")
        parts[part] = path
    beside = [f"{path}: not one of train, val and test" for path in inside if path not in named]
    return {part: parts[part] for part in ("training", "validation", "test") if part in parts}, beside


def _labels(parts: dict[str, Path], classes: dict[str, list[Path]]) -> tuple[str, ...]:
    """The names of the classes, which are the same in every part."""
    folder = parts["training"]
    labels = tuple(path.name for path in classes["training"])
    if len(labels) < 2:
        found = f"one class folder alone, {labels[0]!r}" if labels else "no class folder"
        raise UserError(f"{folder}: {found}; wanted are two or more, as in {folder}/cat/1.jpg and {folder}/dog/1.jpg")
    if (
        all(_PART_LIKE.search(label) for label in labels)
        and len({tuple(inside) for inside in map(_classes_of, classes["training"])}) == 1
    ):
        raise UserError(
            f"{folder}: {', '.join(labels)} hold the same folders, so they look like parts and not like classes: name them train, "
            "val and test"
        )
    for label in labels:
        if not label.isprintable():
            raise UserError(f"{folder}: the class folder {label!r} has a name that cannot be printed: rename it")
    for part, where in parts.items():
        names = {path.name for path in classes[part]}
        if difference := sorted(names ^ set(labels)):
            has, lacks = (where, folder) if difference[0] in names else (folder, where)
            raise UserError(f"{has} has a class {difference[0]!r} that {lacks} has not: every part needs the same class folders")
    return labels


def _classes_of(part: Path) -> list[str]:
    """The folders in what may be a part; for what is a class, with pictures of its own or none but one folder, its path alone."""
    names = [path.name for path in _subfolders(part)]
    return names if len(names) > 1 and not _loose(part) else [str(part)]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _loose(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path.name)
    )


def _pictures(folder: Path, others: Collection[Path], skipped: list[str]) -> Iterator[Path]:
    """The pictures under a class folder, at any depth, in the order of their names; notes what is none.

    Links to folders are gone into, once, but for those that lead into one of the `others`, or up to what holds them.
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
                skipped.append(f"{link}: a link to where other classes are")
        for name in sorted(names):
            path = Path(where, name)
            if _hidden(name):
                continue
            if path.suffix.lower() in SUFFIXES:
                yield path
            else:
                skipped.append(f"{path}: not named like a picture")


def _leads_to(link: Path, folders: Collection[Path]) -> bool:
    """Whether a link ends in one of the folders, or in one that they are in."""
    end = link.resolve()
    return any(end.is_relative_to(folder) or folder.is_relative_to(end) for folder in (path.resolve() for path in folders))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _header(path: Path) -> tuple[tuple[int, int], bool] | str:
    try:
        with path.open("rb") as file:
            image = open_image(file.read(), MAX_PIXELS)
    except OSError as error:
        return error.strerror or str(error)
    except InvalidRequest as error:
        return str(error)
    return image.size, image.mode in _GRAY or image.mode.startswith("I;16")


def _each(
    function: Callable[[_Item], _Result], items: Sequence[_Item], what: str, on_progress: OnProgress, threads: int
) -> Iterator[_Result]:
    """The results of a function for each item, in order, by threads that stop when nobody wants more."""
    tasks = [items[at : at + _FILES_A_TASK] for at in range(0, len(items), _FILES_A_TASK)]
    pool = ThreadPoolExecutor(threads)
    done = 0
    try:
        for results in pool.map(lambda task: [function(item) for item in task], tasks):
            done += len(results)
            on_progress(what, done, len(items))
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _first(skipped: list[str]) -> str:
    return f"{skipped[0]}, and {len(skipped) - 1} more" if len(skipped) > 1 else skipped[0] if skipped else "nothing"
