from pathlib import Path

import pytest

from service.errors import InvalidModel, UserError
from service.model.repository_layout import (
    check_model_name,
    misplaced,
    model_names,
    model_path,
    next_version,
    read_labels,
    version_numbers,
)


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


def test_labels_are_lines_with_any_line_end_or_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\nd\u2028og\r\ncow\n\n".encode())
    assert read_labels(path) == ("cat", "d\u2028og", "cow")
    path.write_text("cat\ndog\n", encoding="utf-16")
    with pytest.raises(InvalidModel, match=r"^labels.txt: the file is UTF-16; save it as UTF-8$"):
        read_labels(path)
