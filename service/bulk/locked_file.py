"""The file of a run: locked from its opening to its closing, and rewritten in one step, so that no kill loses a row."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from service.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)


def open_locked(path: Path, *, new: bool) -> int:
    """A file, empty if it is `new` or was not there. Raises UserError if a new one is there, or another run writes it."""
    try:
        descriptor = os.open(path, _FLAGS | (os.O_EXCL if new else 0), 0o666)
    except FileExistsError:
        raise exists(path) from None
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror}") from None
    try:
        _lock(descriptor, path)
        if not _is_at(descriptor, path):  # whoever had the lock has rewritten or removed it meanwhile
            raise _is_written(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def exists(path: Path) -> UserError:
    """What to say of an output that is there already."""
    return UserError(f"--output {path} exists: nothing is overwritten, choose another (or --resume, to continue it)")


def rewrite(path: Path, like: Path, write: Callable[[IO[bytes]], None]) -> int:
    """A file anew, with the owner and the permissions of `like`; locked before it takes the place of the one that is there.

    Call it with the lock of `path`, or of another file that all its writers lock. Raises OSError, and what `write` raises; then
    nothing is left of it.
    """
    beside = path.with_name(f"{path.name}.unfinished")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, _FLAGS | os.O_EXCL, 0o600)
    try:
        _lock(descriptor, path)
        _make_alike(beside, like)
        with open(descriptor, "wb", closefd=False) as file:
            write(file)
        os.fsync(descriptor)
        os.replace(beside, path)  # noqa: PTH105
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    return descriptor


def _make_alike(path: Path, like: Path) -> None:
    status = like.stat()
    for user, group in ((-1, status.st_gid), (status.st_uid, -1)):
        with contextlib.suppress(OSError, AttributeError):  # not allowed; Windows
            os.chown(path, user, group)
    shutil.copystat(like, path)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _is_written(path) from None
    except OSError:
        return  # a file system without locks


def _is_written(path: Path) -> UserError:
    return UserError(f"--output {path}: another `convoy classify` is writing it")
