"""Of a picture that is moved, the old place is removed last, and only if a regular file with its bytes is at the new one."""

import contextlib
import os
import shutil
import stat
from pathlib import Path

_CHUNK_BYTES = 1 << 16


def remove_moved(source: str, target: str) -> bool:
    """Removes `source` if `target` is another name of a regular file with the same bytes; False if it stays without being it."""
    with contextlib.suppress(OSError):
        if _is_same_entry(source, target):
            return True
        if holds_bytes_of(source, target):
            os.unlink(source)  # noqa: PTH108
    return not os.path.lexists(source)


def is_another(source: str, target: str) -> bool:
    """Whether what is at `target` is not what is at `source`, nor a link to it or a copy. False if either cannot be read."""
    try:
        return not (os.path.samefile(source, target) or holds_bytes_of(source, target))  # noqa: PTH121
    except OSError:
        return False


def holds_bytes_of(source: str, target: str) -> bool:
    """Whether `target` is itself a regular file, and no link, with the bytes of `source`. Raises OSError."""
    at_target = os.lstat(target)
    if not stat.S_ISREG(at_target.st_mode):
        return False
    at_source = os.stat(source)  # noqa: PTH116
    if os.path.samestat(at_source, at_target):
        return True
    if not stat.S_ISREG(at_source.st_mode) or at_source.st_size != at_target.st_size:
        return False
    with open(source, "rb") as first, open(target, "rb") as second:  # noqa: PTH123 - not filecmp, which keeps old answers
        while (chunk := first.read(_CHUNK_BYTES)) == second.read(_CHUNK_BYTES):
            if not chunk:
                return True
    return False


def replace_link(source: str, target: Path, beside: Path) -> None:
    """Puts a picture where a run of `--sort-mode link` has put a link to it. Raises OSError; the link is then still there."""
    if not target.is_symlink() or not os.path.exists(target) or not os.path.samefile(source, target):  # noqa: PTH110, PTH121
        return
    try:
        beside.unlink(missing_ok=True)
        if not linked(source, beside):
            copy(source, beside)
        beside.replace(target)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def linked(source: str, target: Path) -> bool:
    """Gives a file a second name. False for a link, whose second name would lead elsewhere, and where there are no hard links."""
    if os.path.islink(source):  # noqa: PTH114
        return False
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def copy(source: str, target: Path) -> None:
    """Copies a file, to the disk."""
    shutil.copy2(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def _is_same_entry(source: str, target: str) -> bool:
    """Whether two paths are one name of a file, by whatever links, and not two names of it."""
    (folder, name), (target_folder, target_name) = os.path.split(source), os.path.split(target)
    return name == target_name and os.path.samefile(folder or ".", target_folder or ".")  # noqa: PTH121
