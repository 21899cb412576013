import json

import pytest

from service.errors import InvalidModel
from service.model.contract import Contract

CONTRACT = {
    "schema": 1,
    "name": "pets",
    "input": {"height": 2, "width": 3, "channels": 3, "resize": "bilinear", "fit": "crop"},
    "labels": ["cat", "dog"],
    "head": "sigmoid",
    "precision": "int8",
    "training": {
        "data": "folder", "data_digest": "1f", "network": "n", "epochs": 1, "seed": 0,
        "accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "temperature": 1.25, "calibration_error": 0.02,
        "versions": {"torch": "2"}, "commit": "abc",
    },
    "golden": [{"image_png": "aGk=", "probabilities": [0.25, 0.75], "tolerance": {"cpu": 1e-4, "cuda": 5e-3}}],
}  # fmt: skip


def test_a_contract_round_trips_through_json() -> None:
    contract = Contract.from_json(json.dumps(CONTRACT))
    assert contract.input.shape == (2, 3, 3)
    assert contract.input.size_bytes == 18
    assert contract.golden[0].image_png == b"hi"
    again = json.loads(contract.to_json())
    assert again["golden"][0].pop("image_png").strip() == "aGk="
    expected = json.loads(json.dumps(CONTRACT))
    del expected["golden"][0]["image_png"]
    assert again == expected
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "contract: schema: "),
        ({"labels": ["cat"]}, "contract: labels: "),
        ({"labels": ["cat", "cat"]}, "labels are not unique"),
        ({"labels": ["a", "b", "c"]}, "2 probabilities for 3 labels"),
        ({"precision": "fp8"}, "contract: precision: "),
        ({"input": {"height": 0, "width": 3, "channels": 3}}, "contract: input.height: "),
        ({"input": {"height": 2, "width": 3, "channels": 2}}, "contract: input.channels: "),
        ({"extra": 1}, "contract: extra: "),
        ({"golden": CONTRACT["golden"] * 5}, "contract: golden: "),  # type: ignore[operator]
    ],
)
def test_an_invalid_contract_names_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        Contract.from_json(json.dumps(CONTRACT | change))
