"""`convoy classify` of folders, archives and lists by real servers: rows, folders, what is printed, interruptions."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest

from export.data.datasets import Dataset
from service.server import Server
from tests.conftest import Serve, put
from tests.program import convoy_here, one_line

fast = pytest.mark.parametrize("transport_name", ["fast"])
COUNT = 40


@pytest.fixture
def photos(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for index in range(COUNT):
        path = tmp_path / "photos" / str(index % 3) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(digits.test.encoded(index))
    (tmp_path / "photos" / "0" / "text.png").write_text("not a picture")
    (tmp_path / "photos" / "notes.txt").touch()
    return tmp_path / "photos"


def at(*servers: Server) -> list[str]:
    return ["--model", "digits", *(word for server in servers for word in ("--server", f"127.0.0.1:{server.grpc_port}"))]


@fast
def test_a_folder_becomes_rows_and_folders_of_labels(photos: Path, repository: Path, serve: Serve, digits: Dataset) -> None:
    servers = [serve(repository), serve(repository)]
    with tarfile.open("more.tar.gz", "w:gz") as archive:
        archive.add(photos / "1" / "1.png", "in/1.png")
    asked = ["--output", "rows.csv", "--top-k", "2", "--sort-into", "sorted", "--min-probability", "0.5"]
    ended = convoy_here("classify", "photos", "none.png", "more.tar.gz", *at(*servers), *asked)
    assert ended.returncode == 2
    assert ended.stdout == ""
    counts, labels, left_out, error = ended.stderr.splitlines()
    assert counts.startswith(f"{COUNT + 3} pictures in ")
    assert counts.endswith(f"{COUNT + 1} classified, 2 errors; rows in rows.csv")
    assert labels.startswith("labels: ")
    assert left_out == "left out in folders and archives: 1 no picture by their suffix"
    assert error == f"convoy: 2 of {COUNT + 3} images could not be classified"
    with Path("rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "path", "label", "probability", "label_2", "probability_2", "sorted_to", "model", "version", "error"
    ]  # fmt: skip
    found = {row["path"]: row for row in rows}
    assert len(found) == len(rows) == COUNT + 3
    assert "not an image" in found["photos/0/text.png"]["error"]
    assert found["none.png"]["error"] == "No such file or directory"
    assert found["more.tar.gz/in/1.png"]["label"] == found["photos/1/1.png"]["label"]
    right = sum(found[f"photos/{index % 3}/{index}.png"]["label"] == str(digits.test.labels[index]) for index in range(COUNT))
    assert right > 0.9 * COUNT
    placed = [Path(row["sorted_to"]) for row in rows if not row["error"]]
    assert all(path.is_file() and path.parent.name in (row, "unsure") for path, row in ((p, p.parent.name) for p in placed))
    assert sum(path.is_file() for path in Path("sorted").rglob("*")) == COUNT + 1

    again = convoy_here(
        "classify", "photos", *at(servers[0]), "--output", "rows.csv", "--top-k", "2", "--sort-into", "sorted", "--resume"
    )
    assert again.stderr.startswith("1 picture in "), again.stderr
    assert f"{COUNT + 1} were done before" in again.stderr


@fast
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_version_of_the_rows_is_continued(kind: str, photos: Path, repository: Path, serve: Serve, model_file: Path) -> None:
    put(model_file, repository, "digits", 2)
    (repository / "digits" / "serving.toml").write_text('versions = "all"\n')
    server, output = serve(repository), f"rows.{kind}"
    (photos / "0" / "text.png").unlink()
    assert convoy_here("classify", "photos/0", *at(server), "--version", "1", "--output", output).returncode == 0
    refused = one_line(convoy_here("classify", "photos", *at(server), "--version", "2", "--output", output, "--resume"))
    assert "is of digits version 1; this run is of digits version 2" in refused
    ended = convoy_here("classify", "photos", *at(server), "--output", output, "--resume")
    assert ended.returncode == 0, ended.stderr
    path = Path(output)
    rows = (
        pyarrow.parquet.read_table(path).to_pylist() if kind == "parquet" else list(map(json.loads, path.read_text().splitlines()))
    )
    assert Counter(row["version"] for row in rows) == {"1": COUNT}
    assert len({row["path"] for row in rows}) == COUNT


@fast
def test_without_an_output_answers_are_printed_in_order(photos: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [f"photos/{index % 3}/{index}.png" for index in range(COUNT)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\0".join([*listed, "none.png"]).encode())))
    ended = convoy_here("classify", "--from-file", "-", *at(server), "--json")
    assert [json.loads(line)["image"] for line in ended.stdout.splitlines()] == listed
    assert len(json.loads(ended.stdout.splitlines()[0])["predictions"]) == 5
    assert ended.stderr.splitlines() == [
        "convoy: none.png: No such file or directory", f"convoy: 1 of {COUNT + 1} images could not be classified"
    ]  # fmt: skip
    globbed = convoy_here("classify", "photos/**/1*.png", *at(server))
    assert sum("(digits version 1)" in line for line in globbed.stdout.splitlines()) == 11


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "digits"], "give a PATH, or --from-file LIST"),
        (["photos"], "Missing option '--model'"),
        (["photos", "--model", "digits", "--resume"], "--resume continues the rows of --output"),
        (["photos", "--model", "digits", "--output", "rows.txt"], "give a name that ends in .csv, .jsonl, .parquet"),
        (["photos", "--model", "digits", "--output", "taken.csv"], "exists: nothing is overwritten"),
        (["photos", "--model", "digits", "--output", "rows.jsonl", "--json"], "--json prints, --output FILE.jsonl writes"),
        (["photos", "--model", "digits", "--min-probability", "0.5"], "give --sort-into DIR"),
        (
            ["photos", "--model", "digits", "--sort-into", "photos/"],
            "is in --sort-into photos, or is it: choose another folder",
        ),
        (["file://{here}/photos", "--model", "digits", "--sort-into", "photos"], "is in --sort-into photos, or is it"),
        (["photos/1", "--model", "digits", "--sort-into", "photos"], "is in --sort-into photos, or is it"),
        (["photos/1/*.png", "--model", "digits", "--explain", "photos"], "is in --explain photos, or is it"),
        (["s3://bucket/photos", "--model", "digits"], "s3fs"),
        (["photos", "--model-file", "x.onnx", "--server", "127.0.0.1:1"], "--model-file asks no server: leave out --server"),
        (["photos", "--model", "digits", "--server", "127.0.0.1:1", "--output", "rows.csv"], "no server answers at 127.0.0.1:1"),
        (["photos", "--model", "digits", "--server", "a:1", "--server", "b:1"], "invalid server address 'a:1,b:1'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_and_nothing_is_written(arguments: list[str], says: str, photos: Path) -> None:
    Path("taken.csv").write_text("precious")
    before = sorted(photos.parent.rglob("*"))
    assert says in one_line(convoy_here("classify", *(argument.format(here=photos.parent) for argument in arguments)))
    assert sorted(photos.parent.rglob("*")) == before
    assert Path("taken.csv").read_text() == "precious"


@fast
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_a_file_to_read_and_to_continue(
    kind: str, sent: signal.Signals, code: int, photos: Path, server: Server
) -> None:
    """It waits for more of its list when it is told to stop."""
    program = [sys.executable, "-m", "service.cli", "classify", "--from-file", "-", *at(server), "--output", f"rows.{kind}"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=photos.parent) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        running.stdin.write("".join(f"photos/{index % 3}/{index}.png\n" for index in range(COUNT)))
        running.stdin.flush()
        rows = Path("rows.parquet.partial" if kind == "parquet" else "rows.csv")
        waiting = threading.Event()
        while not rows.exists():
            waiting.wait(0.05)
        waiting.wait(0.3)
        os.kill(running.pid, sent)
        said = running.stderr.read()
    assert running.returncode == code, said
    assert f"rows in rows.{kind}; --resume continues them" in said
    ended = convoy_here("classify", "photos/1", "photos/2", *at(server), "--output", f"rows.{kind}", "--resume")
    assert ended.returncode == 0, ended.stderr
    if kind == "parquet":
        found = [row["path"] for row in pyarrow.parquet.read_table("rows.parquet").to_pylist()]
    else:
        found = [row["path"] for row in csv.DictReader(Path("rows.csv").read_text().splitlines())]
    assert len(found) == len(set(found)) >= COUNT * 2 // 3


def test_pictures_that_cannot_be_removed_end_a_move_with_an_error(photos: Path, model_file: Path) -> None:
    asked = ["photos/1", "--model-file", str(model_file), "--output", "rows.csv", "--sort-into", "sorted"]
    assert convoy_here("classify", *asked).returncode == 0
    count = len(list((photos / "1").iterdir()))
    Path("sorted").rename("sorted before")
    ended = convoy_here("classify", *asked, "--sort-mode", "move", "--resume")
    assert ended.returncode == 2
    assert ended.stderr.startswith("0 pictures in ")
    expected = f"convoy: {count} of the pictures that are to be moved could not be removed from their old place"
    assert ended.stderr.splitlines()[-1] == expected
    assert len(list((photos / "1").iterdir())) == count


def test_a_model_file_answers_without_a_server(photos: Path, model_file: Path) -> None:
    ended = convoy_here("classify", "photos", "--model-file", model_file, "--output", "rows.csv", "--sort-into", "sorted")
    assert f"{COUNT} classified, 1 error" in ended.stderr
    one = convoy_here("classify", "photos/1/1.png", "--model-file", model_file, "--json")
    with Path("rows.csv").open(newline="") as file:
        [row] = [row for row in csv.DictReader(file) if row["path"] == "photos/1/1.png"]
    best = json.loads(one.stdout)["predictions"][0]
    assert row["label"] == best["label"]
    assert float(row["probability"]) == pytest.approx(best["probability"], rel=1e-6)
    assert "there is no such file or folder" in one_line(convoy_here("classify", "photos", "--model-file", "none.onnx"))
