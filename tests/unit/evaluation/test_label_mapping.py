"""Classes of the data as labels of a model, by name and by a file."""

from pathlib import Path

import pytest

from export.evaluation.label_mapping import map_labels, read_labels_map
from service.errors import UserError

LABELS = ("cat", "Golden Retriever", "café", "CAT", "owl")


def test_names_are_matched_exactly_and_then_but_for_case_and_spaces() -> None:
    names = ("owl", "CAT", "cat", "golden_retriever", "GOLDEN-RETRIEVER", "OWL", "cafe\N{COMBINING ACUTE ACCENT}")
    assert map_labels(names, LABELS) == [4, 3, 0, 1, 1, 4, 2]
    assert map_labels((), LABELS) == []


def test_a_file_says_more_than_a_name() -> None:
    assert map_labels(("cat", "n1", "n2", "n3"), LABELS, {"cat": "owl", "n1": "cat", "n2": "", "n3": "golden_retriever"}) == [
        4, 0, None, 1,
    ]  # fmt: skip


def test_a_file_that_names_what_the_data_do_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"--labels-map has 'ow1', which the data do not have; their classes are 'owl', 'cat'$"):
        map_labels(("owl", "cat"), LABELS, {"cat": "owl", "ow1": ""})


def test_names_that_are_no_labels_are_refused() -> None:
    def refused(*names: str, given: dict[str, str] | None = None) -> str:
        with pytest.raises(UserError) as raised:
            map_labels(names, LABELS, given)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    said = refused("cat", *(f"n{number}" for number in range(7)))
    assert "7 of the data's 8 classes are none of the model's 5 labels: 'n0', 'n1', 'n2', 'n3', 'n4' and 2 more;" in said
    assert "the model has 'cat', 'Golden Retriever', 'café', 'CAT', 'owl'. --labels-map FILE says" in said
    assert "1 of the data's 1 classes is none of the model's 5 labels: 'lion' (for 'n1')" in refused("n1", given={"n1": "lion"})
    assert "class 'Cat' could be 'cat' or 'CAT' of the model" in refused("Cat")


@pytest.mark.parametrize("content", [
    "folder,label\nn1,cat\nn2,\n\n\"n 3\",\"owl, snowy\"\n", "\ufeffn1,cat\r\nn2,\r\nn 3,\"owl, snowy\"\r\n",
    '{"n1": "cat", "n2": "", "n 3": "owl, snowy"}', '\ufeff\n{"n1": "cat", "n1": "cat", "n2": "", "n 3": "owl, snowy"}',
])  # fmt: skip
def test_csv_and_json_are_read(content: str, tmp_path: Path) -> None:
    path = tmp_path / ("map.JSON" if "{" in content else "map.csv")
    path.write_text(content, newline="")
    assert read_labels_map(path) == {"n1": "cat", "n2": "", "n 3": "owl, snowy"}


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("map.csv", b"n1,cat\nn2\n", "line 2 has 1 column;"), ("map.csv", b"a,b,c\n", "line 1 has 3 columns;"),
    ("map.csv", b"n1,cat\nn1,dog\n", "line 2: 'n1' is 'cat' and 'dog';"), ("map.csv", b'n1,"cat\n', "unexpected end of data;"),
    ("map.csv", b"", "has no labels;"), ("map.csv", b"folder,label\n", "has no labels;"),
    ("map.csv", b"\xff\xfe", "not a text in UTF-8;"), ("map.csv", b"a\0b", "1 column;"),
    ("map.json", b"{", "not JSON (Expecting"), ("map.json", b'[["n1", "cat"]]', "not an object;"),
    ("map.json", b'{"n1": 3}', "'n1' has 3, which is not a label;"),
    ("map.json", b'{"n1": "a", "n1": "b"}', "'n1' is 'a' and 'b';"),
    ("map.json", b"[" * 100_000, "not JSON"), ("map.json", b"{}", "has no labels;"),
])  # fmt: skip
def test_other_files_are_refused(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_labels_map(path)
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    assert reason in said
    assert said.endswith("accepted is a .csv file with rows of folder,label, or a .json file with an object of the same")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.csv: No such file or directory"):
        read_labels_map(tmp_path / "nowhere.csv")
