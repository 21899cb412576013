"""`--output`: the file that the rows go to, new or continued."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from service.bulk import parquet
from service.bulk.columns import Columns, Row
from service.bulk.path_set import PathSet
from service.bulk.pictures import key_of
from service.bulk.resume import Earlier, Lines, OnDone, model_of, read_csv, read_json_lines, reopen
from service.bulk.row_file import Csv, Format, JsonLines, RowFile, create, exists
from service.errors import UserError

SUFFIXES = (".csv", ".jsonl", ".parquet")


class Output:
    """Construct it before anything is asked: it raises UserError for a name that cannot be. `open`, `write`, `close`."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        kind = path.suffix.lower()
        if kind not in SUFFIXES:
            raise UserError(f"--output {path}: give a name that ends in {', '.join(SUFFIXES)}")
        path = path.resolve() if path.is_symlink() else path  # what a link leads to is continued, and the link stays
        self.path = path
        self._is_csv = kind == ".csv"
        self._is_parquet = kind == ".parquet"
        if self._is_parquet:
            parquet.pyarrow()
        self.rows_path = parquet.partial_of(path) if self._is_parquet else path
        found = [each for each in (path, self.rows_path) if each.exists()]
        if found and not resume:
            raise exists(found[0])
        if not path.parent.is_dir():
            raise UserError(f"--output {path}: no such folder: {path.parent}")
        self._continues = bool(found)
        self._packed = False
        self._columns: Columns | None = None
        self._file: RowFile | None = None
        self._failed = PathSet()
        self._replaces = False
        self.rows = 0
        self.earlier: tuple[str, str] | None = None
        """The model and the version of the rows that are there."""
        if self._continues:
            self._packed = not self.rows_path.exists()
            self.earlier = parquet.model_of(path) if self._packed else model_of(self.rows_path, self._reader(None))

    def open(self, columns: Columns, on_done: OnDone, on_written: Callable[[], None]) -> PathSet:
        """Gives the pictures that are done already, by their keys. `on_written` as for RowFile."""
        self._columns = columns
        if self._continues:
            descriptor, earlier = self._unpacked(columns, on_done) if self._packed else self._reopen(columns, on_done)
        else:
            descriptor, earlier = create(self.rows_path), Earlier()
        self._failed = earlier.failed
        self._file = RowFile(self.rows_path, descriptor, self._format(columns), on_written)
        return earlier.done

    def write(self, row: Row) -> None:
        """Adds a row."""
        if self._file is None:
            raise RuntimeError("not open")
        self.rows += 1
        self._replaces = self._replaces or (len(self._failed) > 0 and key_of(row[0]) in self._failed)
        self._file.write(row)

    def close(self) -> None:
        """Writes the rest, also after an interruption."""
        if self._file is not None and self._columns is not None:
            self._file.close()
            if self._replaces:  # takes away the rows of errors whose pictures have others now
                os.close(self._reopen(self._columns, lambda *_: True)[0])
            if self._is_parquet:
                parquet.finish(self.path, self._columns)

    def _unpacked(self, columns: Columns, on_done: OnDone) -> tuple[int, Earlier]:
        parquet.unpack(self.path)
        try:
            return self._reopen(columns, on_done)
        except BaseException:
            self.rows_path.unlink()  # nothing is in it that the whole file has not
            raise

    def _reopen(self, columns: Columns, on_done: OnDone) -> tuple[int, Earlier]:
        return reopen(self.rows_path, columns, self._format(columns), self._reader(columns), on_done)

    def _format(self, columns: Columns) -> Format:
        return (Csv if self._is_csv else JsonLines)(columns.names)

    def _reader(self, columns: Columns | None) -> Callable[[IO[bytes]], Lines]:
        return partial(read_csv if self._is_csv else read_json_lines, columns=columns)
