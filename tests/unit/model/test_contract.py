import json
from typing import Any

import pytest

from service.errors import InvalidModel
from service.model.contract import Contract, Head, Origin
from service.model.input_spec import InputSpec, Resizing

TRAINING = {
    "data": "folder", "data_digest": "1f", "network": "n", "epochs": 1, "parameters": 7, "seed": 0,
    "accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "temperature": 1.25, "calibration_error": 0.02,
    "versions": {"torch": "2"}, "commit": "abc",
}  # fmt: skip
SCHEMA_1: dict[str, Any] = {
    "schema": 1,
    "name": "pets",
    "input": {"height": 2, "width": 3, "channels": 3, "resize": "bilinear", "fit": "crop"},
    "labels": ["cat", "dog"],
    "head": "sigmoid",
    "precision": "int8",
    "training": TRAINING,
    "golden": [{"image_png": "aGk=", "probabilities": [0.25, 0.75], "tolerance": {"cpu": 1e-4, "cuda": 5e-3}}],
}
CONTRACT: dict[str, Any] = {
    "schema": 2,
    "name": "pets",
    "input": {
        "height": 2, "width": 3, "channels": 3, "dtype": "uint8", "resize": "cover", "filter": "bilinear", "crop": None,
        "pad": {"color": [0, 0, 0], "align": "center"}, "alpha": "white", "exif": "apply",
    },
    "heads": [
        {"name": "probabilities", "output": "probabilities", "labels": ["cat", "dog"], "activation": "sigmoid", "threshold": None}
    ],
    "precision": "int8",
    "batch_items": 0,
    "training": TRAINING,
    "origin": None,
    "golden": [
        {"image": "aGk=", "pixels_sha256": "", "probabilities": [[0.25, 0.75]], "tolerance": {"cpu": 1e-4, "cuda": 5e-3}}
    ],
}  # fmt: skip
HEAD = CONTRACT["heads"][0]


def with_input(**fields: object) -> dict[str, object]:
    return {"input": CONTRACT["input"] | fields}


def test_a_contract_round_trips_through_json() -> None:
    contract = Contract.from_json(json.dumps(CONTRACT))
    assert contract.input.shape == (2, 3, 3)
    assert contract.input.size_bytes == contract.input.pixels_bytes == 18
    assert contract.golden[0].image == b"hi"
    again = json.loads(contract.to_json())
    assert again["golden"][0].pop("image").strip() == "aGk="
    expected = json.loads(json.dumps(CONTRACT))
    del expected["golden"][0]["image"]
    assert again == expected
    assert Contract.from_json(contract.to_json()) == contract


def test_schema_1_is_read_as_what_it_meant() -> None:
    assert Contract.from_json(json.dumps(SCHEMA_1)) == Contract.from_json(json.dumps(CONTRACT))
    for fit, resize in (("stretch", "stretch"), ("pad", "pad"), ("crop", "cover")):
        taken = {"height": 2, "width": 3, "channels": 1, "resize": "bilinear", "fit": fit}
        assert Contract.from_json(json.dumps(SCHEMA_1 | {"input": taken})).input.resize == resize
    bare = SCHEMA_1 | {"input": {"height": 2, "width": 3, "channels": 1}}
    assert Contract.from_json(json.dumps(bare)).input == InputSpec(height=2, width=3, channels=1)


