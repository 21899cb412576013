"""Names of classes: from the file that the user names, and as lists and tables that other programs write."""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.errors import InvalidModel, UserError, first_line
from service.model.repository_layout import read_labels
from service.model.text_files import read_text

ACCEPTED = 'one label a line is accepted, and JSON: a list, {"0": "cat", ...}, {"cat": 0, ...} or the config.json of Hugging Face'

_SAID_OF_LINES = "; one label a line is accepted"
_MAX_LABELS = 1_000_000


def read_labels_file(path: Path) -> tuple[str, ...]:
    """The labels in a `.json` file, or the lines of any other. Raises UserError if it cannot be read."""
    if path.suffix.lower() != ".json":
        try:
            labels = read_labels(path)
        except InvalidModel as error:
            raise UserError(f"{path.parent / str(error).removesuffix(_SAID_OF_LINES)}; {ACCEPTED}") from None
        if labels is None:
            raise UserError(f"{path}: No such file or directory; a file of labels is meant: {ACCEPTED}")
        return labels
    try:
        text = read_text(path)
        if not text.strip():
            raise UserError(f"{path} is empty; {ACCEPTED}")
        content = json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a file of labels is meant: {ACCEPTED}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {first_line(error)}; {ACCEPTED}") from None
    labels = labels_in(content)
    if labels is None:
        raise UserError(f"{path}: no labels in it; {ACCEPTED}")
    return labels


def labels_in(content: Any) -> tuple[str, ...] | None:
    """The labels in a value of JSON or of a model's metadata; None if it holds none.

    A list of names; a table from numbers to names or from names to numbers, 0 to K-1; or a table that holds one of these under the
    name that Hugging Face, timm or others give it.
    """
    if isinstance(content, str):
        return _in_text(content)
    if isinstance(content, Sequence):
        return tuple(map(_text, content)) if content and all(isinstance(item, str | int) for item in content) else None
    if not isinstance(content, Mapping) or not content or len(content) > _MAX_LABELS:
        return None
    for key in ("id2label", "label_names", "labels", "classes", "class_names", "names"):
        if isinstance(content.get(key), Sequence | Mapping) and (found := labels_in(content[key])) is not None:
            return found
    by_name = {_number(value): key for key, value in content.items()}
    if all(type(value) is int for value in content.values()) and (numbered := _numbered(by_name)) is not None:
        return numbered  # names may be numbers too: class_to_idx of torchvision sorts them as texts, {"0": 0, "1": 1, "10": 2}
    return _numbered({_number(key): value for key, value in content.items()}) or _numbered(by_name)


def read_literal(text: str) -> Any:
    """What a text holds as JSON or as a literal of Python; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # a list as a key is a TypeError
            continue
    return None


def unique(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, with the number of its class after one that is there twice: ImageNet has two classes called `crane`."""
    seen: set[str] = set()
    found = []
    for index, label in enumerate(labels):
        name = f"{label} ({index})" if label in seen else label
        while name in seen:
            name += f" ({index})"
        seen.add(name)
        found.append(name)
    return tuple(found)


def _in_text(text: str) -> tuple[str, ...] | None:
    """Labels in a text: JSON, a literal of Python, one a line, or with commas between them."""
    text = text.strip()
    if text[:1] in ("[", "{", "("):
        return labels_in(read_literal(text))
    words = text.split("\n") if "\n" in text else text.split(",")
    labels = tuple(word.strip() for word in words)
    return labels if len(labels) > 1 and all(labels) else None


def _numbered(names: Mapping[int | None, Any]) -> tuple[str, ...] | None:
    if set(names) != set(range(len(names))):
        return None
    values = [names[index] for index in range(len(names))]
    if all(isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2 for value in values):
        values = [value[1] for value in values]  # Keras' imagenet_class_index.json: ["n01440764", "tench"]
    return tuple(map(_text, values)) if all(isinstance(value, str | int) for value in values) else None


def _number(value: Any) -> int | None:
    try:
        return int(value) if not isinstance(value, bool | float) else None
    except (TypeError, ValueError):
        return None


def _text(value: str | int) -> str:
    return " ".join(str(value).split())
