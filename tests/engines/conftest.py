"""What the engines' examples are given: pictures by the thousand, a list of them, and what a model says of each.

Run by `make engines`, in an environment of its own that holds the engines; all else is that of the server's.
"""

import io
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from export.data.datasets import Dataset
from service import Local
from tests.conftest import digits, known_operators, model_file, run  # noqa: F401

PICTURES = 10_000
BROKEN = ("broken.png", "empty.png", "missing.png", "folder.png")

LARGE = 50
"""Pictures of the second half take longer, so that a worker can be killed before it is done."""


class Pictures(NamedTuple):
    """A list of paths, and the label of each, or None of one that cannot be read."""

    list: Path
    labels: dict[str, str | None]


@pytest.fixture(scope="session")
def labelled(digits: Dataset, model_file: Path) -> list[tuple[bytes, str]]:  # noqa: F811
    """Digits, the last LARGE of them enlarged, and the label that the model has for each."""
    encoded = [digits.test.encoded(index) for index in range(len(digits.test.labels))]
    encoded += map(enlarged, encoded[:LARGE])
    with Local(model_file, cpus=1) as local:
        answers = [outcome.answer for outcome in local.classify_many(encoded)]
    return [(one, answer.results[0][0].label) for one, answer in zip(encoded, answers, strict=True)]


def enlarged(encoded: bytes) -> bytes:
    image = Image.open(io.BytesIO(encoded))
    buffer = io.BytesIO()
    image.resize((20 * image.width, 20 * image.height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path: Path, labelled: list[tuple[bytes, str]]) -> Pictures:
    """Of 10,000 pictures four cannot be read. Their names are such as people give."""
    folder = tmp_path / 'photos, of "ü" 100%'
    folder.mkdir()
    labels: dict[str, str | None] = {}
    for number in range(PICTURES - len(BROKEN)):
        encoded, label = labelled[number % (len(labelled) - LARGE)] if number < PICTURES // 2 else labelled[-1 - number % LARGE]
        path = folder / f"{number}.png"
        path.write_bytes(encoded)
        labels[str(path)] = label
        if number % (PICTURES // len(BROKEN)) == 0:
            labels[str(folder / BROKEN[number * len(BROKEN) // PICTURES])] = None
    (folder / "broken.png").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in labels))
    return Pictures(tmp_path / "list.txt", labels)
