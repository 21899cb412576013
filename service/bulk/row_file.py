"""A file of rows, CSV or JSON lines, that is written as the answers come.

Rows are appended a block at a time, and a block is written whole. So whatever ends the process, the file holds whole rows and at
most one that is cut off at its end, which `resume.py` takes away.
"""

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from service.bulk.columns import Row
from service.errors import UserError

_BLOCK_ROWS = 1000
_BLOCK_SECONDS = 1.0
_FORMULA = frozenset("=+-@\t\r")


class Format(Protocol):
    """How rows are bytes."""

    def header(self) -> bytes:
        """What a file begins with."""

    def encoded(self, rows: Sequence[Row]) -> bytes:
        """Whole lines."""


class Csv:
    """Comma-separated, quoted where needed, with a line of names; true labels of one picture with | between them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def header(self) -> bytes:
        """The names."""
        return self.encoded([list(self.names)])

    def encoded(self, rows: Sequence[Row]) -> bytes:
        """A line for each row, unless a value has line ends in it."""
        text = _csv(rows, csv.QUOTE_MINIMAL)
        if "\r" in text:  # Python up to 3.12 leaves it without quotes
            text = _csv(rows, csv.QUOTE_NONNUMERIC)
        return text.encode("utf-8", "backslashreplace")


def _csv(rows: Sequence[Row], quoting: Literal[0, 2]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n", quoting=quoting).writerows([cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def cell(value: Any) -> Any:
    """A spreadsheet takes what begins with = + - @ for a formula, and runs it: the ' makes it text. Paths have ./ instead."""
    if isinstance(value, list):
        value = "|".join(value)
    if isinstance(value, str) and value[:1] in _FORMULA and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class JsonLines:
    """An object a line, with every column."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._encode = json.JSONEncoder(ensure_ascii=False).encode

    def header(self) -> bytes:
        """Nothing."""
        return b""

    def encoded(self, rows: Sequence[Row]) -> bytes:
        """A line for each row."""
        lines = [self._encode(dict(zip(self.names, row, strict=True))) + "\n" for row in rows]
        return "".join(lines).encode("utf-8", "backslashreplace")


class RowFile:
    """Appends rows to a file that is open, and stays open.

    `on_written` is called after rows have been written, when nothing but a failing disk can lose them.
    """

    def __init__(self, path: Path, descriptor: int, rows_format: Format, on_written: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._format = rows_format
        self._on_written = on_written
        self._state: tuple[int, list[Row]] = os.lseek(descriptor, 0, os.SEEK_END), []
        """The file's whole rows in bytes, and the rows that come next: replaced at once, so that an interruption doubles none."""
        self._due = time.monotonic() + _BLOCK_SECONDS
        if self._state[0] == 0:
            self._append(rows_format.header())

    def write(self, row: Row) -> None:
        """Adds a row; a block is written when it is full, or a second after the last."""
        rows = self._state[1]
        rows.append(row)
        if len(rows) >= _BLOCK_ROWS or time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Writes what there is. Raises UserError if the disk is full, or fails; the file then ends with a whole row.

        The rows are then still to be written, and none of them is said to be.
        """
        if rows := self._state[1]:
            self._append(self._format.encoded(rows))
        self._due = time.monotonic() + _BLOCK_SECONDS
        self._on_written()

    def _append(self, content: bytes) -> None:
        view, size = memoryview(content), self._state[0]
        try:
            os.lseek(self._descriptor, size, os.SEEK_SET)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise UserError(f"{self._path}: {error.strerror}; --resume goes on from here") from None
        self._state = size + len(content), []

    def finish(self) -> None:
        """Writes the rest; also after an interruption, which may have come in the middle of anything here."""
        try:
            os.ftruncate(self._descriptor, self._state[0])
            self.flush()
            os.fsync(self._descriptor)
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror}; --resume goes on from here") from None
