"""Reads files that others write, and tells whether they have changed.

Whoever writes a repository may put anything in a file's place. Opening a pipe waits for a writer, and reading a device need never
end; so only regular files are opened.
"""

import errno
import os
import stat
from pathlib import Path

FileState = tuple[int, int, int, int]
"""Inode, modification time in nanoseconds, size in bytes, change time in nanoseconds.

Tools that copy files with their times, such as `cp -p` and `rsync`, may leave all but the last as they were.
"""

NOT_REGULAR = "not a regular file"


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """The content of a regular file, links followed. Never waits for another program.

    Raises:
        OSError: it cannot be read, is not a regular file, or has more than `max_bytes`.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a device may already do something
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it has been replaced since
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
        if max_bytes is None:
            return file.read()
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
    return content


def file_state(path: Path) -> FileState | None:
    """The state of a file now; None if it does not exist or cannot be accessed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns
