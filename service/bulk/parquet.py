"""Parquet output. A Parquet file can be read only once its end is written, so rows are JSON lines beside it until the run ends.

`FILE.parquet.partial` has the rows so far; when the run ends, also by Ctrl-C, it becomes FILE.parquet and is removed. After a
kill it is what `--resume` continues. A FILE.parquet that is continued becomes JSON lines again first. The lock of the partial rows
is that of both files. An empty file of them is none: it was made to be locked, and a kill came before the rows.
"""

import json
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from service.bulk.columns import MODEL, VERSION, Columns
from service.bulk.locked_file import rewrite
from service.bulk.row_file import JsonLines
from service.errors import UserError, first_line

_GROUP_ROWS = 16_384


def pyarrow() -> Any:
    """The modules pyarrow and pyarrow.parquet. Raises UserError that says what to install."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError(
            "--output FILE.parquet needs pyarrow: install Convoy's extra 'parquet' (pip install 'convoy-serving[parquet]')"
        ) from None
    return pa


def partial_of(path: Path) -> Path:
    """Where the rows of a Parquet file are until it is whole."""
    return path.with_name(f"{path.name}.partial")


def finish(path: Path, columns: Columns) -> None:
    """Makes the Parquet file of its partial rows, which are locked. Raises UserError; the rows then stay where they are."""
    arrow = pyarrow()
    kinds = {str: arrow.string(), float: arrow.float64(), list: arrow.list_(arrow.string())}
    schema = arrow.schema([(name, kinds[kind]) for name, kind in zip(columns.names, columns.types, strict=True)])
    partial = partial_of(path)

    def write(file: IO[bytes]) -> None:
        with partial.open("rb") as lines, arrow.parquet.ParquetWriter(file, schema) as writer:
            while rows := [json.loads(line) for line in islice(lines, _GROUP_ROWS)]:
                writer.write_table(arrow.Table.from_pylist(rows, schema))

    try:
        os.close(rewrite(path, partial, write))
        partial.unlink()
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path}: {_reason(error)}; its rows are in {partial}, --resume goes on from there") from None


def unpack(path: Path) -> int:
    """Makes partial rows of a Parquet file, to be continued; their file, locked. Raises UserError for one that cannot be read."""
    arrow = pyarrow()

    def write(lines: IO[bytes]) -> None:
        with arrow.parquet.ParquetFile(path) as file:
            encode = JsonLines(file.schema_arrow.names).encoded
            for rows in _rows(file):
                lines.write(encode([list(row.values()) for row in rows]))

    try:
        return rewrite(partial_of(path), path, write)
    except (OSError, TypeError, ValueError, arrow.ArrowException) as error:  # of a value that JSON has not, such as a time
        raise UserError(f"--resume: {path}: {_reason(error)}") from None


def model_of(path: Path) -> tuple[str, str] | None:
    """The model and the version of its rows; None without a row. Raises UserError for a file that cannot be read."""
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            if not {MODEL, VERSION} <= set(file.schema_arrow.names):
                raise UserError(f"--resume: {path} is no output: it has no columns {MODEL} and {VERSION}")
            for row in chain.from_iterable(_rows(file, [MODEL, VERSION])):
                if row[MODEL] and row[VERSION]:
                    return str(row[MODEL]), str(row[VERSION])
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"--resume: {path}: {_reason(error)}") from None
    return None


def _rows(file: Any, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Rows, some at a time, of all columns or these."""
    for group in range(file.num_row_groups):  # pyarrow 19 fails on a file that has none, unless it is told which
        for batch in file.iter_batches(_GROUP_ROWS, row_groups=[group], columns=columns):
            yield batch.to_pylist()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
