"""`--output`: the file that the rows go to, new or continued."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from service.bulk import parquet
from service.bulk.columns import Columns, Row
from service.bulk.locked_file import exists, open_locked
from service.bulk.path_set import PathSet
from service.bulk.pictures import key_of
from service.bulk.resume import Earlier, Lines, OnDone, model_of, read_csv, read_json_lines, reopen
from service.bulk.row_file import Csv, Format, JsonLines, RowFile
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
        if not all(each.is_file() for each in found):
            raise UserError(f"--output {found[0]}: not a regular file")
        if not path.parent.is_dir():
            raise UserError(f"--output {path}: no such folder: {path.parent}")
        self._resumes = resume
        self._columns: Columns | None = None
        self._descriptor = -1
        self._file: RowFile | None = None
        self._failed = PathSet()
        self._replaces = False
        self.rows = 0
        self.earlier: tuple[str, str] | None = None
        """The model and the version of the rows that are there."""
        if found:
            self.earlier = parquet.model_of(path) if self._is_packed() else model_of(self.rows_path, self._reader(None))

    def open(self, columns: Columns, on_done: OnDone, on_written: Callable[[], None]) -> PathSet:
        """Gives the pictures that are done already, by their keys. `on_written` as for RowFile.

        The rows are locked from here to the end of `close`, so that what another run does in the meantime is of another file.
        """
        self._columns = columns
        self._descriptor = open_locked(self.rows_path, new=not self._resumes)
        is_packed = self._is_packed()
        try:
            if is_packed and not self._resumes:
                raise exists(self.path)
            if is_packed:
                empty, self._descriptor = self._descriptor, parquet.unpack(self.path)
                os.close(empty)
            earlier = self._reopen(columns, on_done)
        except BaseException:
            if is_packed:
                self.rows_path.unlink()  # nothing is in it that the whole file has not
            os.close(self._descriptor)
            raise
        self._failed = earlier.failed
        self._file = RowFile(self.rows_path, self._descriptor, self._format(columns), on_written)
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
        if self._file is None or self._columns is None:
            return
        file, self._file = self._file, None
        try:
            file.finish()
            if self._replaces:  # takes away the rows of errors whose pictures have others now
                self._reopen(self._columns, lambda *_: True)
            if self._is_parquet:
                parquet.finish(self.path, self._columns)
        finally:
            os.close(self._descriptor)

    def _is_packed(self) -> bool:
        """Whether the rows of an earlier run are in a whole Parquet file alone."""
        if not self._is_parquet or not self.path.exists():
            return False
        return not self.rows_path.exists() or self.rows_path.stat().st_size == 0

    def _reopen(self, columns: Columns, on_done: OnDone) -> Earlier:
        self._descriptor, earlier = reopen(
            self._descriptor, self.rows_path, columns, self._format(columns), self._reader(columns), on_done
        )
        return earlier

    def _format(self, columns: Columns) -> Format:
        return (Csv if self._is_csv else JsonLines)(columns.names)

    def _reader(self, columns: Columns | None) -> Callable[[IO[bytes]], Lines]:
        return partial(read_csv if self._is_csv else read_json_lines, columns=columns)
