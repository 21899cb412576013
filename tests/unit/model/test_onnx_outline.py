"""The outline of an ONNX file: all but the data of its tensors, however large these are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from service.errors import InvalidModel
from service.model import input_size, onnx_outline
from service.model.contract import Contract
from service.model.input_size import input_item_bytes
from service.model.model_files import read_model
from service.model.onnx_messages import parse_model, tensors
from service.model.onnx_outline import read_outline
from tests.unit.model.graphs import FLOAT
from tests.unit.model.test_model_files import MODELS

RAW_DATA = 9


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def field(number: int, content: bytes, length: int | None = None) -> bytes:
    """A field of bytes; with `length`, only its beginning."""
    return varint(number << 3 | 2) + varint(len(content) if length is None else length) + content


def test_it_is_the_file_without_the_data_of_its_tensors(tmp_path: Path, model_file: Path) -> None:
    whole, outline = parse_model(model_file.read_bytes()), read_outline(model_file)
    assert outline.ByteSize() < 0.5 * model_file.stat().st_size
    assert Contract.of_model(outline) == Contract.of_model(whole)
    found = [(tensor.name, list(tensor.dims), tensor.data_type, where) for tensor, where in tensors(outline)]
    assert found == [(tensor.name, list(tensor.dims), tensor.data_type, where) for tensor, where in tensors(whole)]
    assert len(found) > 4
    assert any(tensor.raw_data for tensor, _ in tensors(whole))
    assert max(len(tensor.raw_data) for tensor, _ in tensors(outline)) <= 4096


@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_found_wherever_they_can_be(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_outline, "_WHOLE_BYTES", 8)  # every field is entered
    path = tmp_path / "model.onnx"
    onnx.save(MODELS[name](), path)
    found = [(tensor.name, where) for tensor, where in tensors(read_outline(path))]
    assert found == [(tensor.name, where) for tensor, where in tensors(parse_model(path.read_bytes()))]
    assert found


def test_gigabytes_of_weights_are_not_read(tmp_path: Path) -> None:
    """A sparse file of 8 GB: were it read, this would take that much memory, and a minute."""
    taken = helper.make_tensor_value_info("x", FLOAT, ["N", 3, 8, 8])
    small = numpy_helper.from_array(np.zeros(4, np.float32), "small")
    graph = helper.make_graph([], "g", [taken], [], [small]).SerializeToString()
    size = 8 * 10**9
    begins = field(8, b"large") + varint(RAW_DATA << 3 | 2) + varint(size)
    initializer = field(5, begins, len(begins) + size)
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.write(field(7, graph + initializer, len(graph) + len(initializer) + size))
        file.seek(size, os.SEEK_CUR)
        file.write(field(14, b""))
    script = (
        "import pathlib, resource, sys\n"
        "from service.model.input_size import input_item_bytes\n"
        "from service.model.model_files import weights_files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "print(input_item_bytes(path), weights_files(path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert output[:2] == [str(3 * 8 * 8 * 4), "()"]
    assert int(output[2]) < 20_000, "KiB"
    with pytest.raises(InvalidModel, match="more than 2 GiB"):
        read_model(path)


def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_outline, "MAX_FIELDS", 1000)
    monkeypatch.setattr(onnx_outline, "_MAX_KEPT_BYTES", 100_000)
    deep = b""
    for _ in range(150):
        deep = field(1, field(5, field(6, deep + bytes(5000))))
    path = tmp_path / "model.onnx"
    for content, problem in {
        b"\xff" * 20: "not an ONNX file",
        b"\x0b": "not an ONNX file",
        field(7, b"", 10): "ends in the middle",
        b"\x08\x01" * 1001: "more than 1,000 fields",
        field(14, field(2, bytes(200_000))): "MiB beside the data",
        field(7, deep): "nested too deep",
        bytes(100): "not an ONNX file",
    }.items():
        path.write_bytes(content)
        with pytest.raises(InvalidModel, match=problem):
            input_item_bytes(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidModel, match="not a regular file"):
        read_outline(path)
    with pytest.raises(OSError, match="No such file"):
        read_outline(tmp_path / "none.onnx")


@given(content=st.binary(max_size=60))
def test_any_bytes_have_an_outline_or_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        expected = parse_model(content)
    except InvalidModel:
        expected = None
    try:
        assert read_outline(path) == expected
    except InvalidModel:
        # Groups, which ONNX does not have and protobuf would read.
        assert expected is None or any(byte & 7 in (3, 4) for byte in content)


def test_what_would_take_long_to_add_up_has_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(input_size, "_MAX_CONTRACT_BYTES", 1000)
    for sides, expected in ((64, 4), (65, 0), (30_000, 0)):
        taken = helper.make_tensor_value_info("x", FLOAT, ["N", *[1] * sides])
        path.write_bytes(field(7, helper.make_graph([], "g", [taken], []).SerializeToString()))
        assert input_item_bytes(path) == expected
    taken = helper.make_tensor_value_info("x", FLOAT, [-1, 3, -1, -1])
    path.write_bytes(field(7, helper.make_graph([], "g", [taken], []).SerializeToString()))
    assert (input_item_bytes(path), input_item_bytes(path, (3, 8, 8))) == (0, 3 * 8 * 8 * 4)
    path.write_bytes(field(14, field(1, b"convoy.contract") + field(2, bytes(1001))))
    with pytest.raises(InvalidModel, match="its contract has more than 0 MiB"):
        input_item_bytes(path)
