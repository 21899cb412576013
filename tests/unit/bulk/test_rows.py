"""The rows of the output: their columns, their three formats, and how an earlier run's are continued."""

import csv
import json
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow.parquet
import pytest

from service.bulk import parquet, row_file
from service.bulk.columns import Columns, reason
from service.bulk.output import Output
from service.bulk.path_set import PathSet
from service.bulk.pictures import LeftOut, key_of, path_of
from service.bulk.run import Rows, run
from service.bulk.sorting import How, Sorter
from service.bulk.sources import pictures
from service.client import CallFailed, Classification, Outcome, Prediction, RequestTooLarge
from service.errors import FileUnreadable, UserError
from tests.conftest import full_disk
from tests.unit.bulk.answers import LABELS, ask, columns, content, info

KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return list(pyarrow.parquet.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]


def classify(folder: Path, path: Path, *, resume: bool = False, of: Columns | None = None, sorter: Sorter | None = None) -> Rows:
    output = Output(path, resume=resume)
    rows = Rows(output, sorter, of or columns(sorting=sorter is not None))
    try:
        run(pictures([str(folder)], LeftOut()), ask, rows, rows.open())
    finally:
        rows.close()
    return rows


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, picture in {
        "1.png": content("ann"), "2.png": content("bob", 0.4), "3.png": b"not a picture", "ü,\"\r\n.png": content("ann"),
    }.items():  # fmt: skip
        (folder / name).write_bytes(picture)
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(content("../eve"))
    (folder / "gone.png").symlink_to("nowhere")
    return folder


@KINDS
def test_every_picture_has_one_row_in_every_format(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    rows = classify(photos, path, of=columns(top_k=2))
    assert (rows.classified, rows.errors, rows.labels) == (4, 2, Counter(ann=2, bob=1, **{"../eve": 1}))
    found = {Path(path_of(row["path"])).name: row for row in read(path)}
    assert found.keys() == {each.name for each in photos.iterdir()}
    first = found["2.png"]
    assert list(first) == ["path", "label", "probability", "label_2", "probability_2", "model", "version", "error"]
    assert [float(value) if name.startswith("prob") else value for name, value in first.items()] == [
        str(photos / "2.png"), "bob", 0.4, "ann", 0.05, "people", "1", None,
    ]  # fmt: skip
    assert found["3.png"]["error"] == "not an image"
    assert found["gone.png"]["error"] == "No such file or directory"
    assert found["gone.png"]["label"] is None
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("rows")] == [path.name], "nothing is left beside it"


@KINDS
def test_an_output_that_is_there_is_refused_and_continued_with_resume(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    classify(photos, path, resume=True)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"exists: nothing is overwritten, choose another \(or --resume, to continue it\)"):
        classify(photos, path)
    assert path.read_bytes() == before
    (photos / "3.png").write_bytes(content("bob"))
    (photos / "4.png").write_bytes(content("bob"))
    rows = classify(photos, path, resume=True)
    assert (rows.classified, rows.errors) == (2, 1), "the new one and the one that had an error; one is an error again"
    assert Counter(row["path"] for row in read(path)) == Counter(dict.fromkeys((row["path"] for row in read(path)), 1))
    assert sum(row["error"] is not None for row in read(path)) == 1
    assert len(read(path)) == 7


