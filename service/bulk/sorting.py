"""`--sort-into DIR`: each picture in the folder of its label.

No file is ever overwritten, and none is written outside of DIR. A name that another picture has gets a part of the digest of the
picture's path. A file that is there with the same content is taken for what an interrupted run has made, unless another row of this
output has it: of two pictures of one name and content, which runs with different outputs sort into one DIR, one file is there.
A picture that is moved is removed from its old place when its row is written, so that a kill at any moment loses neither. Where an
earlier run of another mode has put a link to it, the picture takes the link's place.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import cast

from service.bulk.moving import copy, holds_bytes_of, is_another, linked, remove_moved, replace_link
from service.bulk.path_set import PathSet
from service.bulk.pictures import Picture, name_of, path_of, scheme
from service.bulk.results_folder import ResultsFolder, resolved
from service.bulk.safe_names import folder_names, safe_name
from service.bulk.whole_file import beside_of, digest_of, put, renamed
from service.errors import UserError

UNSURE = "unsure"
"""The folder of pictures whose best label is less probable than is asked for."""


class How(StrEnum):
    """How a picture comes into its folder; from an archive or a URL it is always copied."""

    COPY = "copy"
    LINK = "link"
    MOVE = "move"


class Sorter:
    """Puts pictures into folders. `folder` is DIR; with a `min_probability`, less probable pictures go to `unsure`."""

    def __init__(self, folder: Path, how: How, min_probability: float) -> None:
        self.folder = folder
        self.results = ResultsFolder(folder)
        self._how = how
        self._min_probability = min_probability
        self._folders: dict[str, str] = {}
        self._made: set[str] = set()
        self._claimed = PathSet()
        self._to_remove: list[tuple[str, str]] = []
        self.not_removed = 0
        """How many pictures that are to be moved are still at their old place, too, though their rows are written."""

    def open(self, labels: Sequence[str]) -> None:
        """Makes DIR. Raises UserError if that cannot be."""
        self._folders = folder_names(labels, UNSURE)
        self.results.make("--sort-into")

    def claim(self, path: str, sorted_to: str | None) -> bool:
        """Takes note of an earlier run's row, and removes a picture that the run was stopped before removing.

        False if the picture was moved, and another one has come in its old place. If its new place is empty, nobody knows.
        """
        if sorted_to is None:
            return True
        source, target = path_of(path), path_of(sorted_to)
        self._claimed.add(resolved(target))
        if self._how is How.MOVE and not scheme(source) and os.path.isfile(source):  # noqa: PTH113
            with contextlib.suppress(OSError):
                replace_link(source, Path(target), beside_of(Path(target), path))
            if is_another(source, target):
                return False
            self._remove(source, target)
        return True

    def place(self, picture: Picture, label: str, probability: float) -> str:
        """Puts a picture into its folder; its path there, as in the output. Raises UserError if that cannot be.

        A picture that is moved is still at its old place, too: see `recorded`.
        """
        folder = UNSURE if probability < self._min_probability else self._folders.get(label) or safe_name(label)
        try:
            self._make(folder)
            return self._place(picture, folder)
        except OSError as error:
            raise UserError(f"cannot be put into {self.folder / folder}: {error.strerror or error}") from None

    def _make(self, folder: str) -> None:
        if folder in self._made:
            return
        path = self.folder / folder
        path.mkdir(exist_ok=True)
        if path.is_symlink():
            raise UserError(f"{path} is a link: pictures are sorted into folders of {self.folder} alone")
        self._made.add(folder)

    def _place(self, picture: Picture, folder: str) -> str:
        source = picture.path
        name = os.path.basename(source) if source is not None else _last_name(picture.name)  # noqa: PTH119
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        digest = digest_of(picture.name)
        stem = os.fsdecode(os.fsencode(stem)[:200])
        for candidate in (name, f"{stem}-{digest}{suffix}", f"{stem}-{digest}-{secrets.token_hex(4)}{suffix}"):
            target = self.folder / folder / candidate
            beside = beside_of(target, picture.name)
            if resolved(str(target)) in self._claimed:
                continue
            if self._how is How.MOVE and source is not None:
                replace_link(source, target, beside)
            if not self._put(picture, target, beside):
                continue
            self._claimed.add(resolved(str(target)))
            return name_of(str(target))
        raise FileExistsError(None, "every name is taken")

    def _put(self, picture: Picture, target: Path, beside: Path) -> bool:
        """False if another file has the name. What a kill leaves half copied `beside` it, the next run overwrites and removes."""
        if picture.path is None:
            return put(cast(bytes, picture.image), target, beside)
        if self._is_there(picture.path, target):
            beside.unlink(missing_ok=True)
            return True
        if self._how is How.LINK:
            with contextlib.suppress(FileExistsError):
                target.symlink_to(os.path.abspath(picture.path))  # noqa: PTH100 - resolve() follows links
                return True
            return False
        if os.path.lexists(target):
            return False
        if self._how is How.MOVE and linked(picture.path, target):
            return True
        try:
            if self._how is How.MOVE:
                copy(picture.path, beside)
            else:
                shutil.copy2(picture.path, beside)
            return renamed(beside, target)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()

    def _is_there(self, source: str, target: Path) -> bool:
        """Whether the target is what this would make."""
        try:
            if self._how is How.LINK:
                return target.is_symlink() and os.readlink(target) == os.path.abspath(source)  # noqa: PTH100, PTH115
            return holds_bytes_of(source, str(target))
        except OSError:
            return False

    def recorded(self, picture: Picture, placed: str) -> None:
        """The output has taken the row of a picture that was put there, and may yet have to write it."""
        if self._how is How.MOVE and picture.path is not None:
            self._to_remove.append((picture.path, path_of(placed)))

    def written(self) -> None:
        """The rows of all pictures that are `recorded` are written: those that are moved are removed from their old place."""
        pairs, self._to_remove = self._to_remove, []
        for source, target in pairs:
            self._remove(source, target)

    def _remove(self, source: str, target: str) -> None:
        self.not_removed += not remove_moved(source, target)


def _last_name(name: str) -> str:
    """Of a picture in an archive or at a URL, whose query is no part of it."""
    if scheme(name) in ("http", "https"):
        name = name.partition("?")[0]
    return safe_name(name.rpartition("/")[2])
