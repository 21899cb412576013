"""Whether a file is still what it was, without reading it."""

from pathlib import Path

FileState = tuple[int, int, int]
"""How a file looks on disk: inode, time of its last change in nanoseconds, size in bytes."""


def file_state(path: Path) -> FileState | None:
    """How a file looks now; None if there is none, or none that may be looked at."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
