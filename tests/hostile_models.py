"""ONNX files that are valid, and that no server should be harmed by. Small and quick to write.

Each takes `x`, float32[N,4], and claims to give scores, float32[N,3].
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.unit.model.graphs import FLOAT, PRODUCT, node, write

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


def _value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _write(path: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, Any] | None = None) -> None:
    write(path, nodes, {"scores": FLOAT}, constants)


def endless_loop(path: Path) -> None:
    """Computes for ever, in constant memory."""
    body = helper.make_graph(
        [node("Identity", "cond", "cond_out"), node("Identity", "state", "state_out")], "body",
        [_value("iteration", INT64, []), _value("cond", BOOL, []), _value("state", FLOAT, ["N", 3])],
        [_value("cond_out", BOOL, []), _value("state_out", FLOAT, ["N", 3])],
    )  # fmt: skip
    _write(path, [PRODUCT, node("Loop", " true product", "scores", body=body)], {"true": np.array(True)})
    _named_inputs(path, "Loop", ["", "true", "product"])


def _named_inputs(path: Path, operator: str, inputs: Sequence[str]) -> None:
    """Sets the inputs of the node of this operator: an empty name is one that is left out."""
    model = onnx.load(path)
    [found] = [each for each in model.graph.node if each.op_type == operator]
    del found.input[:]
    found.input.extend(inputs)
    onnx.save(model, path)


def growing_loop(path: Path) -> None:
    """Keeps 4 MiB more with each iteration, for ever."""
    body = helper.make_graph(
        [node("Identity", "cond", "cond_out"), node("Identity", "state", "state_out"), node("Expand", "iteration side", "kept")],
        "body",
        [_value("iteration", INT64, []), _value("cond", BOOL, []), _value("state", FLOAT, ["N", 3])],
        [_value("cond_out", BOOL, []), _value("state_out", FLOAT, ["N", 3]), _value("kept", INT64, [2**19])],
    )  # fmt: skip
    constants = {"true": np.array(True), "side": np.array([2**19])}
    _write(path, [PRODUCT, node("Loop", "true product", "scores all_kept", body=body)], constants)
    _named_inputs(path, "Loop", ["", "true", "product"])


def large_product(path: Path) -> None:
    """Needs 16 GiB, in one piece."""
    nodes = [
        PRODUCT,
        node("Expand", "one side", "large"),
        node("ReduceSum", "large", "sum", keepdims=0),
        node("Mul", "sum zero", "nothing"),
        node("Add", "product nothing", "scores"),
    ]
    _write(path, nodes, {"one": np.float32(1), "zero": np.float32(0), "side": np.array([2**32])})


def crash(path: Path) -> None:
    """Divides the least whole number by -1, for which the processor ends ONNX Runtime (SIGFPE)."""
    nodes = [
        PRODUCT,
        node("ReduceMax", "product", "largest", keepdims=0),
        node("Cast", "largest", "whole", to=INT64),
        node("Sub", "whole whole", "nothing"),  # so that it is divided when the graph runs
        node("Add", "nothing least", "dividend"),
        node("Div", "dividend minus_one", "quotient"),
        node("Cast", "quotient", "number", to=FLOAT),
        node("Add", "product number", "scores"),
    ]
    _write(path, nodes, {"least": np.array(-(2**63)), "minus_one": np.array(-1)})


def slow_constants(path: Path) -> None:
    """Products of constant matrices, which ONNX Runtime computes while it opens the file: minutes on a CPU."""
    side = 8192
    nodes = [
        node("Expand", "half side", "m0"),
        *(node("MatMul", f"m{index} m{index}", f"m{index + 1}") for index in range(40)),
        node("ReduceMean", "m40", "mean", keepdims=0),
        PRODUCT,
        node("Add", "product mean", "scores"),
    ]
    _write(path, nodes, {"half": np.float32(1 / side), "side": np.array([side, side])})


def deep_nesting(path: Path) -> None:
    """`If` in `If`, ten deep. ONNX Runtime 1.26 takes twice the time for each of them; the newest as deep as protobuf goes."""
    inner = helper.make_graph([node("Identity", "product", "s0")], "g0", [], [_value("s0", FLOAT, ["N", 3])])
    for depth in range(1, 11):
        other = helper.make_graph([node("Identity", "product", "e")], f"e{depth}", [], [_value("e", FLOAT, ["N", 3])])
        branch = helper.make_node("If", ["true"], [f"s{depth}"], then_branch=inner, else_branch=other)
        inner = helper.make_graph([branch], f"g{depth}", [], [_value(f"s{depth}", FLOAT, ["N", 3])])
    outermost = helper.make_node("If", ["true"], ["scores"], then_branch=inner, else_branch=inner)
    _write(path, [PRODUCT, outermost], {"true": np.array(True)})


def giant_input(path: Path) -> None:
    """Takes items of 4 TiB."""
    _write(path, [node("ReduceMean", "x", "scores", keepdims=1)])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40
    onnx.save(model, path)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a loop without an end": endless_loop,
    "a loop that grows": growing_loop,
    "a large product": large_product,
    "a crash": crash,
    "slow constants": slow_constants,
    "a giant input": giant_input,
}
"""What is refused, each by what is wrong with it."""
