"""What the graph of a model takes and gives: as its contract says, or, for a foreign file, as the graph itself does."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidModel, first_line
from service.model.contract import INPUT_NAME, LOGITS_NAME, METADATA_KEY, PROBABILITIES_NAME, Contract

log = logging.getLogger(__name__)

_PROBES = (1, 2, 3)
"""Items in the batches that a graph is tried on: one that answers two items rightly need not so answer one, or three."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16), "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8), "tensor(int8)": np.dtype(np.int8), "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int16)": np.dtype(np.int16), "tensor(uint32)": np.dtype(np.uint32), "tensor(int32)": np.dtype(np.int32),
    "tensor(uint64)": np.dtype(np.uint64), "tensor(int64)": np.dtype(np.int64), "tensor(bool)": np.dtype(np.bool_),
}  # fmt: skip


class Node(Protocol):
    """An input or output of a session; a dimension that is open is a name or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Session(Protocol):
    """What is needed of ONNX Runtime's InferenceSession."""

    def get_inputs(self) -> Sequence[Node]:
        """What it takes."""

    def get_outputs(self) -> Sequence[Node]:
        """What it gives."""

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """One array an output that is named."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a graph takes or gives: its name there, and dtype and shape of one item, without the batch dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one item."""
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def item(self) -> np.dtype[Any]:
        """An item as one element of an array: what `numpy.frombuffer` needs to give [n, *shape] at once."""
        return np.dtype((self.dtype, self.shape))

    @cached_property
    def is_picture(self) -> bool:
        """Whether an item can be a decoded picture: uint8[H,W,C]."""
        return self.dtype == np.uint8 and len(self.shape) == 3 and self.shape[2] in (1, 3, 4)

    def __str__(self) -> str:
        return f"{self.dtype} {' x '.join(map(str, self.shape))}"


class Graph(NamedTuple):
    """What a session takes and gives; `batch_items` is 0 if it takes batches of any number of items, else that number."""

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    batch_items: int = 0


def graph_of_contract(session: Session, contract: Contract) -> Graph:
    """Raises InvalidModel if the graph is not as the contract says."""
    inputs = {node.name: node for node in session.get_inputs()}
    if set(inputs) != {INPUT_NAME} or inputs[INPUT_NAME].type != "tensor(uint8)":
        raise InvalidModel(f"the graph must take one uint8 input named {INPUT_NAME!r}; it takes {sorted(inputs)}")
    shape = inputs[INPUT_NAME].shape
    if len(shape) != 4 or tuple(shape[1:]) != contract.input.shape:
        raise InvalidModel(f"the graph takes {shape}, the contract says [N, {', '.join(map(str, contract.input.shape))}]")
    if isinstance(shape[0], int):
        raise InvalidModel(f"the graph takes batches of exactly {shape[0]}; the first dimension must be dynamic")
    outputs = {node.name: (node.type, node.shape) for node in session.get_outputs()}
    for name in (PROBABILITIES_NAME, LOGITS_NAME):
        if name not in outputs:
            raise InvalidModel(f"the graph has no output named {name!r}; it gives {sorted(outputs)}")
        kind, given = outputs[name]
        if kind != "tensor(float)" or len(given) != 2:
            raise InvalidModel(f"the graph gives {name} as {kind} {given}; tensor(float) [N, K] is accepted")
        if given[1] != len(contract.labels):
            raise InvalidModel(f"the graph gives {given[1]} {name}, the contract has {len(contract.labels)} labels")
    scores = tuple(TensorSpec(name, np.dtype(np.float32), (len(contract.labels),)) for name in (PROBABILITIES_NAME, LOGITS_NAME))
    return Graph(TensorSpec(INPUT_NAME, np.dtype(np.uint8), contract.input.shape), scores)


