"""`--from-file`: paths in a file or on stdin, one a line or with zero bytes between them."""

import codecs
import os
import sys
from collections.abc import Iterator
from typing import IO

from service.errors import FileUnreadable, UserError

_CHUNK_BYTES = 1 << 16
_MAX_PATH_BYTES = 1 << 16


def read_list(path: str) -> Iterator[str]:
    """The sources in a list, or in stdin for `-`, as they come. Raises UserError if it cannot be read, or is no list."""
    if path == "-":
        yield from _sources(_stdin(), "stdin")
        return
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered: lines of a pipe come as they are written
            yield from _sources(file, path)
    except OSError as error:
        raise FileUnreadable(f"--from-file {path}: {error.strerror}") from None


def _stdin() -> IO[bytes]:
    """Unbuffered: Python's own stdin has a lock, and a thread that waits with it for more would abort the program at its end."""
    try:
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    except (OSError, ValueError):  # it is no file
        return sys.stdin.buffer


def _sources(file: IO[bytes], name: str) -> Iterator[str]:
    """Zero bytes separate the paths if there is one in the first chunk, as `find -print0` writes them; line ends do otherwise."""
    read = getattr(file, "read1", file.read)
    separator, rest = b"", b""
    while chunk := read(_CHUNK_BYTES):
        if not separator:
            separator = b"\0" if b"\0" in chunk else b"\n"
            chunk = chunk.removeprefix(codecs.BOM_UTF8)  # Windows' editors put one in front
        *lines, rest = (rest + chunk).split(separator)
        for line in lines:
            if source := _source(line, separator):
                yield source
        if len(rest) > _MAX_PATH_BYTES:
            raise UserError(f"--from-file {name}: a line has more than {_MAX_PATH_BYTES} bytes: give a list of paths, one a line")
    if source := _source(rest, separator):
        yield source


def _source(line: bytes, separator: bytes) -> str:
    return os.fsdecode(line.removesuffix(b"\r") if separator == b"\n" else line)
