"""Reads the text files that people write for a model: UTF-8, with or without a byte order mark, with any line ends."""

import codecs
from collections.abc import Callable
from pathlib import Path

from service.model.files import read_file

_MAX_BYTES = 16 * 2**20
"""Many times what the names of a million classes need."""

_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
"""Byte order marks of other encodings; that of UTF-32 begins with that of UTF-16."""


def read_text(path: Path, max_bytes: int = _MAX_BYTES, check: Callable[[bytes], None] | None = None) -> str:
    r"""The text of a file, with `\n` as line ends, without a byte order mark (Windows editors write one).

    `check` is given the file's content and may raise.

    Raises:
        OSError: the file cannot be read, is not a regular file, or has more than `max_bytes`.
        ValueError: it is not UTF-8 text; the message says where, or which encoding it has.
    """
    try:
        content = read_file(path, max_bytes)
        if check is not None:
            check(content)
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        encoding = next((name for mark, name in _MARKS.items() if error.object.startswith(mark)), None)
        if encoding is not None:
            raise ValueError(f"the file is {encoding}; save it as UTF-8") from None
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8") from None
    if "\0" in text:  # UTF-16 without a mark, or a file that was copied only in part
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"line {line} contains a NUL byte; save the file as UTF-8 text")
    return text
