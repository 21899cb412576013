"""`--resume`: what an earlier run has written, made ready to be continued.

Pictures with an error are tried again. A row with an error stays until its picture has a later row: the run takes the former away
when it ends, or the next one when it begins, and with it a row that a kill cut off. What is kept is written to a file beside it,
which then takes its place: a kill here loses nothing.
"""

import codecs
import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from service.bulk.columns import ERROR, MODEL, PATH, SORTED_TO, VERSION, Columns
from service.bulk.locked_file import rewrite
from service.bulk.path_set import PathSet
from service.bulk.pictures import key_of
from service.bulk.row_file import Csv, Format, cell
from service.errors import UserError

_MAX_FIELD = 2**31 - 1
_LINE_BEGINS = b'{"path": "'

OnDone = Callable[[str, str | None], bool]
"""Called with the path and the `sorted_to` of a picture that has a row without error; whether it is done."""

Lines = Iterator[tuple[int, dict[str, Any] | None]]
"""Rows and their lines' numbers; None for one that is cut off, or a line that holds no row of these columns."""

Read = Callable[[IO[bytes]], Lines]
"""`read_csv` or `read_json_lines` of the run's columns."""


def reopen(
    descriptor: int, path: Path, columns: Columns, rows_format: Format, read: Read, on_done: OnDone
) -> tuple[int, "Earlier"]:
    """A locked file, ready for rows, and what it has. Raises UserError if it is of another run.

    Where rows are to be taken away, it is another file, locked before it takes the place of this one, which is then closed.
    """
    rows = Earlier()
    repair = False
    for number, row in enumerate(_rows(path, columns, read)):
        repair |= not rows.add(number, row, on_done)
    if not repair:
        return descriptor, rows

    def write(file: IO[bytes]) -> None:
        file.write(rows_format.header())
        for row in rows.kept(_rows(path, columns, read)):
            file.write(rows_format.encoded([list(row.values())]))

    try:
        repaired = rewrite(path, path, write)
    except OSError as error:
        raise UserError(f"--resume: {path}: {error.strerror}") from None
    os.close(descriptor)
    return repaired, rows


