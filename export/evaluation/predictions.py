"""Every prediction as a row of a CSV file."""

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.evaluation.folder import Measured
from export.files import writing
from service.errors import UserError

_TOP = 5


def check_predictions_file(path: Path, output: Path | None = None) -> None:
    """Raises UserError if `write_predictions` could not write it, or would overwrite it: before work that may take minutes.

    It may be in `output`, a folder that has been checked, and is made before the file.
    """
    if path.suffix.lower() != ".csv":
        raise UserError(f"--predictions {str(path)!r}: a file named .csv is written")
    try:
        if os.path.lexists(path):
            raise UserError(f"--predictions {str(path)!r} exists: nothing is overwritten, choose another")
        if output is not None and output.absolute().is_relative_to(path.absolute()):
            raise UserError(f"--predictions {str(path)!r} is where --output makes a folder, choose another")
        if output is None or path.parent.resolve() != output.resolve():
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(512))  # as in `check_output_folder`
    except OSError as error:
        raise UserError(f"--predictions {str(path)!r}: {error.strerror}") from None


def write_predictions(path: Path, found: Measured) -> None:
    """Writes a row for each picture, in the order of the data, with a header. The file appears as a whole.

    Columns: `path`; `label`, the true one as the model calls it; `predicted` and its `probability`; `label_probability`; the next
    best as `predicted_2`, `probability_2` and so on up to 5; `error` of a picture that could not be read, whose columns are empty.
    Of a multilabel head `said` has the labels from its threshold on, with `|` between them.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    with writing(path):
        folder = Path(tempfile.mkdtemp(prefix=".convoy-", dir=path.parent))
        try:
            partial = folder / path.name
            with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                csv.writer(file).writerows(_rows(found))
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _rows(found: Measured) -> Iterator[list[object]]:
    pictures, labels, threshold = found.pictures, found.head.labels, found.head.threshold
    ranks = range(2, min(_TOP, len(labels)) + 1)
    best = [f"{what}_{rank}" for rank in ranks for what in ("predicted", "probability")] + ["said"] * (threshold is not None)
    yield ["path", "label", "predicted", "probability", "label_probability", *best, "error"]
    empty = [""] * (3 + len(best))
    answer = 0
    for index in sorted([*found.measured.tolist(), *found.broken]):
        if index in found.broken:
            yield [pictures.path(index), found.label(index), *empty, found.broken[index]]
            continue
        row = found.probabilities[answer]
        order = np.argsort(-row, kind="stable")
        cells = [cell for label in order[: len(ranks) + 1] for cell in (labels[label], f"{row[label]:.6g}")]
        if threshold is not None:
            cells.append("|".join(labels[label] for label in order if row[label] >= np.float32(threshold)))
        yield [pictures.path(index), found.label(index), *cells[:2], f"{row[found.classes[index]]:.6g}", *cells[2:], ""]
        answer += 1
