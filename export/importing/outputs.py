"""Which of a graph's outputs hold scores of classes. A graph may give features, indices and several heads beside them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.importing import onnx_graph
from service.errors import UserError


def find_scores(model: onnx.ModelProto, given: Mapping[str, NDArray[Any]], classes: int | None) -> tuple[str, str]:
    """The output that holds the scores, and why, in words; empty if it is the only one.

    Args:
        model: the graph.
        given: what each of its outputs gave for n pictures, [n, ...].
        classes: how many labels are known; None if none are.

    Raises:
        UserError: there is none, or there are several; the message names what `--output` can name.
    """
    for name in given:
        _refuse_best_only(model, name, given[name])
    found = [name for name, value in given.items() if is_scores(value)]
    if not found:
        shown = ", ".join(f"{name} {_shape(value)}" for name, value in given.items())
        raise UserError(f"no classifier: the graph gives {shown}; one row of numbers, one a class, is accepted")
    if len(found) == 1:
        return found[0], ""
    if len(fitting := [name for name in found if _units(given[name]) == classes]) == 1:
        return fitting[0], f"of {len(found)} outputs the one with {classes} numbers, as there are labels"
    rest = fitting or found
    for name in rest:  # logits, and beside them the probabilities that were made of them
        if len(rest) == 2 and all(name == other or _is_softmax_of(given[other], given[name]) for other in rest):
            return name, f"the other output, {next(other for other in rest if other != name)!r}, is its softmax"
    shown = ", ".join(f"{name} {_shape(given[name])}" for name in rest)
    raise UserError(f"several outputs may be the scores ({shown}): --output NAME says which; given twice, it makes two heads")


def check_output(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    """Raises UserError unless an output that the user named holds scores."""
    _refuse_best_only(model, name, value)
    if not is_scores(value):
        raise UserError(f"--output {name}: it gives {_shape(value)}; one row of numbers, one a class, is accepted")


def known_values(model: onnx.ModelProto) -> set[str]:
    """The values that `--output` can name: outputs, and what nodes compute inside the graph."""
    return {value.name for value in model.graph.output} | set(onnx_graph.producers(model))


def is_scores(value: NDArray[Any]) -> bool:
    """Whether it is one row of floats an item, [n,K] or with dimensions of 1."""
    shape = value.shape[1:]
    return value.dtype.kind == "f" and 0 < math.prod(shape) == max(shape, default=1)


def as_rows(value: NDArray[Any]) -> NDArray[Any]:
    """[n,K] of what `is_scores`."""
    return value.reshape(len(value), -1)


def _refuse_best_only(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    """Refuses outputs that hold only the best classes."""
    node = onnx_graph.deciding_node(model, name)
    if node is None or node.op_type not in ("TopK", "ArgMax"):
        return
    if node.op_type == "ArgMax" and value.dtype.kind != "f":
        others = [output.name for output in model.graph.output if output.name != name]
        if others:
            return  # beside it there may be scores
    what = f"the best {_units(value)}" if node.op_type == "TopK" else "the best"
    raise UserError(
        f"the output {name!r} holds {what} of the classes alone, and all scores are needed: --output {node.input[0]} takes "
        "the tensor before"
    )


def _is_softmax_of(probabilities: NDArray[Any], logits: NDArray[Any]) -> bool:
    if _units(probabilities) != _units(logits):
        return False
    rows = as_rows(logits).astype(np.float64)
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return bool(np.allclose(powers / powers.sum(axis=1, keepdims=True), as_rows(probabilities), atol=1e-3))


def _units(value: NDArray[Any]) -> int:
    return math.prod(value.shape[1:])


def _shape(value: NDArray[Any]) -> str:
    sides: Sequence[object] = ("N", *value.shape[1:])
    return f"[{','.join(map(str, sides))}]" if value.size else "(no tensor of numbers)"
