"""Published data sets: downloading the files that are missing, and checking their checksums.

A file that is already in the folder is used. Either way its content must be the published one, so that neither half a file nor
another data set with the same file names is trained on.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.progress import OnProgress
from service.errors import UserError


class LabelledPixels(NamedTuple):
    """Pixels uint8[N,h,w] or uint8[N,h,w,3], and labels int64[N], indices of classes."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class PublishedDataset(NamedTuple):
    """A data set as its authors split it; `labels` are the names of the classes."""

    labels: tuple[str, ...]
    training: LabelledPixels
    test: LabelledPixels


def data_folder(folder: Path | None) -> Path:
    """The given folder, by default one in the user's cache. Raises UserError if it is a file."""
    import pooch

    chosen = folder or Path(pooch.os_cache("convoy"))
    if chosen.exists() and not chosen.is_dir():
        raise UserError(f"--data-dir {str(chosen)!r} is not a folder")
    return chosen


def fetch(path: Path, urls: tuple[str, ...], known_hash: str, on_progress: OnProgress) -> None:
    """Downloads a file unless it exists.

    Args:
        path: the file.
        urls: folders to try in turn, with a slash at the end.
        known_hash: its checksum, as `sha256:...` or `md5:...`.
        on_progress: called with the bytes downloaded.

    Raises:
        UserError: no URL gave the file with this checksum; the message says which file to put where. Or it cannot be written.
    """
    import pooch

    if path.is_file():
        return
    pooch.get_logger().setLevel("ERROR")  # the bar and the error say the same
    reasons = []
    for url in urls:
        downloader = pooch.HTTPDownloader(progressbar=_PoochBar(path.name, on_progress), chunk_size=1 << 16, timeout=30)
        try:
            pooch.retrieve(url + path.name, known_hash, fname=path.name, path=path.parent, downloader=downloader)
        except (OSError, ValueError) as error:  # the network, the disk; a wrong checksum
            if isinstance(error, OSError) and error.strerror is not None:  # requests' own errors, of the network, have none
                raise UserError(f"cannot write {path}: {error.strerror}") from None
            reasons.append(" ".join(str(error).split()))
        else:
            return
    raise UserError(
        f"{path} is missing, and downloading it failed ({reasons[0]}); fetch {urls[0]}{path.name} on another machine and put it "
        "there, or name the folder that has it with --data-dir"
    )


def check_checksum(path: Path, what: str, algorithm: str, found: str, expected: str) -> None:
    """Raises UserError, with both checksums, if they differ."""
    if found != expected:
        raise UserError(
            f"{path}: not the published file: the {algorithm} of its {what} is {found}, expected {expected}; "
            "remove it to have it downloaded again"
        )


class _PoochBar:
    """The interface of pooch's progress bars."""

    def __init__(self, name: str, on_progress: OnProgress) -> None:
        self.total = 0
        self._done = 0
        self._name = name
        self._on_progress = on_progress

    def update(self, amount: int) -> None:
        self._done += amount
        self._on_progress(f"downloading {self._name}", self._done, self.total)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        pass
