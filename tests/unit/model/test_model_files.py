"""Weights in files beside the ONNX file: found wherever a graph can hold tensors, read whole, refused in one line."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.errors import FilesChanged, InvalidModel, LoadError, PassingFailure
from service.model import model_files, onnx_messages
from service.model.loading import load_model
from service.model.model_files import read_model, weights_files
from service.model.onnx_outline import read_outline
from tests.unit.model.graphs import FLOAT, PRODUCT, node, write

LARGE = np.random.default_rng(1).normal(size=(4, 2000)).astype(np.float32)
ITEMS = np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32)
WIDE = helper.make_node("MatMul", ["x", "large"], ["product"])
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]


def model(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], **parts: Any) -> onnx.ModelProto:
    """A graph from `x`, float32[N,4], to `product`."""
    taken, given = helper.make_tensor_value_info("x", FLOAT, ["N", 4]), helper.make_tensor_value_info("product", FLOAT, None)
    functions = parts.pop("functions", [])
    graph = helper.make_graph(nodes, "odd", [taken], [given], initializers, **parts)
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10, functions=functions)


def in_subgraphs() -> onnx.ModelProto:
    body = helper.make_graph([WIDE], "body", [], [helper.make_tensor_value_info("product", FLOAT, None)], [tensor("large", LARGE)])
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0), node("Constant", "", "zero", value=tensor("", np.zeros((), np.float32))),
        node("Less", "sum zero", "low"), node("If", "low", "product", then_branch=body, else_branch=body),
    ]  # fmt: skip
    return model(nodes, [])


def in_a_function() -> onnx.ModelProto:
    constant = node("Constant", "", "large", value=tensor("", LARGE))
    function = helper.make_function("own", "Own", ["x"], ["product"], [constant, WIDE], OPSETS[:1])
    return model([node("Own", "x", "product", domain="own")], [], functions=[function])


def sparse() -> onnx.ModelProto:
    values, places = tensor("large", np.arange(2000, dtype=np.float32)), tensor("places", np.arange(0, 8000, 4))
    return model([WIDE], [], sparse_initializer=[helper.make_sparse_tensor(values, places, [4, 2000])])


def tensor(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "an initializer": lambda: model([WIDE], [tensor("large", LARGE)]),
    "a shape": lambda: model([node("Reshape", "x shape", "product")], [tensor("shape", np.array([-1, 4]))]),
    "subgraphs": in_subgraphs,
    "a constant": lambda: model([node("Constant", "", "large", value=tensor("", LARGE)), WIDE], []),
    "a function": in_a_function,
    "a sparse tensor": sparse,
}


def all_tensors(message: Any) -> Iterator[onnx.TensorProto]:
    for field, value in message.ListFields():
        for part in value if field.is_repeated else (value,):
            if isinstance(part, onnx.TensorProto):
                yield part
            elif hasattr(part, "ListFields"):
                yield from all_tensors(part)


def move_weights(source: onnx.ModelProto, path: Path, name: str = "weights.bin", **left_out: str) -> None:
    """Saves a model with the data of all its tensors in one file, one after the other."""
    changed = onnx.ModelProto()
    changed.CopyFrom(source)
    data = b"unused"
    for each in all_tensors(changed):
        given = {"location": name, "offset": len(data), "length": len(each.raw_data)}
        for key in given.keys() - left_out.keys():
            each.external_data.add(key=key, value=str(given[key]))
        data += each.raw_data
        each.ClearField("raw_data")
        each.data_location = TensorProto.EXTERNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(changed, path)
    (path.parent / name).parent.mkdir(exist_ok=True)
    (path.parent / name).write_bytes(data)


@pytest.mark.parametrize("left_out", [{}, {"length": ""}])
@pytest.mark.parametrize("name", ["weights.bin", "./weights.bin", "deeper/weights.bin", "größe"])
@pytest.mark.parametrize("kind", MODELS)
def test_weights_in_a_file_are_found_wherever_a_graph_can_hold_tensors(
    kind: str, name: str, left_out: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(bytes(100_000))  # ONNX Runtime by itself would take this one
    inside, outside = tmp_path / "inside" / "model.onnx", tmp_path / "outside" / "model.onnx"
    inside.parent.mkdir()
    onnx.save(MODELS[kind](), inside)
    move_weights(MODELS[kind](), outside, name, **left_out)
    found, expected = (load_model(path, "cpu", 1).predict(ITEMS)[0] for path in (outside, inside))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(expected).max() > 0


def two_files(path: Path) -> Path:
    """A model of two matrices, each in a file of its own."""
    both = model([WIDE], [tensor("large", LARGE)])
    both.graph.node.append(helper.make_node("MatMul", ["product", "second"], ["scores"]))
    both.graph.output[0].name = "scores"
    both.graph.initializer.append(tensor("second", np.ones((2000, 3), np.float32)))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(both, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    return path


def test_the_digest_is_of_the_model_file_and_then_of_its_weights_by_name(tmp_path: Path) -> None:
    path = two_files(tmp_path / "model.onnx")
    files = [path, *sorted(set(tmp_path.iterdir()) - {path})]
    assert [file.name for file in files] == ["model.onnx", "large", "second"]
    assert weights_files(path) == tuple(files[1:])
    (tmp_path / "README.md").write_text("not of the model")
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert read_model(path).digest == load_model(path, "cpu", 1).digest == expected
    alone = write(tmp_path / "alone.onnx", [PRODUCT], {"product": FLOAT})
    assert read_model(alone).digest == hashlib.sha256(alone.read_bytes()).hexdigest()
    assert read_model(alone).graph == alone.read_bytes(), "as it is"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"_MAX_FILES": 1}, "its weights are in more than 1 files"),
        ({"_MAX_NAME_BYTES": 5}, "the name of a weights file has more than 5 bytes"),
        ({"_MAX_DIMENSIONS": 1}, "tensor 'large' has more than 1 dimensions"),
    ],
)
def test_what_would_take_long_to_look_at_is_refused(
    changed: dict[str, int], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = two_files(tmp_path / "model.onnx")
    for name, value in changed.items():
        monkeypatch.setattr(model_files, name, value)
    assert weights_files(path) == ()
    with pytest.raises(InvalidModel, match=problem):
        read_model(path)


def test_a_file_of_which_protobuf_would_make_too_much_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two_files(tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_messages, "MAX_FIELDS", 20)
    with pytest.raises(InvalidModel, match="more than 20 fields"):
        read_model(path)
    with pytest.raises(InvalidModel, match="more than 20 fields"):
        read_outline(path)
    assert weights_files(path) == ()


@pytest.mark.parametrize(
    ("number", "refusal"), [(errno.EMFILE, PassingFailure), (errno.EIO, PassingFailure), (errno.EACCES, InvalidModel)]
)
def test_that_it_cannot_be_read_for_now_is_no_fault_of_the_file(
    number: int, refusal: type[LoadError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    path = write(tmp_path / "model.onnx", [PRODUCT], {"product": FLOAT})
    monkeypatch.setattr(model_files, "read_file", fail)
    with pytest.raises(refusal, match=f"cannot read the model file: {os.strerror(number)}") as refused:
        read_model(path)
    assert type(refused.value) is refusal


def place(path: Path, **values: str) -> None:
    """Changes where the graph looks for its first tensor."""
    changed = onnx.load(path, load_external_data=False)
    for entry in changed.graph.initializer[0].external_data:
        entry.value = values.get(entry.key, entry.value)
    onnx.save(changed, path)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Puts something else in the place of a file of weights."""
    (path.parent / "large").unlink()
    make(path.parent / "large")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: (path.parent / "large").unlink(), "weights file 'large' is missing"),
    "short": (lambda path: os.truncate(path.parent / "large", 31999), "'large' has 31999 bytes, the graph needs 32000"),
    "a pipe": (lambda path: replace(path, os.mkfifo), "'large' is not a regular file"),
    "a folder": (lambda path: replace(path, os.mkdir), "'large' is not a regular file"),
    "above": (lambda path: place(path, location="../large"), "weights file '../large' is outside the model's folder"),
    "above, in the end": (lambda path: place(path, location="deeper/../../large"), "weights file '../large' is outside"),
    "absolute": (lambda path: place(path, location="/etc/passwd"), "weights file '/etc/passwd' is outside the model's folder"),
    "the folder": (lambda path: place(path, location="."), "weights file '.' is outside the model's folder"),
    "no name": (lambda path: place(path, location=""), "weights file '.' is outside the model's folder"),
    "a name with zero": (lambda path: place(path, location="a\0b"), "is outside the model's folder"),
    "memory": (lambda path: place(path, location="*/_ORT_MEM_ADDR_/*"), r"weights file '\*/_ORT_MEM_ADDR_/\*' is missing"),
    "too long a name": (lambda path: place(path, location="x" * 300), "cannot read weights file 'x.*File name too long"),
    "a link to a secret": (
        lambda path: replace(path, lambda file: file.symlink_to("/etc/passwd")),
        "weights file 'large' is a link to a place outside the repository"),
    "a link to nothing": (lambda path: replace(path, lambda file: file.symlink_to("no")), "weights file 'large' is missing"),
    "offset": (lambda path: place(path, offset="x"), "tensor 'large': location, offset and length of its data are not a text"),
    "negative": (lambda path: place(path, offset="-8"), "tensor 'large': offset or size of its data are negative"),
    "beyond": (lambda path: place(path, offset="8"), "'large' has 32000 bytes, the graph needs 32008"),
    "too much": (lambda path: place(path, length="99999999999999999999"), "the graph needs 99999999999999999999"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_weights_that_cannot_be_had_are_refused_by_name(how: str, tmp_path: Path) -> None:
    spoil, message = SPOILED[how]
    path = two_files(tmp_path / "models" / "big" / "1" / "model.onnx")
    spoil(path)
    with pytest.raises(InvalidModel, match=message):
        load_model(path, "cpu", 1)


def test_links_inside_the_repository_are_followed(tmp_path: Path) -> None:
    """As in a mounted volume of Kubernetes, and in a repository that keeps files once or has a model elsewhere."""
    mounted = tmp_path / "models" / "mounted" / "1"
    two_files(mounted / "..2026_01" / "model.onnx")
    (mounted / "..data").symlink_to("..2026_01")
    for name in ("model.onnx", "large", "second"):
        (mounted / name).symlink_to(f"..data/{name}")
    shared = two_files(tmp_path / "models" / "shared" / "2" / "model.onnx")
    (tmp_path / "models" / "blobs").mkdir()
    (shared.parent / "large").rename(tmp_path / "models" / "blobs" / "1234")
    (shared.parent / "large").symlink_to("../../blobs/1234")
    elsewhere = two_files(tmp_path / "elsewhere" / "model" / "3" / "model.onnx")
    (elsewhere.parent / "large").rename(elsewhere.parent.parent / "large")
    (elsewhere.parent / "large").symlink_to("../large")
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere" / "model")
    expected = ITEMS @ LARGE @ np.ones((2000, 3), np.float32)
    for path in (mounted / "model.onnx", shared, tmp_path / "models" / "linked" / "3" / "model.onnx"):
        np.testing.assert_allclose(load_model(path, "cpu", 1).predict(ITEMS)[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["model.onnx", "large", "second"])
def test_files_that_change_while_they_are_read_are_not_used(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two_files(tmp_path / "model.onnx")
    read = model_files._read

    def read_and_write(file: Path, what: str, folders: Sequence[Path] = (), max_bytes: int | None = None) -> bytes:
        content = read(file, what, folders, max_bytes)
        if file.name == name:
            with file.open("r+b") as opened:
                opened.write(content[:10])
            os.utime(file, ns=(1, 1))
        return content

    monkeypatch.setattr(model_files, "_read", read_and_write)
    with pytest.raises(FilesChanged, match="its files changed while they were read"):
        read_model(path)
