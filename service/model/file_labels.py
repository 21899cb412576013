"""Names of classes in an ONNX file's own metadata, as exporters write them: `names` (Ultralytics), `labels`, `id2label` ..."""

import ast
import re
from collections.abc import Iterable, Mapping

_KEYS = ("names", "labels", "classes", "class_names", "label_names", "id2label")
_MAX_CHARACTERS = 4 * 2**20
"""Longer texts are not parsed. The names of ImageNet's classes have 30,000 characters."""

_ENTRY = re.compile(
    r"""\s*(?:["']?(\d{1,9})["']?\s*:\s*)?("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*(?:,|\Z)""", re.DOTALL
)  # fmt: skip
"""A text, after its number and a colon in a table, as both Python and JSON write it."""


def labels_in_metadata(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names under the first key that holds some, in the order of their classes; empty if none does.

    A list, or a table by number, as Python or JSON write it; or a text of lines, or with commas.
    """
    given = {key.lower(): text for key, text in metadata.items()}
    for key in _KEYS:
        labels = _parsed(given.get(key, ""))
        if len(labels) > 1 and all(labels) and _can_be_sent(labels):
            return labels
    return ()


def _can_be_sent(labels: Iterable[str]) -> bool:
    """Whether they are text in UTF-8: an escape of Python or JSON may be half of a character."""
    try:
        "".join(labels).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(text: str) -> tuple[str, ...]:
    text = text.strip()
    if len(text) > _MAX_CHARACTERS:
        return ()
    if text[:1] in ("{", "[", "("):
        return _listed(text[1:-1].strip())
    return tuple(part.strip() for part in text.split("\n" if "\n" in text else ","))


def _listed(text: str) -> tuple[str, ...]:
    """The texts of a list or table without its brackets; none if there is anything else in it."""
    found: dict[int, str] = {}
    at = 0
    while at < len(text):
        entry = _ENTRY.match(text, at)
        if entry is None:
            return ()
        try:
            found[int(entry[1] or len(found))] = ast.literal_eval(entry[2]).strip()
        except (ValueError, SyntaxError):
            return ()
        at = entry.end()
    return tuple(found[number] for number in sorted(found)) if sorted(found) == list(range(len(found))) else ()
