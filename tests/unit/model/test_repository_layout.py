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


def test_versions_go_to_the_largest_int64(tmp_path: Path) -> None:
    seconds, largest = 1764442800, 2**63 - 1
    for name in (f"a/{seconds}", f"a/{largest}", f"a/{largest + 1}", "a/10000000000000000000", f"b/{seconds}"):
        (tmp_path / name).mkdir(parents=True)
    assert version_numbers(tmp_path, "a") == [seconds, largest]
    assert next_version(tmp_path, "b") == seconds + 1
    with pytest.raises(UserError, match=f"model 'a' has version {largest}, the highest there can be"):
        next_version(tmp_path, "a")


def test_model_files_in_other_places_are_found(tmp_path: Path) -> None:
    wrong = {
        "a/2/model.onnx": "a broken link",
        "a/model.onnx": "expected is <model>/<version>/model.onnx",
        "a/3": "there is no model.onnx in it",
        "a/4": "a broken link",
        "a/007/model.onnx": "'007' is not a version: versions are whole numbers from 1 to 9223372036854775807, without leading",
        "a/v1/model.onnx": "'v1' is not a version",
        "b/1/resnet.onnx": "expected is <model>/<version>/model.onnx",
        "bad name/1/model.onnx": "a name starts with a letter or digit",
        "liveness/1/model.onnx": "is taken",
        "group/a/1/model.onnx": "expected is <model>/<version>/model.onnx",
        "net.onnx": "expected is <model>/<version>/model.onnx",
    }
    right = [
        "a/1/model.onnx", "a/1/beside.onnx", "a/.export-1/model.onnx", ".hidden/1/model.onnx", "a/1/deep/er/model.onnx",
        "a/README.md", "a/labels.txt", "lost+found/file", "notes/1764442800.txt",
    ]  # fmt: skip
    (tmp_path / "a/3").mkdir(parents=True)
    (tmp_path / "a/4").symlink_to("nowhere")
    for name in (*wrong, *right):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if not (tmp_path / name).is_symlink() and not (tmp_path / name).is_dir():
            (tmp_path / name).touch()
    (tmp_path / "a/2/model.onnx").unlink()
    (tmp_path / "a/2/model.onnx").symlink_to("nowhere")
    found = {str(path): reason for path, reason in misplaced(tmp_path)}
    assert list(found) == sorted(wrong, key=Path)
    assert [reason for name, reason in found.items() if wrong[name] not in reason] == []


TOO_LONG = "x" * 300
"""Of a link to this, even whether it is there cannot be said: asking is an OSError."""


@pytest.mark.parametrize("place", ["a/7", "a/x", "a/1/model.onnx", "a/7/model.onnx", "b", "c.onnx", "a/x/y", "a/x/y.onnx"])
def test_a_link_that_cannot_be_followed_hides_nothing_else(tmp_path: Path, place: str) -> None:
    for folder in ("a/1", "z/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to(TOO_LONG)
    assert (Path("z/1"), "there is no model.onnx in it") in misplaced(tmp_path)
    assert misplaced(tmp_path, "z") == [(Path("z/1"), "there is no model.onnx in it")]
    assert {"a", "z"} <= set(model_names(tmp_path))
    assert 1 in version_numbers(tmp_path, "a")


def test_nothing_outside_the_repository_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "outside" / "1").mkdir(parents=True)
    for name in ("../outside", "..", ".", "", "/", str(tmp_path / "outside")):
        assert misplaced(tmp_path / "models", name) == []


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
