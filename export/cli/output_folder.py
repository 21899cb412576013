"""The folder of `--output`: new or empty, writable, and used by one training at a time."""

import fcntl
import os
import tempfile
from pathlib import Path

from service.errors import UserError


def check_output_folder(folder: Path, hint: str = "") -> None:
    """Raises UserError, with the hint, if `create_output_folder` would: before work that may take minutes."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"--output {str(folder)!r} exists and is not an empty folder: nothing is overwritten, choose another{hint}"
            )
        parent = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    except OSError as error:
        raise UserError(f"--output {str(folder)!r}: {error.strerror}") from None
    try:
        # The only sure way to know of rights, quotas, and disks that are full or read-only. A full disk takes an empty file,
        # and some a few bytes.
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(512))
    except OSError as error:
        raise UserError(f"--output {str(folder)!r}: cannot write to {str(parent)!r}: {error.strerror}") from None


def create_output_folder(folder: Path) -> None:
    """Creates the folder. Raises UserError if it exists and is not an empty folder, or is not writable."""
    check_output_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {str(folder)!r}: {error.strerror}") from None


def lock_run(run: Path) -> None:
    """Locks a run's folder until this process ends. Raises UserError if another training has locked it."""
    try:
        descriptor = os.open(run, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another training writes to {str(run)!r}: wait for it, or choose another --output") from None
    except OSError:
        return  # the file system has no locks
