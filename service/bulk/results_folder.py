"""The folder that a run writes pictures into: they are results, and no sources where the folder lies in one."""

import os
from functools import lru_cache
from pathlib import Path


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
        folder, name = os.path.split(path.rstrip("/"))
        here = os.getcwd()  # noqa: PTH109
        return f"{_real(here, folder)}/{name}/".startswith(f"{_real(here, str(self._folder))}/")


@lru_cache(1000)
def _real(here: str, folder: str) -> str:
    return os.path.realpath(os.path.join(here, folder)).rstrip("/")  # noqa: PTH118
