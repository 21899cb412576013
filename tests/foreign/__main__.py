"""Imports the foreign models, and compares what Convoy serves with the pipelines of those who wrote them.

    python -m tests.foreign [WORD]       # or only those whose package or file has the word in it

Prints a table in Markdown; exits with 1 if an import fails, if one passes that must be refused, or if an answer is another one.
"""

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from export.cli.import_model import import_model
from service.errors import first_line
from service.model.cpus import cpu_budget
from service.model.inference import Model
from service.model.loading import load_model
from service.model.preprocessing import decode, encode_png
from service.model.session import OpenGraph
from tests.foreign import packages, pipelines
from tests.foreign.cases import CASES, Case

ALLOWED = 1e-4
"""Largest difference of a probability."""


@dataclass
class Outcome:
    """What came of a case: the gates that it passed, what was seen of it, and whether that is as it should be."""

    gates: str
    seen: str
    right: bool


def main() -> int:
    """Runs the cases; returns the exit code."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    wrong = served = refused = 0
    print("| package | file | `convoy import` with | gates | outcome |\n|---|---|---|---|---|")
    for case in CASES:
        if word not in f"{case.package} {case.file}":
            continue
        outcome = run(case)
        wrong += not outcome.right
        refused += outcome.right and bool(case.refusal)
        served += outcome.right and not case.refusal
        seen = f"{'' if outcome.right else '**WRONG** '}{outcome.seen}"
        print(f"| {case.package} | {Path(case.file).name} | {_flags(case)} | {outcome.gates} | {seen} |", flush=True)
    print(f"\n{served} imported, and answer as their sources do; {refused} refused, as they should be; {wrong} wrong")
    return int(wrong > 0)


def run(case: Case) -> Outcome:
    """Imports a model and compares its answers."""
    folder = packages.unpacked(case.package, case.needs)
    flags = [str(folder / flag) if (folder / flag).is_file() else flag for flag in case.flags]
    with tempfile.TemporaryDirectory() as scratch:
        pictures = pipelines.pictures(case.pictures)
        inputs = [case.pipeline(picture) for picture in pictures] if case.pipeline is not None else []
        if inputs and not case.inexact and inputs[0].ndim == 4:
            flags += ["--reference", str(_reference(Path(scratch, "pipeline.npz"), pictures, inputs))]
        words = [str(folder / case.file), "--repository", f"{scratch}/models", "--name", "foreign", *flags]
        result = CliRunner().invoke(import_model, words, standalone_mode=False)
        if result.exception is not None:
            said = first_line(Exception(result.exception)).replace(f"{folder}/", "")
            return Outcome("", f"refused: {said}", bool(case.refusal) and case.refusal in said)
        gates = _gates(result.output)
        if case.pipeline is None:
            return Outcome(gates, "imported, and should have been refused", right=False)
        served = load_model(Path(scratch, "models/foreign/1/model.onnx"), "cpu", cpu_budget())
        source = folder / case.file.replace("program.pt2", "any_batch.onnx")
        return _compare(case, served, OpenGraph(packages.whole(source), cpu_budget()), pictures, inputs, gates)


def _reference(path: Path, pictures: Sequence[Image.Image], inputs: Sequence[NDArray[Any]]) -> Path:
    """What `--reference` takes: the pictures, and what the package's pipeline feeds to the network."""
    named: dict[str, Any] = {f"picture_{at}": np.asarray(picture) for at, picture in enumerate(pictures)}
    np.savez(path, inputs=np.concatenate(inputs), **named)
    return path


def _compare(
    case: Case, served: Model, source: OpenGraph, pictures: Sequence[Image.Image], inputs: Sequence[NDArray[Any]], gates: str
) -> Outcome:
    """Every head's probabilities for each picture, against those of the source's graph for the inputs of its own pipeline."""
    heads = [case.flags[at + 1] for at, flag in enumerate(case.flags) if flag == "--output"]
    largest, same, answers = 0.0, 0, 0
    for picture, fed in zip(pictures, inputs, strict=True):
        raw = source.run(fed)
        expected = [_probabilities(raw[name]) for name in heads] or [_probabilities(_scores(raw))]
        pixels = decode(encode_png(np.asarray(picture)), served.contract.input, 1 << 26)
        given = served.predict(pixels[None])
        for wanted, found in zip(expected, [given[0][0], *(value[0] for value in given[2:])], strict=True):
            largest = max(largest, float(np.abs(found - wanted).max()))
            same += int(found.argmax() == wanted.argmax())
            answers += 1
    what = f"same first label in {same} of {answers} answers, largest difference {largest:.1e}"
    return Outcome(
        gates,
        f"{what}{f' ({case.inexact})' if case.inexact else ''}",
        same == answers and (bool(case.inexact) or largest <= ALLOWED),
    )


def _scores(raw: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The one output that is a row of floats; scikit-learn's ZipMap gives a list with a table from labels to them."""
    [found] = [value for value in raw.values() if isinstance(value, list) or value.dtype.kind == "f"]
    return np.array([list(row.values()) for row in found]) if isinstance(found, list) else found


def _probabilities(scores: NDArray[Any]) -> NDArray[np.float64]:
    row = scores.reshape(-1).astype(np.float64)
    powers = np.exp(row - row.max())
    made: NDArray[np.float64] = row if row.min() >= 0 and abs(row.sum() - 1) < 1e-3 else powers / powers.sum()
    return made


def _gates(printed: str) -> str:
    """The gates that were passed, each with its figure."""
    found = dict(re.findall(r"^(\w+) gate: (.*)$", printed, re.MULTILINE))
    short = {
        "graph": r"largest change (\S+)", "parity": r"largest difference from the source (\S+),",
        "pixels": r"to (\S+) on|(not proved)", "golden": r"^(\d+) pictures",
    }  # fmt: skip
    figures = {name: re.search(pattern, found.get(name, "")) for name, pattern in short.items()}
    return ", ".join(f"{name} {next(filter(None, figure.groups()))}" for name, figure in figures.items() if figure)


def _flags(case: Case) -> str:
    return f"`{shlex.join(case.flags)}`" if case.flags else ""


if __name__ == "__main__":
    sys.exit(main())
