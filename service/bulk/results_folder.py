"""The folder that a run writes pictures into: they are results, and no sources where the folder lies in one."""

import os
from functools import lru_cache
from pathlib import Path

from service.errors import UserError


class ResultsFolder:
    """DIR of `--sort-into` or `--explain`, whether it is there yet or not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def is_it(self, folder: str) -> bool:
        """Whether this is DIR: a folder of sources that is searched is not searched there."""
        try:
            return self._folder.samefile(folder)
        except (OSError, ValueError):
            return False

    def holds(self, path: str) -> bool:
        """Whether a path leads into DIR, or is DIR."""
        return self.is_it(path) or f"{resolved(path)}/".startswith(f"{_real(os.getcwd(), str(self._folder))}/")  # noqa: PTH109

    def make(self, option: str) -> None:
        """Makes DIR, of this option. Raises UserError if that cannot be."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{option} {self._folder}: is a file: give a folder, which need not exist") from None
        except OSError as error:
            raise UserError(f"{option} {self._folder}: {error.strerror}") from None


def resolved(path: str) -> str:
    """A path however it is spelled: absolute and without links, but that it may be one itself."""
    folder, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        return _real(os.getcwd(), path)  # noqa: PTH109
    return f"{_real(os.getcwd(), folder)}/{name}"  # noqa: PTH109


@lru_cache(1000)
def _real(here: str, folder: str) -> str:
    return os.path.realpath(os.path.join(here, folder)).rstrip("/")  # noqa: PTH118
