import json

import pytest

from service.model.file_labels import labels_in_metadata

NAMES = ("cat", "dog, the", 'a "bird"', "Bär's")


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": str(dict(enumerate(NAMES)))},
        {"names": json.dumps(dict(enumerate(NAMES)))},
        {"Labels": repr(list(NAMES))},
        {"classes": json.dumps(NAMES, ensure_ascii=False, indent=1)},
        {"id2label": json.dumps(dict(reversed(list(enumerate(NAMES)))))},
        {"class_names": "\n".join(NAMES) + "\n"},
        {"names": "3", "labels": str(list(NAMES))},
        {"names": "{0: broken", "labels": str(list(NAMES))},
    ],
)
def test_names_of_classes_are_read_as_exporters_write_them(metadata: dict[str, str]) -> None:
    assert labels_in_metadata(metadata) == NAMES


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "{}", "[]", "{1: 'cat', 2: 'dog'}", "['cat', 3.5]", "[['cat', 'dog']]", "['cat', '']", "{'cat': 0, 'dog': 1}",
        "[" * 10**6,
        "{0: 'cat', 0: 'dog'}", r"['\N{nothing}', 'dog']", "['cat' 'dog']", "-" * 10**6, "'" * 10**6, "x" * (5 * 2**20) + ",y",
    ],
)  # fmt: skip
def test_anything_else_is_no_names(text: str) -> None:
    assert labels_in_metadata({"names": text}) == ()


def test_what_belongs_to_another_program_is_no_names() -> None:
    assert labels_in_metadata({"task": "classify", "stride": "1", "author": "a, b"}) == ()


def test_half_a_character_is_no_label() -> None:
    assert labels_in_metadata({"names": r"{0: '\ud800', 1: 'b', 2: 'c'}"}) == ()
    assert labels_in_metadata({"names": r"{0: '\ud800', 1: 'b'}", "labels": "cat,dog"}) == ("cat", "dog")
