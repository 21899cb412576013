"""What the engines' examples are given: pictures by the thousand, a list of them, and what a model says of each.

Run by `make engines`, in an environment of its own that holds the engines; all else is that of the server's.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from export.data.datasets import Dataset
from service import Local
from tests.conftest import digits, known_operators, model_file, run  # noqa: F401

PICTURES = 10_000
BROKEN = ("broken.png", "empty.png", "missing.png", "folder.png")


class Pictures(NamedTuple):
    """A list of paths; the label of each, or None of one that cannot be read; and a path in the middle that is a pipe.

    Whoever reads the pipe waits, until `picture` takes its place.
    """

    list: Path
    labels: dict[str, str | None]
    pipe: Path
    picture: Path


@pytest.fixture(scope="session")
def labelled(digits: Dataset, model_file: Path) -> list[tuple[bytes, str]]:  # noqa: F811
    """Digits, and the label that the model has for each."""
    encoded = [digits.test.encoded(index) for index in range(len(digits.test.labels))]
    with Local(model_file, cpus=1) as local:
        answers = [outcome.answer for outcome in local.classify_many(encoded)]
    return [(one, answer.results[0][0].label) for one, answer in zip(encoded, answers, strict=True)]


@pytest.fixture
def pictures(tmp_path: Path, labelled: list[tuple[bytes, str]]) -> Pictures:
    """Of 10,000 pictures four cannot be read. Their names are such as people give."""
    folder = tmp_path / 'photos, of "ü" 100%'
    folder.mkdir()
    labels: dict[str, str | None] = {}
    for number in range(PICTURES - len(BROKEN)):
        encoded, label = labelled[number % len(labelled)]
        path = folder / f"{number}.png"
        path.write_bytes(encoded)
        labels[str(path)] = label
        if number % (PICTURES // len(BROKEN)) == 0:
            labels[str(folder / BROKEN[number * len(BROKEN) // PICTURES])] = None
    (folder / "broken.png").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    pipe = folder / f"{PICTURES // 2}.png"
    picture = pipe.rename(tmp_path / "picture.png")
    os.mkfifo(pipe)
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in labels))
    return Pictures(tmp_path / "list.txt", labels, pipe, picture)