def graph_of_foreign(session: Session, labels: int | None = None) -> Graph:
    """What a graph without a contract takes and gives. Outputs are found out by running it: graphs often leave shapes open.

    The scores are the first output that can be scores; of as many classes as there are `labels`, if they are given and one has.

    Raises:
        InvalidModel: it cannot be served by tensor.
    """
    inputs = session.get_inputs()
    names = {node.name for node in (*inputs, *session.get_outputs())}
    if {INPUT_NAME, PROBABILITIES_NAME, LOGITS_NAME} <= names:
        raise InvalidModel(f"no contract: the graph is one of Convoy's, but the file has no {METADATA_KEY!r} in its metadata")
    if len(inputs) != 1:
        raise InvalidModel(f"the graph takes {len(inputs)} inputs ({', '.join(node.name for node in inputs)}); one is accepted")
    [node] = inputs
    dtype = _DTYPES.get(node.type)
    if dtype is None or not (dtype.kind == "f" or dtype == np.uint8):
        raise InvalidModel(f"the graph takes {node.type} {node.name!r}; float16, float32, float64 and uint8 are accepted")
    shape = tuple(size for size in node.shape[1:] if isinstance(size, int) and size > 0)
    if len(node.shape) < 2 or len(shape) != len(node.shape) - 1:
        raise InvalidModel(f"the graph takes {node.shape}; every dimension but the first, of the batch, must be there and be fixed")
    batch_items = node.shape[0] if isinstance(node.shape[0], int) else 0
    taken = TensorSpec(node.name, dtype, shape)
    nodes = [node for node in session.get_outputs() if node.type in _DTYPES]
    left_out = ", ".join(f"{node.type} {node.name!r}" for node in session.get_outputs() if node.type not in _DTYPES)
    if not nodes:
        hint = " (a scikit-learn export with zipmap=False gives a tensor)" if "map(" in left_out else ""
        raise InvalidModel(f"the graph gives {left_out}; tensors of numbers are accepted{hint}")
    probes = [_try_outputs(session, nodes, taken, items) for items in ((batch_items,) if batch_items else _PROBES)]
    outputs = probes[0]
    for one, more in (pair for other in probes[1:] for pair in zip(outputs, other, strict=True)):
        if one != more:
            raise InvalidModel(f"the graph gives {one.name!r} as {one} for one item, and as {more} for several")
    scores = _scores(outputs, labels)
    if scores is None:
        given = ", ".join(f"{output.name} ({output})" for output in outputs)
        given += f", {left_out}" if left_out else ""
        raise InvalidModel(f"the graph is not a classifier's: it gives {given}; one output must be float, a number for each class")
    if left_out:
        log.warning("left out of what the model gives, because only tensors of numbers are served: %s", left_out)
    others = (output for output in outputs if output is not scores)
    return Graph(taken, (scores, *others), batch_items)


def _try_outputs(session: Session, nodes: Sequence[Node], taken: TensorSpec, items: int) -> list[TensorSpec]:
    try:
        arrays = session.run([node.name for node in nodes], {taken.name: np.zeros((items, *taken.shape), taken.dtype)})
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        raise InvalidModel(f"the graph fails on a batch of {items}, all zeros: {first_line(error)}") from None
    for node, array in zip(nodes, arrays, strict=True):
        if array.ndim < 1 or len(array) != items:
            raise InvalidModel(f"the graph gives {node.name!r} {array.shape} for a batch of {items}; one row an item is accepted")
    return [TensorSpec(node.name, array.dtype, array.shape[1:]) for node, array in zip(nodes, arrays, strict=True)]


def _scores(outputs: Sequence[TensorSpec], labels: int | None) -> TensorSpec | None:
    """The output that holds a number for each class; None if there is none."""
    found = [
        output for output in outputs if output.dtype.kind == "f" and 0 < math.prod(output.shape) == max(output.shape, default=1)
    ]
    return next((output for output in found if math.prod(output.shape) == labels), next(iter(found), None))


def mixes_items(session: Session, graph: Graph) -> bool:
    """Whether an item's scores change with what else is in its batch. Tried on random items; False if the graph refuses them."""
    random = np.random.default_rng(0)
    shape = (graph.batch_items or 2, *graph.input.shape)
    items = random.integers(0, 256, shape, np.uint8) if graph.input.dtype == np.uint8 else random.random(shape)
    items = items.astype(graph.input.dtype)
    other = items.copy()
    other[1:] = 0
    try:
        found = [session.run([graph.outputs[0].name], {graph.input.name: each})[0][0] for each in (items, other)]
    except Exception:  # noqa: BLE001 - such as an index that is none
        return False
    first, second = (scores.astype(np.float64) for scores in found)
    with np.errstate(all="ignore"):  # what is NaN or infinite says nothing
        # Wide enough for half precision, and for inputs quantised by the range of a whole batch.
        return bool((np.abs(first - second) > 0.02 * np.abs(first).max()).any())
