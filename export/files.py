"""Reading and writing files that the user named, or a UserError that says which cannot be read or written, and why."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from service.errors import UserError


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises UserError, with the path and the reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def write_file(path: Path, content: bytes) -> None:
    """Writes a file, or replaces it as a whole: it is never seen in part, not even after a crash of the machine.

    Raises:
        UserError: it cannot be written, as on a full disk; a file that was there before is kept.
    """
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError in its block into a UserError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files that are not kept. Raises UserError if it cannot be made, or its files not be written in the block."""
    advice = "TMPDIR in the environment chooses another"
    try:
        folder = tempfile.TemporaryDirectory(prefix="convoy-")
    except OSError as error:
        raise UserError(f"no folder for temporary files can be made: {error.strerror or error}; {advice}") from None
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(name):
                raise
            raise UserError(
                f"cannot write to the temporary folder {Path(name).parent}: {error.strerror or error}; {advice}"
            ) from None