class Earlier:
    """The pictures that have rows, by their keys (`key_of`): `done`, and `failed`, which have a row with an error."""

    def __init__(self) -> None:
        self.done = PathSet()
        self.failed = PathSet()
        self._rows = PathSet()
        self._last: dict[str, int] = {}

    def add(self, number: int, row: dict[str, Any] | None, on_done: OnDone) -> bool:
        """Takes note of a row. False if it is to be taken away, or one before it."""
        if row is None or not self._rows.add(repr(row)):
            return False
        key = key_of(row[PATH])
        replaces = key in self.failed
        if replaces:
            self._last[key] = number
        if row[ERROR]:
            self.failed.add(key)
        elif on_done(row[PATH], row.get(SORTED_TO)):
            self.done.add(key)
        return not replaces

    def kept(self, rows: Iterator[dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
        """Of the same rows, those that stay: each once, and one with an error only if its picture has no later one."""
        again = PathSet()
        for number, row in enumerate(rows):
            if row is not None and again.add(repr(row)) and not (row[ERROR] and self._last.get(key_of(row[PATH]), 0) > number):
                yield row


def _rows(path: Path, columns: Columns, read: Read) -> Iterator[dict[str, Any] | None]:
    """Raises UserError for a row that is not of this run."""
    with path.open("rb") as file:
        for number, row in read(file):
            if row is not None:
                _check(path, number, row, columns)
            yield row


def _check(path: Path, number: int, row: dict[str, Any], columns: Columns) -> None:
    if list(row) != columns.names:
        raise _other_columns(list(row), columns)
    if (row[MODEL], row[VERSION]) != (columns.model, columns.version):
        raise UserError(
            f"--resume: {path}, row {number}, is of {row[MODEL]} version {row[VERSION]}; this run is of {columns.model} version "
            f"{columns.version}: choose that with --version, or another --output"
        )
    if row[PATH] is None:
        raise UserError(f"--resume: {path}, row {number}, has no path")
    for name, kind in zip(columns.names, columns.types, strict=True):
        if not _is_of(kind, row[name]):
            found = json.dumps(row[name], ensure_ascii=False)[:100]
            raise UserError(f"--resume: {path}, row {number}, is broken: {name} is {found}: mend it, or choose another --output")


def _is_of(kind: type, value: Any) -> bool:
    """Whether a value may stand in a column of this kind."""
    if kind is list and isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    return value is None or type(value) is kind or (kind is float and type(value) is int)


def _other_columns(names: list[str], columns: Columns) -> UserError:
    return UserError(
        f"--resume: the output has other columns than this run: {', '.join(names)} instead of {', '.join(columns.names)}: "
        "give the same options, or choose another --output"
    )


def read_csv(file: IO[bytes], columns: Columns | None = None) -> Lines:
    """The rows of a CSV file; without `columns` all values are strings. Raises UserError for a row that is broken."""
    csv.field_size_limit(_MAX_FIELD)
    lines: list[str] = []
    reader = csv.reader(_noted(file, lines), strict=True)
    names: list[str] = []
    kinds: dict[str, type] = {}
    for number in itertools.count(1):
        lines.clear()
        try:
            values = next(reader, None)
        except csv.Error as error:
            if not _is_row("".join(lines) + '"'):  # all that a kill leaves is quotes that are not closed
                raise _broken(number, str(error)) from None
            values = []
        if values is None:
            return
        whole = bool(values) and lines[-1].endswith("\n")
        if number == 1 and columns is not None:
            if values != list(map(cell, columns.names)) if whole else not _begins(columns, "".join(lines)):
                raise _other_columns(values, columns)
            names, kinds = columns.names, dict(zip(columns.names, columns.types, strict=True))
        elif number == 1:
            names = values
        if whole and number > 1:
            yield number, _typed(number, names, values, kinds)
        elif not whole:
            if any(_is_row(line, len(names)) for line in lines[1:] if line.endswith("\n")):
                raise _broken(number, "its quotes are not closed")
            yield number, None


def _begins(columns: Columns, text: str) -> bool:
    """Whether the line of names begins so."""
    return Csv(columns.names).header().startswith(text.encode("utf-8", "surrogateescape"))


def _noted(file: IO[bytes], lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(file):
        if number == 0:
            line = line.removeprefix(codecs.BOM_UTF8)  # Excel puts one in front
        lines.append(line.decode("utf-8", "surrogateescape"))
        yield lines[-1]


def _is_row(text: str, count: int = 0) -> bool:
    """Whether text is a row; with a `count`, one of as many values."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error:
        return False
    return len(rows) == 1 and count in (0, len(rows[0]))


def _broken(number: int, why: str) -> UserError:
    return UserError(f"--resume: row {number} of the output is broken ({why}): mend it or take it away, or choose another --output")


def _typed(number: int, names: list[str], values: list[str], kinds: dict[str, type]) -> dict[str, Any]:
    if len(values) != len(names):
        raise _broken(number, f"it has {len(values)} values instead of {len(names)}")
    row: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        kind = kinds.get(name, str)
        if kind is list:
            row[name] = value.split("|") if value else []
        elif not value:
            row[name] = None
        elif kind is float:
            try:
                row[name] = float(value)
            except ValueError:
                raise _broken(number, f"{value[:100]!r} is no number") from None
        else:
            row[name] = value
    return row


def read_json_lines(file: IO[bytes], columns: Columns | None = None) -> Lines:  # noqa: ARG001 - as read_csv
    """The rows of a file of JSON lines."""
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n") and line.startswith(_LINE_BEGINS[: len(line)]):
            yield number, None
            return
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not {PATH, MODEL, VERSION, ERROR} <= row.keys():
            raise UserError(f"--resume: line {number} of the output is no row: {line[:100].decode(errors='replace')!r}")
        yield number, row


def model_of(path: Path, read: Read) -> tuple[str, str] | None:
    """The model and the version of an earlier run's rows; None without a row. Raises UserError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            for _, row in read(file):
                model, version = (row.get(MODEL), row.get(VERSION)) if row is not None else (None, None)
                if model and version and isinstance(model, str) and isinstance(version, str):
                    return model, version
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror}") from None
    return None
