"""Tells whether a file has changed, without reading it."""

from pathlib import Path

FileState = tuple[int, int, int, int]
"""Inode, modification time in nanoseconds, size in bytes, change time in nanoseconds.

Tools that copy files with their times, such as `cp -p` and `rsync`, may leave all but the last as they were.
"""


def file_state(path: Path) -> FileState | None:
    """The state of a file now; None if it does not exist or cannot be accessed."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size, stat.st_ctime_ns
