"""Folders and globs: their pictures one by one, in the order of their names, in little memory however many there are."""

import fnmatch
import heapq
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from enum import Enum
from typing import IO

from service.bulk.pictures import LeftOut, Picture, name_of

_NAMES_IN_MEMORY = 50_000
_MAGIC = re.compile(r"[*?[]")

_Names = Iterator[tuple[str, bool]]
_Identity = tuple[int, int]
Skip = Callable[[str], bool]
"""Whether a folder, given by its path, is left out with all that is in it."""


def walk(root: str, left_out: LeftOut, skip: Skip) -> Iterator[Picture]:
    """The pictures in a folder and those below it. Links to folders are followed, but not to a folder that they are in."""

    def on_other() -> None:
        left_out.counts["pipes, sockets and devices"] += 1

    for met, path, name in _descend(root, root if root.endswith("/") else f"{root}/", skip, on_other):
        if met is _Met.FILE:
            if left_out.takes(name):
                yield Picture(name_of(path), path)
        elif met is _Met.ERROR:
            yield Picture(name_of(path), None, name)
        elif met is not _Met.FOLDER:
            left_out.counts[met.value] += 1


class _Met(Enum):
    """What a descent into folders meets; what has no picture in it by the name that it is counted under."""

    FOLDER = ""
    FILE = "file"
    ERROR = "error"
    HIDDEN = "hidden"
    LOOP = "links to a folder that they are in"


def _descend(root: str, base: str, skip: Skip, on_other: Callable[[], None] = lambda: None) -> Iterator[tuple[_Met, str, str]]:
    """What is in a folder and in those below it: its path and its name; of an error, the folder's path and what is wrong.

    `base` is what stands in front of a name in `root`. Of a FOLDER the path is that of names in it, too.
    """
    stack: list[tuple[str, _Names, _Identity]] = []
    entering: tuple[str, str] | None = root, base
    while entering or stack:
        if entering:
            path, base = entering
            entering = None
            try:
                here, names = _identity(path), sorted_names(path, on_other)
            except OSError as error:
                yield _Met.ERROR, path, error.strerror or str(error)
            else:
                if any(here == above for *_, above in stack):
                    yield _Met.LOOP, path, ""
                else:
                    stack.append((base, names, here))
                    yield _Met.FOLDER, base, ""
            continue
        base, names, _ = stack[-1]
        for name, is_folder in names:
            path = base + name
            if not is_folder:
                yield _Met.FILE, path, name
            elif name.startswith("."):
                yield _Met.HIDDEN, path, name
            elif not skip(path):
                entering = path, f"{path}/"
                break
        else:
            stack.pop()


def _identity(folder: str) -> _Identity:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def sorted_names(folder: str, on_other: Callable[[], None] = lambda: None) -> _Names:
    """The names in a folder, sorted, and whether each is a folder. Raises OSError at once if it cannot be read.

    Pipes, sockets and devices are left out, and `on_other` is called for each: who reads a pipe may wait for ever.
    Of a folder of very many, sorted parts are in a temporary file, so that a million names take no more memory than 50,000.
    """
    parts: list[_Names] = []
    names: list[tuple[str, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_endless(entry):
                on_other()
                continue
            names.append((entry.name, _is_folder(entry)))
            if len(names) == _NAMES_IN_MEMORY:
                parts.append(_in_file(sorted(names)))
                names = []
    names.sort()
    return heapq.merge(*parts, names) if parts else iter(names)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere or to itself: reading it says so
        return False


def _is_endless(entry: "os.DirEntry[str]") -> bool:
    try:
        if entry.is_file() or entry.is_dir():  # without a system call, unless it is a link
            return False
        entry.stat()
    except OSError:  # as in _is_folder
        return False
    return True


def _in_file(names: list[tuple[str, bool]]) -> _Names:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _read, or when nobody reads on
    file.writelines(os.fsencode(name) + (b"/\0" if is_folder else b"\0") for name, is_folder in names)
    file.seek(0)
    return _read(file)


def _read(file: IO[bytes]) -> _Names:
    with file:
        rest = b""
        while chunk := file.read(1 << 14):
            *whole, rest = (rest + chunk).split(b"\0")
            for name in whole:
                yield os.fsdecode(name.removesuffix(b"/")), name.endswith(b"/")


def is_glob(source: str) -> bool:
    """Whether a path has one of * ? [ in it."""
    return _MAGIC.search(source) is not None


def glob(pattern: str, skip: Skip = lambda _: False) -> Iterator[str]:
    """The paths that match, folder by folder; `**` is any number of folders. As in a shell, * does not match a hidden name.

    No sign of the pattern matches a folder that `skip` names, nor does a name after one; a name before the first sign may.
    """
    parts = [part for part in pattern.split("/") if part]
    parts = [part for at, part in enumerate(parts) if part != "**" or at == 0 or parts[at - 1] != "**"]
    at = next((at for at, part in enumerate(parts) if is_glob(part)), len(parts))
    base = ("/" if pattern.startswith("/") else "") + "".join(f"{part}/" for part in parts[:at])
    if at < len(parts):
        yield from _matches(base, parts[at:], skip)
    elif os.path.lexists(pattern):
        yield base.rstrip("/") or "/"


def _matches(base: str, parts: list[str], skip: Skip) -> Iterator[str]:
    """`base` is empty or ends in a slash, as long as there are parts."""
    if not parts:
        yield base or "."
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder in _folders(base, skip) if rest else [base]:
            yield from _matches(folder, rest, skip)
        return
    if not is_glob(part):
        if os.path.lexists(base + part) and not skip(base + part):
            yield from _matches(f"{base}{part}/" if rest else base + part, rest, skip)
        return
    try:
        names = sorted_names(base or ".")
    except OSError:
        return
    matches = re.compile(fnmatch.translate(part)).match
    for name, is_folder in names:
        if matches(name) and (part.startswith(".") or not name.startswith(".")) and not (is_folder and skip(base + name)):
            if not rest:
                yield base + name
            elif is_folder:
                yield from _matches(f"{base}{name}/", rest, skip)


def _folders(base: str, skip: Skip) -> Iterator[str]:
    """`base` and all folders below it that are not hidden, each with a slash at its end."""
    return (path for met, path, _ in _descend(base or ".", base, skip) if met is _Met.FOLDER)
