"""Reading a file that the user named, or a UserError that says why it cannot be read."""

from pathlib import Path

from service.errors import UserError


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises UserError, with the path and the reason."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
