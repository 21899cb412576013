"""`convoy import --data`: folders of every layout that `convoy evaluate` takes, and what becomes of broken pictures."""

import shutil
from pathlib import Path

import pytest

from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import folder_of, load, run


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, `net.onnx`, and with `data`, pictures that it answers as their class folders say."""
    root = tmp_path_factory.mktemp("imported")
    source = graphs.classifier(root / "net.onnx", end="")
    run(source, root / "models", "--scale", 255)
    folder_of(root / "data", load(root / "models"), pictures=24)
    return root


def test_a_broken_picture_is_left_out_and_named(imported: Path, tmp_path: Path) -> None:
    data = shutil.copytree(imported / "data", tmp_path / "data")
    one = next(data.rglob("*.png"))
    one.with_name("words.png").write_text("no picture")
    one.with_name("half.png").write_bytes(one.read_bytes()[:2000])
    (data / "loose.png").write_bytes(one.read_bytes())
    printed = run(imported / "net.onnx", tmp_path / "models", "--scale", 255, "--data", data)
    assert "100.00% of 24 pictures of data are right" in printed
    assert "loose.png: not in the folder of a class" in printed
    card = (tmp_path / "models" / "pets" / "1" / "README.md").read_text()
    for name in ("words.png", "half.png"):
        assert any("left out: " in line and name in line for line in printed.splitlines()), printed
        assert name in card
    assert "on 24 pictures: " in run(imported / "net.onnx", tmp_path / "none", "--data", data, "--search-preprocessing")
    only = tmp_path / "only" / "0"
    only.mkdir(parents=True)
    (only / "words.png").write_text("no picture")
    with pytest.raises(Exception, match="only: none of its 1 pictures can be decoded"):
        run(imported / "net.onnx", tmp_path / "none", "--scale", 255, "--data", only.parent)


def test_only_the_test_part_of_a_folder_is_measured(imported: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(imported / "data", data / "test")
    printed = run(imported / "net.onnx", tmp_path / "models", "--scale", 255, "--data", data)
    assert "100.00% of 24 pictures of data are right" in printed
    shutil.copytree(imported / "data", data / "train")
    printed = run(imported / "net.onnx", tmp_path / "models", "--scale", 255, "--data", data)
    assert "labelled pictures: 24 of data, its test part" in printed
    assert "100.00% of 24 pictures of data are right" in printed
    first, second = (load(tmp_path / "models", version).contract.origin for version in (1, 2))
    assert first is not None
    assert second is not None
    assert first.data_digest == second.data_digest != ""