@pytest.mark.parametrize(
    "change", [{"labels": None}, {"labels": ["a"]}, {"head": 3}, {"golden": 4}, {"golden": [4]}, {"input": []}]
)
def test_a_broken_schema_1_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidModel, match=r"^contract: \S+: "):
        Contract.from_json(json.dumps(SCHEMA_1 | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0", "[" * 10_000])
def test_what_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(InvalidModel, match=r"^contract: "):
        Contract.from_json(text)


def test_an_imported_model_has_an_origin_and_several_heads() -> None:
    origin = Origin(source="net.onnx", digest="ab", accuracy=0.5, data="photos")
    kinds = Head(name="kinds", output="kinds", labels=("wild", "small"), activation="multilabel", threshold=0.3)
    change = {
        "training": None, "origin": origin.model_dump(), "heads": [HEAD, kinds.model_dump()], "golden": [],
    }  # fmt: skip
    contract = Contract.from_json(json.dumps(CONTRACT | change))
    assert (contract.labels, contract.head, contract.heads[1]) == (("cat", "dog"), "sigmoid", kinds)
    assert (contract.measured.accuracy, contract.temperature, contract.seed) == (0.5, 1.0, 0)
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    ("fields", "resizing", "fitting"),
    [
        ({}, Resizing("stretch", 20, 30), "stretched, bilinear"),
        ({"resize": "pad", "pad": {"color": (1, 2, 3)}}, Resizing("pad", 20, 30), "padded with (1, 2, 3), bilinear"),
        ({"resize": "cover", "filter": "bicubic"}, Resizing("cover", 20, 30), "cropped, bicubic"),
        ({"resize": "stretch:64x48", "crop": "center"}, Resizing("stretch", 64, 48), "stretched to 64x48, bilinear, center crop"),
        ({"resize": "short:32", "crop": "center-floor"}, Resizing("short", 32, 32), "shorter side to 32, bilinear, center crop"),
        ({"resize": "none", "crop": "center"}, Resizing("none", 0, 0), "not resized, center crop"),
    ],
)
def test_the_resize_is_parsed_and_told_in_words(fields: dict[str, Any], resizing: Resizing, fitting: str) -> None:
    spec = InputSpec.model_validate({"height": 20, "width": 30, "channels": 3} | fields)
    assert (spec.resizing, spec.fitting) == (resizing, fitting)


def test_a_float_input_has_four_bytes_a_number() -> None:
    spec = InputSpec(height=2, width=3, channels=1, dtype="float32")
    assert (spec.size_bytes, spec.pixels_bytes) == (24, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "contract: schema: "),
        ({"heads": []}, "contract: heads: "),
        ({"heads": [HEAD | {"labels": ["cat"]}]}, "sigmoid needs two labels or more"),
        ({"heads": [HEAD | {"labels": ["cat", "dog", "hen"]}]}, "sigmoid is of two labels, and there are 3"),
        ({"heads": [HEAD | {"labels": ["cat", "cat"]}]}, "labels are not unique"),
        ({"heads": [HEAD | {"labels": ["a", "b", "c"], "activation": "softmax"}]}, r"\[2\] probabilities for \[3\] labels"),
        ({"heads": [HEAD | {"output": "scores"}]}, "not named 'probabilities'"),
        ({"heads": [HEAD, HEAD | {"name": "b"}]}, "two heads have the same output"),
        ({"heads": [HEAD, HEAD | {"output": "b"}]}, "two heads have the same name"),
        ({"heads": [HEAD, HEAD | {"name": "logits", "output": "logits"}]}, "named 'logits'"),
        ({"heads": [HEAD | {"activation": "multilabel"}]}, "threshold belongs to multilabel"),
        ({"heads": [HEAD | {"threshold": 0.5}]}, "threshold belongs to multilabel"),
        ({"heads": [HEAD | {"activation": "relu"}]}, "contract: heads.0.activation: "),
        ({"training": None}, "one of training and origin"),
        (with_input(resize="short:32"), "a crop is needed"),
        (with_input(resize="stretch:4x4"), "a crop is needed"),
        (with_input(resize="short:9000", crop="center"), "at most 8192 pixels"),
        (with_input(resize="short:0", crop="center"), "contract: input.resize: "),
        (with_input(resize="stretch:4"), "contract: input.resize: "),
        (with_input(filter="cubic"), "contract: input.filter: "),
        (with_input(pad={"color": [0, 0, 256]}), "contract: input.pad.color.2: "),
        ({"precision": "fp8"}, "contract: precision: "),
        ({"input": {"height": 0, "width": 3, "channels": 3}}, "contract: input.height: "),
        ({"input": {"height": 2, "width": 3, "channels": 2}}, "contract: input.channels: "),
        ({"extra": 1}, "contract: extra: "),
        ({"golden": CONTRACT["golden"] * 5}, "contract: golden: "),
    ],
)
def test_an_invalid_contract_names_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        Contract.from_json(json.dumps(CONTRACT | change))
