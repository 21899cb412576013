"""Folders and globs: their pictures one by one, in the order of their names, in little memory however many there are."""

import fnmatch
import heapq
import os
import re
import tempfile
from collections.abc import Callable, Iterator
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
    stack: list[tuple[str, _Names, _Identity]] = []
    enter = root
    while enter or stack:
        if enter:
            try:
                here, names = _identity(enter), sorted_names(enter)
            except OSError as error:
                yield Picture(name_of(enter), None, error.strerror or str(error))
            else:
                if any(here == above for *_, above in stack):
                    left_out.counts["links to a folder that they are in"] += 1
                else:
                    stack.append((enter, names, here))
            enter = ""
            continue
        folder, names, _ = stack[-1]
        for name, is_folder in names:
            path = f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"
            if not is_folder:
                if left_out.takes(name):
                    yield Picture(name_of(path), path)
            elif name.startswith("."):
                left_out.counts["hidden"] += 1
            elif not skip(path):
                enter = path
                break
        else:
            stack.pop()


def _identity(folder: str) -> _Identity:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def sorted_names(folder: str) -> _Names:
    """The names in a folder, sorted, and whether each is a folder. Raises OSError at once if it cannot be read.

    Of a folder of very many, sorted parts are in a temporary file, so that a million names take no more memory than 50,000.
    """
    parts: list[_Names] = []
    names: list[tuple[str, bool]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
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


def glob(pattern: str) -> Iterator[str]:
    """The paths that match, folder by folder; `**` is any number of folders. As in a shell, * does not match a hidden name."""
    parts = [part for part in pattern.split("/") if part]
    parts = [part for at, part in enumerate(parts) if part != "**" or at == 0 or parts[at - 1] != "**"]
    yield from _matches("/" if pattern.startswith("/") else "", parts)


def _matches(base: str, parts: list[str]) -> Iterator[str]:
    """`base` is empty or ends in a slash, as long as there are parts."""
    if not parts:
        yield base or "."
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder in _folders(base) if rest else [base]:
            yield from _matches(folder, rest)
        return
    if not is_glob(part):
        if rest or os.path.lexists(base + part):
            yield from _matches(f"{base}{part}/" if rest else base + part, rest)
        return
    try:
        names = sorted_names(base or ".")
    except OSError:
        return
    matches = re.compile(fnmatch.translate(part)).match
    for name, is_folder in names:
        if matches(name) and (part.startswith(".") or not name.startswith(".")):
            if not rest:
                yield base + name
            elif is_folder:
                yield from _matches(f"{base}{name}/", rest)


def _folders(base: str) -> Iterator[str]:
    """`base` and all folders below it that are not hidden, each with a slash at its end."""
    stack: list[tuple[str, _Names, _Identity]] = []
    enter: str | None = base
    while enter is not None or stack:
        if enter is not None:
            try:
                here, names = _identity(enter or "."), sorted_names(enter or ".")
            except OSError:
                names = iter(())
            else:
                if not any(here == above for *_, above in stack):
                    yield enter
                    stack.append((enter, names, here))
            enter = None
            continue
        folder, names, _ = stack[-1]
        enter = next((f"{folder}{name}/" for name, is_folder in names if is_folder and not name.startswith(".")), None)
        if enter is None:
            stack.pop()
