"""References of `convoy import` that are broken, or of graphs that take rows of numbers."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.importing.reference import read_reference
from service.errors import UserError
from tests.unit.importing import foreign_graphs as graphs
from tests.unit.importing.test_import_model import load, run

PICTURES = np.random.default_rng(0).integers(0, 256, (9, 4, 6, 3), np.uint8)
NAMED = {f"picture_{at}": picture for at, picture in enumerate(PICTURES)}


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_a_damaged_reference_is_refused_in_one_line(at: float, tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, pixels=PICTURES, **NAMED)
    damaged = bytearray(path.read_bytes())
    start = int(at * len(damaged))
    damaged[start : start + 64] = b"\xff" * 64
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"--reference .*accepted is a file of numpy.savez"):
        read_reference(path)


@pytest.mark.parametrize("name", ["pixels", "inputs", "outputs"])
def test_a_reference_of_words_is_refused(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "words.npz", **{**NAMED, name: np.full((9, 5), "0.5")})
    with pytest.raises(UserError, match=f"{name} is <U3; numbers are accepted"):
        read_reference(tmp_path / "words.npz")


def test_rows_of_numbers_are_proved_by_rows_and_outputs_in_batches(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["scores"], axis=1)]
    weight = graphs.weights(72, 5)
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 72])
    source = graphs.save(tmp_path / "rows.onnx", nodes, taken, [("scores", TensorProto.FLOAT, ["n", 5])], {"w": weight})
    rows = PICTURES.reshape(9, -1).astype(np.float32) / 255
    powers = np.exp(rows @ weight)
    np.savez(tmp_path / "rows.npz", **NAMED, inputs=rows, outputs=powers / powers.sum(axis=1, keepdims=True))
    arguments = ("--scale", 255, "--input-shape", "4,6", "--reference", tmp_path / "rows.npz")
    printed = run(source, tmp_path / "models", *arguments)
    assert "the network's numbers are those of rows.npz to" in printed
    assert "outputs gate: largest difference from rows.npz" in printed
    np.savez(tmp_path / "rows.npz", **NAMED, inputs=rows[:, ::-1])
    with pytest.raises(UserError, match="pixels gate: the network's numbers differ"):
        run(source, tmp_path / "models", *arguments)
    np.savez(tmp_path / "rows.npz", **NAMED, inputs=rows.reshape(9, 4, 6, 3))
    with pytest.raises(UserError, match=r"has inputs \(9, 4, 6, 3\), the graph takes \(9, 72\)"):
        run(source, tmp_path / "models", *arguments)
    assert load(tmp_path / "models").labels
