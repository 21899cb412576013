"""Where the labels of a stranger's model come from: its version's folder, serving.toml, its model's folder, its own metadata."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.engine.answer import Answer
from service.engine.classifier import Classifier
from service.engine.query import Item, Query
from service.engine.repository import Repository
from service.observability.metrics import Metrics
from tests.unit.model import foreign_graphs as foreign

pytestmark = pytest.mark.usefixtures("settings_taken_at_once")

IN_FILE = ["cat", "dog", "cow", "ant", "bee"]


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    models = Repository(tmp_path, "cpu", Metrics(CollectorRegistry()))
    yield models
    models.stop()


def write(folder: Path, names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("\n".join(f"{names}{number}" for number in range(5)))


def labels(repository: Repository) -> dict[int, list[str]]:
    """Of the served versions, after a scan, without the numbers at the end of those that were written."""
    repository._loader.scan()
    found = {served.version: list(served.model.labels) for served in repository.served["m"]}
    return {version: names if names == IN_FILE else [names[0].rstrip("0")] for version, names in found.items()}


def test_labels_of_a_version_come_before_those_of_its_model(tmp_path: Path, repository: Repository) -> None:
    for version in (1, 2):
        foreign.uint8_logits(tmp_path / "m" / str(version) / "model.onnx")
    policy = tmp_path / "m" / "serving.toml"
    policy.write_text('versions = "all"')
    assert labels(repository) == {1: IN_FILE, 2: IN_FILE}
    write(tmp_path / "m", "model")
    assert labels(repository) == {1: ["model"], 2: ["model"]}
    write(tmp_path / "m" / "2", "version")
    assert labels(repository) == {1: ["model"], 2: ["version"]}
    policy.write_text('versions = "all"\nlabels = ["policy0", "b", "c", "d", "e"]')
    assert labels(repository) == {1: ["policy"], 2: ["version"]}
    write(tmp_path / "m" / "2", "changed")
    assert labels(repository) == {1: ["policy"], 2: ["changed"]}


def test_what_serving_toml_says_makes_probabilities_of_scores(tmp_path: Path, repository: Repository) -> None:
    foreign.uint8_logits(tmp_path / "m" / "1" / "model.onnx")
    classifier = Classifier(repository, Metrics(CollectorRegistry()))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    answers: list[Answer] = []
    for text in ("", 'scores = "logits"'):
        (tmp_path / "m" / "serving.toml").write_text(text)
        repository._loader.scan()
        answers.append(classifier.classify_blocking(Query("m", [Item(pixels.tobytes(), False)])))
    scores, probabilities = (answer.scores[0].astype(np.float64) for answer in answers)
    assert scores.max() > 1
    np.testing.assert_allclose(probabilities, np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum(), atol=1e-6)
    np.testing.assert_array_equal(answers[1].outputs["scores"][0], scores.astype(np.float32), "by tensor they are as they were")
    assert [answer.served.metrics.probabilities for answer in answers] == [False, True]
    assert classifier.drain(5)
    classifier.close()