@KINDS
def test_what_a_kill_cut_off_is_taken_away(kind: str, photos: Path, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{kind}"
    (photos / "3.png").unlink()
    (photos / "gone.png").unlink()
    classify(photos, whole)
    rows = tmp_path / "rows.parquet.partial" if kind == "parquet" else tmp_path / f"rows.{kind}"
    if kind == "parquet":
        classify(photos, tmp_path / "lines.jsonl")
    written = (tmp_path / "lines.jsonl" if kind == "parquet" else whole).read_bytes()
    path = tmp_path / f"rows.{kind}"
    expected = sorted(read(whole), key=str)
    for end in range(0, len(written), 60 if kind == "parquet" else 5):
        path.unlink(missing_ok=True)
        rows.write_bytes(written[:end])
        classify(photos, path, resume=True)
        assert sorted(read(path), key=str) == expected, end


@KINDS
def test_a_run_of_something_else_is_not_continued(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    classify(photos, path)
    before = read(path)
    with pytest.raises(UserError, match="has other columns than this run"):
        classify(photos, path, resume=True, of=columns(top_k=2))
    with pytest.raises(UserError, match="is of people version 1; this run is of people version 2"):
        classify(photos, path, resume=True, of=Columns(info(version="2"), 1))
    assert Output(path, resume=True).earlier == ("people", "1")
    assert not path.exists() or read(path) == before
    with pytest.raises(UserError, match=r"give a name that ends in \.csv, \.jsonl, \.parquet"):
        Output(tmp_path / "rows.txt", resume=False)
    with pytest.raises(UserError, match="no such folder"):
        Output(tmp_path / "none" / f"rows.{kind}", resume=False)
    other = tmp_path / f"other.{kind}"
    other.write_bytes(b"something,else\n1,2\n")
    with pytest.raises(UserError, match="--resume"):
        classify(photos, other, resume=True)
    assert other.read_bytes() == b"something,else\n1,2\n"


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('"note"before,', "',' expected after '\"'"),
        ('"note,', "',' expected after '\"'|its quotes are not closed"),
        ('one,two\n', "it has 2 values instead of 6"),
        ('x,ann,high,people,1,\n', "'high' is no number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("quoted_after", [True, False])
def test_a_broken_row_in_the_middle_is_said_and_no_row_is_lost(
    broken: str, says: str, quoted_after: bool, photos: Path, tmp_path: Path
) -> None:
    if not quoted_after:
        (photos / 'ü,"\r\n.png').unlink()
    path = tmp_path / "rows.csv"
    classify(photos, path)
    header, first, rest = path.read_text().split("\n", 2)
    written = f"{header}\n{first}\n{broken}{rest}"
    path.write_text(written, newline="")
    with pytest.raises(UserError, match=f"--resume: row 3 of the output is broken .*({says})"):
        classify(photos, path, resume=True)
    assert path.read_bytes().decode() == written
    assert {each.name for each in tmp_path.iterdir()} == {"photos", "rows.csv"}


def test_a_value_may_be_as_long_as_it_is(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    classify(photos, path)
    with path.open("a") as file:
        file.write(f"{'x' * 200_000},ann,0.9,people,1,\n")
    classify(photos, path, resume=True)
    assert len(path.read_text().splitlines()) > 6
    assert f"\n{'x' * 200_000}," in path.read_text()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_of_something_else_is_not_taken_for_a_row_that_a_kill_cut_off(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_text("notes of mine")
    with pytest.raises(UserError, match="--resume"):
        classify(photos, path, resume=True)
    assert path.read_text() == "notes of mine"


@pytest.mark.parametrize("name", ["path", "label", "probability", "sorted_to", "model", "version", "error"])
@pytest.mark.parametrize("value", [{}, True, [1], ["x"], 7, "x"])
def test_a_value_that_a_column_cannot_have_is_said(name: str, value: object, photos: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "parquet.partial"):
        path = tmp_path / f"rows.{suffix}"
        row = {"path": "x", "label": "ann", "probability": 0.9, "sorted_to": "y", "model": "people", "version": "1", "error": None}
        path.write_text(json.dumps(row) + "\n" + json.dumps(row | {name: value}) + "\n")
        output = Output(tmp_path / f"rows.{suffix.partition('.')[0]}", resume=True)
        assert output.earlier == ("people", "1")
        if type(value) is str if name != "probability" else value == 7:
            if name not in ("model", "version"):
                output.open(columns(sorting=True), lambda *_: True, lambda: None)
                output.close()
        else:
            with pytest.raises(UserError, match=rf"row 2, is (of|broken: {name} is )"):
                output.open(columns(sorting=True), lambda *_: True, lambda: None)


def test_a_csv_that_excel_has_saved_is_continued(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    classify(photos, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (photos / "3.png").write_bytes(content("bob"))
    assert Output(path, resume=True).earlier == ("people", "1")
    assert classify(photos, path, resume=True).classified == 1
    assert len(read(path)) == 6


@KINDS
def test_an_output_is_a_regular_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        Output(path, resume=True)


@KINDS
def test_a_refused_run_leaves_nothing_beside_the_output(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    classify(photos, path)
    with pytest.raises(UserError, match="has other columns than this run"):
        classify(photos, path, resume=True, of=columns(top_k=2))
    Output(path, resume=True)  # as if the server was then found not to have the model
    assert {each.name for each in tmp_path.iterdir()} == {"photos", path.name}


def test_a_parquet_file_of_other_values_is_refused(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    row = {"path": "x", "label": datetime.now(tz=UTC), "probability": 1.0, "model": "people", "version": "1", "error": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    with pytest.raises(UserError, match=r"--resume: .*not JSON serializable"):
        classify(photos, path, resume=True)
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), path)
    with pytest.raises(UserError, match="is no output: it has no columns model and version"):
        classify(photos, path, resume=True)
    assert {each.name for each in tmp_path.iterdir()} == {"photos", path.name}


@KINDS
def test_an_output_may_be_a_link(kind: str, photos: Path, tmp_path: Path) -> None:
    path, real = tmp_path / f"rows.{kind}", tmp_path / "elsewhere"
    real.mkdir()
    path.symlink_to(f"elsewhere/real.{kind}")
    classify(photos, path)
    (photos / "3.png").write_bytes(content("bob"))
    classify(photos, path, resume=True)
    assert path.is_symlink()
    assert len(read(path)) == 6
    assert [each.name for each in real.iterdir()] == [f"real.{kind}"]


def test_without_a_file_of_rows_errors_are_said(photos: Path) -> None:
    said: dict[str, str] = {}
    rows = Rows(None, None, columns(), lambda picture, error: said.update({picture.name: error}))
    run(pictures([str(photos)], LeftOut()), ask, rows, rows.open())
    rows.close()
    assert said == {str(photos / "3.png"): "not an image", str(photos / "gone.png"): "No such file or directory"}


def test_two_at_a_time_do_not_write_the_same_output(photos: Path, tmp_path: Path) -> None:
    first = Output(tmp_path / "rows.csv", resume=False)
    first.open(columns(), lambda *_: True, lambda: None)
    with pytest.raises(UserError, match="another `convoy classify` is writing it"):
        Output(tmp_path / "rows.csv", resume=True).open(columns(), lambda *_: True, lambda: None)
    first.close()


def opened(path: Path, *, resume: bool = True) -> Output:
    output = Output(path, resume=resume)
    output.open(columns(), lambda *_: True, lambda: None)
    return output


def row_of(path: str) -> list:
    return [path, "ann", 0.9, "people", "1", None]


@KINDS
def test_of_two_that_continue_an_output_at_a_time_one_is_refused(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    classify(photos, path)
    before = len(read(path))
    first, second, new = Output(path, resume=True), Output(path, resume=True), tmp_path / f"new.{kind}"
    first.open(columns(), lambda *_: True, lambda: None)
    first.write(row_of("x"))
    for _ in range(2):
        with pytest.raises(UserError, match="another `convoy classify` is writing it"):
            second.open(columns(), lambda *_: True, lambda: None)
    first.close()
    assert len(read(path)) == before + 1
    second.open(columns(), lambda *_: True, lambda: None)
    second.write(row_of("y"))
    second.close()
    assert [row["path"] for row in read(path)][before:] == ["x", "y"]
    late, later = Output(new, resume=False), Output(new, resume=True)
    opened(new, resume=False).close()
    with pytest.raises(UserError, match="nothing is overwritten"):
        late.open(columns(), lambda *_: True, lambda: None)
    later.open(columns(), lambda *_: True, lambda: None)
    later.write(row_of("z"))
    later.close()
    assert [row["path"] for row in read(new)] == ["z"]
    assert {each.name for each in tmp_path.iterdir()} == {"photos", path.name, new.name}


@pytest.mark.parametrize("resume", [True, False])
def test_a_parquet_file_that_is_being_made_is_refused(resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    first = opened(path, resume=False)
    first.write(row_of("x"))
    finish, refusals = parquet.finish, []

    def finish_slowly(path: Path, made: Columns) -> None:
        with pytest.raises(UserError, match=r"another|exists") as refused:
            opened(path, resume=resume)
        refusals.append(refused)
        finish(path, made)

    monkeypatch.setattr(parquet, "finish", finish_slowly)
    first.close()
    assert len(refusals) == 1
    assert [row["path"] for row in read(path)] == ["x"]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_kill_before_a_parquet_file_is_unpacked_loses_none_of_its_rows(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    classify(photos, path)
    before = read(path)
    (tmp_path / "rows.parquet.partial").touch()
    assert Output(path, resume=True).earlier == ("people", "1")
    opened(path).close()
    assert sorted(read(path), key=str) == sorted(before, key=str)


@KINDS
def test_an_output_that_is_continued_keeps_its_permissions(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    classify(photos, path)
    path.chmod(0o640)
    (photos / "3.png").write_bytes(content("bob"))
    classify(photos, path, resume=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [row["label"] for row in read(path) if row["path"].endswith("3.png")] == ["bob"]


def test_a_full_disk_leaves_whole_rows(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with full_disk(300), pytest.raises(UserError, match="File too large; --resume goes on from here"):
        classify(photos, path)
    assert path.stat().st_size <= 300
    classify(photos, path, resume=True)
    assert len(read(path)) == 6


def moving(tmp_path: Path, *, resume: bool = False) -> tuple[Rows, PathSet]:
    sorter = Sorter(tmp_path / "sorted", How.MOVE, 0.0)
    rows = Rows(Output(tmp_path / "rows.csv", resume=resume), sorter, columns(sorting=True))
    return rows, rows.open()


def is_complete(tmp_path: Path, contents: dict[str, bytes]) -> bool:
    """Whether each of these pictures, and no other, has one row, and is where the row says, and there alone."""
    found = read(tmp_path / "rows.csv")
    return Counter(row["path"] for row in found) == Counter(dict.fromkeys(contents, 1)) and all(
        Path(row["sorted_to"]).read_bytes() == contents[row["path"]] and not Path(row["path"]).exists() for row in found
    )


def test_a_full_disk_leaves_the_pictures_that_have_no_row(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {str(path): path.read_bytes() for path in photos.glob("[12].png")}
    rows, done = moving(tmp_path)
    write = os.write

    def full(descriptor: int, block: memoryview) -> int:
        if len(block) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, block[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(row_file, "_BLOCK_ROWS", 2)
        with pytest.raises(UserError, match="No space left on device"):
            run(pictures(list(contents), LeftOut()), ask, rows, done)
        with pytest.raises(UserError, match="No space left on device; --resume goes on from here"):
            rows.close()
    assert {path: Path(path).read_bytes() for path in contents} == contents
    assert read(tmp_path / "rows.csv") == []
    rows, done = moving(tmp_path, resume=True)
    run(pictures(list(contents), LeftOut()), ask, rows, done)
    rows.close()
    assert is_complete(tmp_path, contents)


def test_a_disk_that_is_full_for_a_moment_loses_no_row(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {str(path): path.read_bytes() for path in photos.glob("[12].png")}
    rows, done = moving(tmp_path)
    monkeypatch.setattr(row_file, "_BLOCK_ROWS", 1)

    def full(descriptor: int, block: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match="No space left"):
            run(pictures(list(contents), LeftOut()), ask, rows, done)
    rows.close()
    [row] = read(tmp_path / "rows.csv")
    assert Path(row["sorted_to"]).read_bytes() == contents[row["path"]]
    rows, done = moving(tmp_path, resume=True)
    run(pictures(list(contents), LeftOut()), ask, rows, done)
    rows.close()
    assert is_complete(tmp_path, contents)


@pytest.mark.parametrize("place", ["before the row", "in the middle of a block", "after the block"])
def test_an_interruption_anywhere_removes_no_picture_without_a_row_and_doubles_none(
    place: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {str(path): path.read_bytes() for path in photos.glob("[12].png")}
    rows, done = moving(tmp_path)
    with monkeypatch.context() as patch:
        if place == "before the row":
            patch.setattr(Output, "write", interrupted)
        elif place == "in the middle of a block":
            write = os.write
            patch.setattr(row_file, "_BLOCK_ROWS", 2)
            patch.setattr(os, "write", lambda descriptor, block: interrupted(write(descriptor, block[:50])))
        else:
            patch.setattr(row_file, "_BLOCK_ROWS", 2)
            patch.setattr(Sorter, "written", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(pictures(list(contents), LeftOut()), ask, rows, done)
    rows.close()
    with_row = {row["path"] for row in read(tmp_path / "rows.csv")}
    assert all(Path(path).read_bytes() == contents[path] for path in contents if path not in with_row)
    rows, done = moving(tmp_path, resume=True)
    run(pictures(list(contents), LeftOut()), ask, rows, done)
    rows.close()
    assert is_complete(tmp_path, contents)


def interrupted(*_: object) -> int:
    raise KeyboardInterrupt


@KINDS
def test_a_row_with_an_error_stays_until_its_picture_has_another(kind: str, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "5.png").write_bytes(b"not a picture")
    path = tmp_path / f"rows.{kind}"
    classify(photos, path)
    before = read(path)
    classify(other, path, resume=True)
    assert read(path)[: len(before)] == before, "3.png and gone.png are not among the sources of this run"
    assert len(read(path)) == len(before) + 1
    (other / "5.png").write_bytes(content("bob"))
    classify(other, path, resume=True)
    assert read(path)[: len(before)] == before
    [last] = read(path)[len(before) :]
    assert (last["path"], last["label"], last["error"]) == (str(other / "5.png"), "bob", None)


@KINDS
def test_a_kill_between_two_rows_of_a_picture_loses_neither_for_good(kind: str, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    partial = tmp_path / "rows.parquet.partial" if kind == "parquet" else path
    lines = tmp_path / ("lines.csv" if kind == "csv" else "lines.jsonl")
    classify(photos / "3.png", lines)
    (photos / "3.png").write_bytes(content("bob"))
    (tmp_path / "new").mkdir()
    new = tmp_path / "new" / lines.name
    classify(photos / "3.png", new)
    added = new.read_bytes().partition(b"\n")[2] if kind == "csv" else new.read_bytes()
    partial.write_bytes(lines.read_bytes() + added)
    assert classify(photos / "3.png", path, resume=True).classified == 0
    assert [(row["label"], row["error"]) for row in read(path)] == [("bob", None)]


def test_a_picture_is_done_however_its_path_is_spelled(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.csv"
    for number, spelled in enumerate(["photos", "./photos", str(photos), "photos/", "././/photos", f"file://{photos}"]):
        output = Output(path, resume=True)
        rows = Rows(output, None, columns())
        run(pictures([spelled, "photos/1.png", str(photos / "1.png")], LeftOut()), ask, rows, rows.open())
        rows.close()
        assert rows.classified == (0 if number else 4), spelled
    assert len(read(path)) == 6


@pytest.mark.parametrize("name", ["a/../b.png", "photos.zip/../a.png", "..png", "a/..b/c.png"])
def test_a_picture_elsewhere_is_another(name: str) -> None:
    assert key_of(name) == f"{Path.cwd()}/{name}"


def test_a_new_picture_in_the_place_of_one_that_was_moved_is_classified(photos: Path, tmp_path: Path) -> None:
    path = photos / "1.png"
    contents = [content(label, 0.9, str(number)) for number, label in enumerate(["ann", "ann", "bob"])]
    for picture in contents:
        path.write_bytes(picture)
        rows, done = moving(tmp_path, resume=True)
        run(pictures([str(path)], LeftOut()), ask, rows, done)
        rows.close()
        assert not path.exists()
    found = read(tmp_path / "rows.csv")
    assert [row["path"] for row in found] == [str(path)] * 3
    assert [Path(row["sorted_to"]).read_bytes() for row in found] == contents


def test_true_labels_and_further_heads_have_columns_of_their_own() -> None:
    tags = {"name": "tags", "labels": ["cap", "=glasses", "beard"], "activation": "multilabel", "threshold": 0.5}
    made = Columns(info({"name": "person", "labels": LABELS, "activation": "softmax"}, tags), 1)
    assert made.names == [
        "path",
        "label",
        "probability",
        "tags_label",
        "tags_probability",
        "tags_labels",
        "model",
        "version",
        "error",
    ]
    assert made.asked_top_k == 3
    found = [Prediction("=glasses", 1, 0.9), Prediction("cap", 0, 0.5), Prediction("beard", 2, 0.1)]
    answer = Classification("people", "1", [[Prediction("ann", 0, 0.25)]], {}, {"tags": [found]}, {"tags": 0.5})
    assert made.answered("x", answer)[1:6] == ["ann", 0.25, "=glasses", 0.9, ["=glasses", "cap"]]
    assert len(made.failed("x", "wrong")) == len(made.names) == len(made.answered("x", answer))


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Columns(info({"name": "person", "labels": ["=1+1", "-1", "@x"], "activation": "softmax"}), 3)
    output = Output(Path("rows.csv"), resume=False)
    output.open(made, lambda *_: True, lambda: None)
    best = [[Prediction("=1+1", 0, 0.5), Prediction("-1", 1, 0.4), Prediction("@x", 2, 0.1)]]
    output.write(made.answered("./=x.png", Classification("people", "1", best, {})))
    output.close()
    [row] = read(Path("rows.csv"))
    assert [row["path"], row["label"], row["label_2"], row["label_3"]] == ["./=x.png", "'=1+1", "-1", "'@x"]


def test_the_reason_stands_without_the_name_that_the_row_has() -> None:
    assert reason(FileUnreadable("a.png: Is a directory"), "a.png") == "Is a directory"
    assert reason(CallFailed("INVALID_ARGUMENT", "item 3: not an image", "items[3].encoded")) == "not an image"
    assert reason(CallFailed("INTERNAL", "the model failed")) == "INTERNAL: the model failed"
    assert "the server takes at most 5" in reason(RequestTooLarge(9, 5))


def test_a_set_of_paths_holds_what_was_added_and_nothing_else() -> None:
    paths, expected = PathSet(), set()
    numbers = random.Random(0)
    for _ in range(20_000):
        name = f"{numbers.randrange(10_000)}\udcff"
        assert paths.add(name) == (name not in expected)
        expected.add(name)
    assert len(paths) == len(expected)
    assert all((f"{number}\udcff" in paths) == (f"{number}\udcff" in expected) for number in range(11_000))


def test_a_name_given_twice_is_one_row(photos: Path, tmp_path: Path) -> None:
    output = Output(tmp_path / "rows.csv", resume=False)
    rows = Rows(output, None, columns())
    run(pictures([str(photos), str(photos / "1.png"), str(photos)], LeftOut()), ask, rows, rows.open())
    rows.close()
    assert len(read(tmp_path / "rows.csv")) == 6


COUNT = 280


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_run_that_is_killed_again_and_again_ends_with_one_row_a_picture(kind: str, tmp_path: Path) -> None:
    photos, into, path = tmp_path / "photos", tmp_path / "sorted", tmp_path / f"rows.{kind}"
    contents = {}
    for index in range(COUNT):
        folder = photos / str(index % 7)
        folder.mkdir(parents=True, exist_ok=True)
        contents[folder / f"{index // 7}.png"] = content(LABELS[index % 3], 0.3 + index % 2 / 2, str(index % 2 and index))
    for name, picture in contents.items():
        name.write_bytes(picture)
    for stop in (1, COUNT // 3, COUNT):
        program: list[str | Path] = [sys.executable, "-m", "tests.unit.bulk.test_rows", photos, path, into]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            for line in running.stdout:
                running.stdin.write("\n")
                running.stdin.flush()
                if stop < COUNT and int(line) >= stop:
                    running.kill()
                    break
            running.stdout.read()
        assert running.returncode == (-9 if stop < COUNT else 0)
    found = read(path)
    assert Counter(row["path"] for row in found) == Counter({str(name): 1 for name in contents})
    assert all(row["error"] is None for row in found)
    assert not any(name.exists() for name in contents), "all are moved"
    assert {Path(row["path"]): Path(row["sorted_to"]).read_bytes() for row in found} == contents
    assert len({row["sorted_to"] for row in found}) == COUNT == sum(each.is_file() for each in into.rglob("*"))


def slowly(images: Iterator[str | bytes]) -> Iterator[Outcome]:
    for outcome in ask(images):
        yield outcome
        sys.stdout.write(f"{outcome.index}\n")
        sys.stdout.flush()
        sys.stdin.readline()  # not further than one picture ahead of who kills it


def main(photos: str, path: str, into: str) -> None:
    """What is killed: it says on stdout how far it is."""
    row_file._BLOCK_ROWS = 20
    rows = Rows(Output(Path(path), resume=True), Sorter(Path(into), How.MOVE, 0.5), columns(sorting=True))
    done = rows.open()
    try:
        run(pictures([photos], LeftOut()), partial(slowly), rows, done)
    finally:
        rows.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
