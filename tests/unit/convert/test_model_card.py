"""The model card of a real export."""

import hashlib
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from export.convert import model_card
from export.data import datasets
from service.engine.repository import Repository
from service.model.contract import own_head
from service.model.loading import load_model
from service.observability.metrics import Metrics
from tests.unit.evaluation.answers import scores_of


def test_the_card_describes_the_file_and_a_server_ignores_it(model_file: Path, digits: datasets.Dataset) -> None:
    card = (model_file.parent / "README.md").read_text()
    contract = load_model(model_file, "cpu", 1).contract
    assert card.startswith("# digits\n")
    assert hashlib.sha256(model_file.read_bytes()).hexdigest() in card
    assert f"{contract.measured.accuracy:.2%} (" in card
    assert f"| calibration error | {contract.measured.calibration_error:.2%} |" in card
    assert f"{contract.temperature:.3f}, divides the logits" in card
    assert "| training | 1,257 | the weights |" in card
    assert "| learning\\_rate | 0.002 |" in card
    assert len(re.findall(r"^\| \d \| 3\d \| [\d.]+% \|", card, re.MULTILINE)) == 10, "a row for each digit"
    shown = re.findall(r"\]\((\w+\.png)\)", card)
    assert sorted(["README.md", "model.onnx", *shown]) == sorted(path.name for path in model_file.parent.iterdir())
    repository = Repository(model_file.parents[2], "cpu", Metrics(CollectorRegistry()))
    repository.start()
    try:
        assert {name: served.version for name, [served] in repository.served.items()} == {"digits": 1}
    finally:
        repository.stop()


def test_the_card_leads_with_what_the_accuracy_hides(model_file: Path) -> None:
    heads = (own_head(("cat", "dog")),)
    contract = load_model(model_file, "cpu", 1).contract.model_copy(update={"heads": heads})
    overview = model_card._overview(contract, scores_of([0] * 50 + [1], [0] * 51, labels=("cat", "dog")), "1f", 10)
    assert "never right: dog (0 of 1 right).**" in overview
    assert overview.index("never right") < overview.index("| balanced accuracy | 50.00%") < overview.index("| accuracy | 98.04%")


def test_the_card_escapes_names(model_file: Path) -> None:
    heads = (own_head(("golden_retriever", "a|b", "owl")),)
    contract = load_model(model_file, "cpu", 1).contract.model_copy(update={"heads": heads})
    overview = model_card._overview(contract, scores_of([0, 1, 2], [0, 1, 2]), "1f", 10)
    assert r"| labels | golden\_retriever, a\|b, owl |" in overview
