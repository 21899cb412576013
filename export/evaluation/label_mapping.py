"""Which label of a model each class of the data is: by a file that says so, by its name, or by its name but for case and spaces."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from export.files import read_file
from export.text import first_of
from service.errors import UserError

_LISTED = 5
_FORMATS = "a .csv file with rows of folder,label, or a .json file with an object of the same"
_WAY_OUT = "--labels-map FILE says which label a folder is, in rows of folder,label; an empty label leaves the folder out"
HEADER = ("folder", "label")


def map_labels(
    names: Sequence[str], labels: Sequence[str], given: Mapping[str, str] | None = None, way_out: str = _WAY_OUT
) -> list[int | None]:
    """The index in a model's `labels` of each class of the data; None for one that is left out.

    Args:
        names: of the data's classes. Several may be one label.
        labels: of the model. It may have more than the data.
        given: the label of a class, by its name; an empty one leaves the class out. Classes that it does not have go by their name;
            it has no others.
        way_out: what the user can do, for the message.

    Raises:
        UserError: a class is none of the labels, or could be several but for case and spaces; or `given` has what is no class.
    """
    given = given or {}
    if strange := [repr(name) for name in given if name not in names]:
        raise UserError(
            f"--labels-map has {first_of(strange, _LISTED)}, which the data do not have; their classes are "
            f"{first_of([repr(name) for name in names], _LISTED)}"
        )
    exact = {label: index for index, label in enumerate(labels)}
    alike: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        alike.setdefault(_folded(label), []).append(index)
    found: list[int | None] = []
    unknown = []
    for name in names:
        label = given.get(name, name)
        candidates = [exact[label]] if label in exact else alike.get(_folded(label), [])
        if len(candidates) > 1:
            could = " or ".join(repr(labels[index]) for index in candidates)
            raise UserError(f"the data's class {name!r} could be {could} of the model: {way_out}")
        if not candidates and label:
            unknown.append(repr(name) if label == name else f"{label!r} (for {name!r})")
        found.append(candidates[0] if candidates else None)
    if unknown:
        raise UserError(
            f"{len(unknown)} of the data's {len(names)} classes {'is' if len(unknown) == 1 else 'are'} none of the model's "
            f"{len(labels)} labels: {first_of(unknown, _LISTED)}; the model has "
            f"{first_of([repr(label) for label in labels], _LISTED)}. {way_out}"
        )
    return found


def read_labels_map(path: Path) -> dict[str, str]:
    """The label of each folder in a file: CSV with two columns, folder and label, or a JSON object.

    Raises:
        UserError: the file cannot be read, is neither, or has two labels for a folder.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
        pairs = _from_json(text) if path.suffix.lower() == ".json" else _from_csv(text)
        found: dict[str, str] = {}
        for where, folder, label in pairs:
            if found.setdefault(folder, label) != label:
                raise ValueError(f"{where}{folder!r} is {found[folder]!r} and {label!r}")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text in UTF-8; accepted is {_FORMATS}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; accepted is {_FORMATS}") from None
    if not found:
        raise UserError(f"{path}: has no labels; accepted is {_FORMATS}")
    return found


def _from_csv(text: str) -> Iterable[tuple[str, str, str]]:
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        for row in rows:
            if not row or (rows.line_num == 1 and tuple(cell.strip().lower() for cell in row) == HEADER):
                continue
            if len(row) != 2:
                raise ValueError(f"line {rows.line_num} has {len(row)} {'column' if len(row) == 1 else 'columns'}")
            yield f"line {rows.line_num}: ", row[0].strip(), row[1].strip()
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


def _from_json(text: str) -> Iterable[tuple[str, str, str]]:
    try:
        content = json.loads(text, object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    # An object is a list of pairs here, so that a name that is there twice is seen; a list of lists is not JSON's object.
    if not text.lstrip().startswith("{"):
        raise ValueError("not an object")
    for folder, label in content:
        if not isinstance(label, str):
            raise ValueError(f"{folder!r} has {json.dumps(label)[:40]}, which is not a label")
        yield "", folder, label


def _folded(name: str) -> str:
    """A name without case, with spaces for underscores and hyphens, and accented letters in one form: file systems differ in it."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())
