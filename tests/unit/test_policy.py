"""The contract, the policy, the repository's names: what Convoy reads from files."""

import json
from pathlib import Path

import pytest

from service.errors import InvalidModel, UserError
from service.model.contract import Contract
from service.model.repository_layout import check_model_name, misplaced, model_names, model_path, next_version, version_numbers
from service.policy import Policy, read_policy

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


def test_a_contract_survives_being_written_and_read() -> None:
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
def test_a_contract_that_is_not_one_says_where(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        Contract.from_json(json.dumps(CONTRACT | change))


def test_a_policy_has_defaults_and_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "pets" / "serving.toml"
    assert read_policy(path) == Policy()
    path.parent.mkdir()
    path.write_text("max_batch_size = 8\ndefault_timeout_seconds = 1.5\nprovider = 'cpu'\n")
    assert read_policy(path) == Policy(max_batch_size=8, default_timeout_seconds=1.5, provider="cpu")


def test_one_key_alone_is_enough(tmp_path: Path) -> None:
    assert Policy(max_queue_items=5).max_request_items == 5
    assert Policy(priority_levels=1).default_priority == 1
    assert Policy().max_request_items == 512


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size = 0", "pets/serving.toml: max_batch_size: .*greater than or equal to 1"),
        ("max_batch_size = 'many'", "pets/serving.toml: max_batch_size: "),
        ("batch_size = 2", "pets/serving.toml: batch_size: unknown key; the keys are max_batch_size, "),
        ("max_queue_items = 5\nmax_request_items = 6", r"serving.toml: max_request_items \(6\) is above max_queue_items \(5\)"),
        ("default_priority = 3", r"pets/serving.toml: default_priority \(3\) is above priority_levels \(2\)"),
        ("instances = 0", "pets/serving.toml: instances: .*greater than or equal to 1"),
        ("max_queue_delay_seconds = -1", "pets/serving.toml: max_queue_delay_seconds: .*greater than or equal to 0"),
        ("provider = 'gpu'", "pets/serving.toml: provider: Input should be 'auto', 'cuda'"),
        ("default_timeout_seconds = inf", "pets/serving.toml: default_timeout_seconds: "),
        ("default_timeout_seconds = 2e9", "pets/serving.toml: default_timeout_seconds: .*less than or equal to 1000000000"),
        ("max_batch_size = true", "pets/serving.toml: max_batch_size: Input should be a valid integer"),
        ("max_queue_delay_seconds = '0.1'", "pets/serving.toml: max_queue_delay_seconds: Input should be a valid number"),
        ("max_batch_size 8", "pets/serving.toml: Expected"),
    ],
)
def test_a_bad_policy_names_the_key_and_what_it_accepts(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pets" / "serving.toml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_policy(path)


def test_versions_are_folders_named_by_positive_integers(tmp_path: Path) -> None:
    for name in ("a/10", "a/9", "a/0", "a/01", "a/x", "a/.export-1", "a/latest", ".hidden/1", "bad name/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "11").touch()
    assert model_names(tmp_path) == ["a"]
    assert version_numbers(tmp_path, "a") == [9, 10]
    assert next_version(tmp_path, "a") == 11
    assert next_version(tmp_path, "new") == 1
    assert model_path(tmp_path, "a", 9) == tmp_path / "a" / "9" / "model.onnx"


def test_model_files_in_other_places_are_found(tmp_path: Path) -> None:
    wrong = {
        "a/2/model.onnx": "a broken link",
        "a/model.onnx": "expected is <model>/<version>/model.onnx",
        "a/v1/model.onnx": "'v1' is not a version",
        "b/1/resnet.onnx": "expected is <model>/<version>/model.onnx",
        "bad name/1/model.onnx": "a name starts with a letter or digit",
        "liveness/1/model.onnx": "is taken",
        "net.onnx": "expected is <model>/<version>/model.onnx",
    }
    right = ["a/1/model.onnx", "a/1/beside.onnx", "a/.export-1/model.onnx", ".hidden/1/model.onnx", "a/1/deep/er/model.onnx"]
    for name in (*wrong, *right):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/2/model.onnx").unlink()
    (tmp_path / "a/2/model.onnx").symlink_to("nowhere")
    found = {str(path): reason for path, reason in misplaced(tmp_path)}
    assert list(found) == list(wrong)
    assert [reason for name, reason in found.items() if wrong[name] not in reason] == []


@pytest.mark.parametrize("name", ["", "liveness", "../up", "a/b", ".hidden", "x" * 65, "ünicode", "a b"])
def test_names_that_could_leave_the_repository_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="model name"):
        check_model_name(name)
    assert check_model_name("Pets-v1.2_b") == "Pets-v1.2_b"
