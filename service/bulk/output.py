"""`--output`: the file that the rows go to, new or continued."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from service.bulk import parquet
from service.bulk.columns import Columns, Row
from service.bulk.path_set import PathSet
from service.bulk.resume import Lines, OnDone, model_of, read_csv, read_json_lines, reopen
from service.bulk.row_file import Csv, JsonLines, RowFile, create, exists
from service.errors import UserError

SUFFIXES = (".csv", ".jsonl", ".parquet")


class Output:
    """Construct it before anything is asked: it raises UserError for a name that cannot be. `open`, `write`, `close`."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        kind = path.suffix.lower()
        if kind not in SUFFIXES:
            raise UserError(f"--output {path}: give a name that ends in {', '.join(SUFFIXES)}")
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
        self._columns: Columns | None = None
        self._file: RowFile | None = None
        self.rows = 0
        self.earlier: tuple[str, str] | None = None
        """The model and the version of the rows that are there."""
        if self._continues:
            if not self.rows_path.exists():
                parquet.unpack(path)
            self.earlier = model_of(self.rows_path, self._reader(None))

    def open(self, columns: Columns, on_done: OnDone, on_written: Callable[[], None]) -> PathSet:
        """Gives the pictures that are done already. `on_written` as for RowFile."""
        self._columns = columns
        rows_format = (Csv if self._is_csv else JsonLines)(columns.names)
        if self._continues:
            descriptor, done = reopen(self.rows_path, columns, rows_format, self._reader(columns), on_done)
        else:
            descriptor, done = create(self.rows_path), PathSet()
        self._file = RowFile(self.rows_path, descriptor, rows_format, on_written)
        return done

    def write(self, row: Row) -> None:
        """Adds a row."""
        if self._file is None:
            raise RuntimeError("not open")
        self.rows += 1
        self._file.write(row)

    def close(self) -> None:
        """Writes the rest, also after an interruption."""
        if self._file is not None and self._columns is not None:
            self._file.close()
            if self._is_parquet:
                parquet.finish(self.path, self._columns)

    def _reader(self, columns: Columns | None) -> Callable[[IO[bytes]], Lines]:
        return partial(read_csv if self._is_csv else read_json_lines, columns=columns)
