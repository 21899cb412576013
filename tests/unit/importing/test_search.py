"""`convoy import --search-preprocessing`: what it takes, what it refuses, and that it runs one session of the graph."""

import re
from pathlib import Path

import click
import numpy as np
import pytest
from onnx import TensorProto, helper

from export.cli.import_model import import_model
from export.importing import source_graph
from service.errors import UserError
from service.model.session import OpenGraph
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import folder_of, load, run

TAKEN = {"--repository", "--name", "--labels", "--output", "--layout", "--input-shape", "--data", "--dry-run"}
VALUES = {
    "--preset": "torchvision", "--preprocessor": "config.json", "--resize": "stretch", "--mean": "1", "--std": "1",
    "--pad-color": "1,2,3", "--reference": "pixels.npz",
}  # fmt: skip


def flags_not_taken() -> list[tuple[str, ...]]:
    """Each option of the command that the search has no use for, with a value."""
    found: list[tuple[str, ...]] = []
    for option in import_model.params:
        [flag] = [name for name in option.opts if name.startswith("--")] or [""]
        if not flag or flag in TAKEN or flag == "--search-preprocessing":
            continue
        if isinstance(option, click.Option) and option.is_flag:
            found.append((flag,))
            continue
        value = option.type.choices[0] if isinstance(option.type, click.Choice) else VALUES.get(flag, "0.5")
        found.append((flag, "24" if flag in ("--crop", "--minimum-accuracy") else str(value)))
    return found


@pytest.mark.parametrize("given", flags_not_taken(), ids=lambda given: given[0])
def test_flags_that_the_search_would_ignore_are_refused_by_name(given: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"imports nothing: leave out {given[0]}; beside it accepted are --data"):
        run(tmp_path / "none.onnx", tmp_path / "models", "--data", tmp_path, "--search-preprocessing", *given)


def test_one_session_is_made_for_all_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(OpenGraph):
        def __init__(self, *arguments: object) -> None:
            made.append(self)
            super().__init__(*arguments)  # type: ignore[arg-type]

    source = graphs.classifier(tmp_path / "net.onnx", end="")
    run(source, tmp_path / "models", "--scale", 255)
    data = folder_of(tmp_path / "data", load(tmp_path / "models"), pictures=20)
    monkeypatch.setattr(source_graph, "OpenGraph", Counted)
    assert "the best of 120 ways" in run(source, tmp_path / "none", "--data", data, "--search-preprocessing")
    assert len(made) == 2  # one finds the output, the other tries


@pytest.mark.parametrize("units", [5, 1])
def test_the_search_needs_not_know_what_the_numbers_are(units: int, tmp_path: Path) -> None:
    """With pixels of 0 to 1 these logits are all between 0 and 1, so that an import asks for --scores; the search does not."""
    more = [
        helper.make_node("Mul", ["z", "small"], ["shrunk"]),
        helper.make_node("Add", ["shrunk", "half"], ["scores"]),
    ]
    source = graphs.with_nodes(
        tmp_path / "net.onnx", more, [("scores", TensorProto.FLOAT, ["n", units])], classes=units,
        small=np.array(1e-3, np.float32), half=np.array(0.5 if units > 1 else 0.0001, np.float32),
    )  # fmt: skip
    with pytest.raises(UserError, match="it is not clear"):
        run(source, tmp_path / "models", "--scale", 255)
    run(source, tmp_path / "models", "--scale", 255, "--scores", "logits")
    served = load(tmp_path / "models")
    data = folder_of(tmp_path / "data", served, pictures=20)
    printed = run(source, tmp_path / "none", "--data", data, "--search-preprocessing")
    assert re.search(r"^ *100\.0% .*--scale 255 --resize stretch", printed, re.MULTILINE), printed
