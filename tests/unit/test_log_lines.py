"""Log lines that are about one model name it, and its version where there is one."""

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import service
from service.engine.instances import load_instances
from service.model.loading import load_model
from service.policy import Policy

PACKAGES = ("engine", "model", "triton")

NOT_OF_ONE_MODEL = {
    "ONNX Runtime has no arena that models can share: %s",
    "a picture of %d bytes is refused: decoding it takes longer than %g s",
    "a picture of %d bytes is refused: the process that decoded it has died",
    "no process to decode pictures can be started: %s",
    "no model is served yet; watching for %s",
    "request",
    "the process in which models are tried cannot be started: %s",
    "the process in which models are tried does not answer; it is replaced",
    "the process in which models are tried cannot be reached: %s",
}
NAMED_OTHERWISE = {
    "no thread %s can be started: %s": "batcher-MODEL-N",
    "still loading after %g s, not waited for any longer: %s": "all that are late",
}
OF_A_MODEL = ("model %s version %d", "%s: ", "%s failed", "repository: ")
"""What `%s` is: `logged_version`, or the path of a file that is in nobody's repository."""
OF_ALL_VERSIONS = {
    "model %s has to wait: %s", "model %s: a task on it failed", "model %s is not served anew: %s", "model %s: %s: not used: %s",
}  # fmt: skip


def log_calls() -> list[tuple[str, str]]:
    """File and message of each log line of the packages that load and run models."""
    found = []
    for package in PACKAGES:
        for path in sorted((Path(service.__file__).parent / package).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    called = node.func.value
                    if isinstance(called, ast.Name) and called.id == "log" and isinstance(node.args[0], ast.Constant):
                        found.append((path.name, str(node.args[0].value)))
    return found


def test_each_line_begins_with_the_model_and_version() -> None:
    calls = log_calls()
    assert len(calls) > 30
    known = NOT_OF_ONE_MODEL | NAMED_OTHERWISE.keys() | OF_ALL_VERSIONS
    assert [call for call in calls if call[1] not in known and not call[1].startswith(OF_A_MODEL)] == []
    assert known <= {message for _, message in calls}, "none of these is outdated"


@pytest.fixture
def picky(tmp_path: Path) -> Path:
    """A classifier that ONNX Runtime has things to say of: scores that depend on the batch, and batches of three that fail."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["less"]),
        helper.make_node("Shape", ["less"], ["shape"]),
        helper.make_node("Gather", ["limits", "shape"], ["never"]),  # of a first dimension above 3: out of bounds
        helper.make_node("ReduceSum", ["never"], ["sum"], keepdims=0),
        helper.make_node("Add", ["less", "sum"], ["y"]),
    ]
    limits = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "limits")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    values[1].type.tensor_type.shape.dim[1].dim_value = 7  # which is not so: a warning of ONNX Runtime's
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [limits, onnx.numpy_helper.from_array(np.ones(2), "unused")])
    path = tmp_path / "picky" / "2" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_model_of_a_repository_is_named_and_any_other_by_its_file(
    picky: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    load_instances(picky, None, Policy(max_batch_size=8), "cpu", 1)
    assert {record.message.partition(": ")[0] for record in caplog.records} == {"model picky version 2"}
    assert "batches of 4 items failed" in caplog.text
    caplog.clear()
    load_model(picky, "cpu", 1)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.message.startswith(f"{picky}: an item's scores depend on its batch")
    assert capfd.readouterr().err == "", "ONNX Runtime, which names no model, says nothing by itself"
