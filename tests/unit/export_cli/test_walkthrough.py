"""`convoy walkthrough`: the page, its pictures, and what is refused."""

import base64
import dataclasses
import html.parser
import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_sample_image

from export.cli.walkthrough import walkthrough
from export.data import datasets
from export.training.checkpoint import load_checkpoint, save_checkpoint
from export.walkthrough import (
    web_page,
)
from service.errors import UserError


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo of 640x427 pixels."""
    path = tmp_path_factory.mktemp("photos") / "flower.png"
    Image.fromarray(load_sample_image("flower.jpg")).save(path)
    return path


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory, digits: datasets.Dataset) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "digit.png"
    path.write_bytes(digits.test.encoded(0))
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(walkthrough, [str(argument) for argument in arguments])


class Reader(html.parser.HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    VOID = ("meta", "img", "br", "line", "polyline", "path", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.pictures: list[bytes] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        source = found.get("src") or ""
        if source.startswith("data:image/png;base64,"):
            self.pictures.append(base64.b64decode(source.split(",")[1], validate=True))
        elif source:
            self.links.append(source)
        if "href" in found:
            self.links.append(found["href"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(folder: Path) -> Reader:
    content = (folder / web_page.PAGE).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(content)
    assert reader.open == []
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert not re.search(r"https?:|url\(|@import|<script", content)
    files = {path.read_bytes() for path in folder.glob("*.png")}
    assert set(reader.pictures) == files
    assert all(Image.open(io.BytesIO(content)).format == "PNG" for content in files)
    return reader


def test_the_command_without_a_model(tmp_path: Path, flower: Path) -> None:
    result = invoke(flower, "--output", tmp_path / "tour")
    assert result.exit_code == 0, result.output
    page = read(tmp_path / "tour")
    for shape in ("(427, 640, 3)", "(300, 300)", "(1, 300, 300, 1)", "(1, 150, 150, 1)", "(1, 22500)", "(1, 64)"):
        assert shape in page.text
    assert len(list((tmp_path / "tour").glob("*.png"))) == 9


def test_the_command_with_a_file(tmp_path: Path, digit: Path, model_file: Path, digits: datasets.Dataset) -> None:
    result = invoke(digit, "--model", model_file, "--output", tmp_path / "tour")
    assert result.exit_code == 0, result.output
    label = digits.labels[digits.test.labels[0]]
    assert result.stdout.startswith(f"digit.png: {label}, ")
    page = read(tmp_path / "tour")
    for words in ("(1, 32, 26, 26)", "(1, 64, 3, 3)", "(1, 576)", f"Which pixels mattered for “{label}”", "93,322"):
        assert words in page.text
    assert "One step of learning" not in page.text


def test_the_command_with_a_run(tmp_path: Path, digit: Path, run: Path) -> None:
    result = invoke(digit, "--model", run, "--output", tmp_path / "tour", "--label", "3", "--learning-rate", "0.05")
    assert result.exit_code == 0, result.output
    before, after = (float(each) for each in re.findall(r"Loss: (\S+) before, (\S+) after", result.stdout)[0])
    assert after < before
    page = read(tmp_path / "tour")
    assert "Suppose that “3” is the right answer" in page.text
    assert "learning rate of 0.05" in page.text


def test_the_pictures_folder_is_its_label_and_markup_in_names_stays_text(tmp_path: Path, digit: Path, run: Path) -> None:
    loaded = load_checkpoint(run)
    labels = tuple(f"<b>{label} & co" for label in loaded.labels)
    (tmp_path / "run").mkdir()
    save_checkpoint(dataclasses.replace(loaded, labels=labels), tmp_path / "run")
    (tmp_path / labels[8]).mkdir()
    odd = tmp_path / labels[8] / "<i>x & y.png"
    odd.write_bytes(digit.read_bytes())
    result = invoke(odd, "--model", tmp_path / "run" / "checkpoint.pt", "--output", tmp_path / "tour")
    assert result.exit_code == 0, result.output
    page = read(tmp_path / "tour")
    assert "<i>x & y.png" in page.text
    assert f"“{labels[6]}”" in page.text
    assert f"Suppose that “{labels[8]}” is the right answer" in page.text


def test_user_errors_are_refused_with_a_line(tmp_path: Path, digit: Path, model_file: Path, run: Path) -> None:
    def refused(words: str, *arguments: object) -> None:
        result = invoke(*arguments)
        assert isinstance(result.exception, UserError | SystemExit), result.exception
        message = str(result.exception) if isinstance(result.exception, UserError) else result.output
        assert words in message
        assert "\n" not in message or result.exit_code == 2

    out = ("--output", tmp_path / "tour")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(digit.read_bytes()[:60])
    refused("No such file", tmp_path / "missing.png", *out)
    refused("Is a directory", tmp_path, *out)
    refused("not an image", tmp_path / "text.png", *out)
    refused("broken or cut short", tmp_path / "cut.png", *out)
    refused("broken or cut short", tmp_path / "cut.png", *out, "--model", model_file)
    refused("No such file", digit, *out, "--model", tmp_path / "missing.onnx")
    refused("not a valid ONNX", digit, *out, "--model", digit)
    refused("needs --model", digit, *out, "--label", "3")
    refused("needs --model", digit, *out, "--scaling", "0..1")
    refused("needs a run of `convoy train`", digit, *out, "--label", "3", "--model", model_file)
    refused("needs a run of `convoy train`", digit, *out, "--learning-rate", "1", "--model", model_file)
    refused("'cat' is not one of 0, 1", digit, *out, "--label", "cat", "--model", run)
    refused("0<x<=1000", digit, *out, "--learning-rate", "0", "--model", run)
    refused("not a finite number", digit, *out, "--learning-rate", "nan", "--model", run)
    refused("Missing option '--output'", digit)
    assert list(tmp_path.glob("tour/*")) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused("is not an empty folder", digit, "--output", tmp_path / "full")
