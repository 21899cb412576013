"""A model's signature: the tensors that its graph takes and gives.

A contract states it, and the graph is checked against that. Without a contract it is inferred: the graph is run, because graphs
often leave the shapes of outputs open.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import MAX_REASON_CHARACTERS, InvalidModel, first_line
from service.model.contract import INPUT_NAME, LOGITS_NAME, METADATA_KEY, PROBABILITIES_NAME, Contract

log = logging.getLogger(__name__)

_PROBE_BATCHES = (1, 2, 3)
"""Items in the batches that a graph is tried on: one that works for two items may fail for one, or for three."""

_BATCH_EFFECT = 0.02
"""Share of the largest score. Half precision, and inputs quantised by the range of a whole batch, stay below it."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16), "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8), "tensor(int8)": np.dtype(np.int8), "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int16)": np.dtype(np.int16), "tensor(uint32)": np.dtype(np.uint32), "tensor(int32)": np.dtype(np.int32),
    "tensor(uint64)": np.dtype(np.uint64), "tensor(int64)": np.dtype(np.int64), "tensor(bool)": np.dtype(np.bool_),
}  # fmt: skip


_ELEMENTS = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class Node(Protocol):
    """An input or output of a session. In `shape`, a dynamic dimension is a name or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Session(Protocol):
    """The part of ONNX Runtime's InferenceSession that is used here."""

    def get_inputs(self) -> Sequence[Node]:
        """The inputs."""

    def get_outputs(self) -> Sequence[Node]:
        """The outputs."""

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """The outputs of these names, in their order."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, and dtype and shape of one item, without the batch dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one item."""
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def item_dtype(self) -> np.dtype[Any]:
        """One item as a single array element: `numpy.frombuffer` with it gives [n, *shape]."""
        return np.dtype((self.dtype, self.shape))

    @cached_property
    def is_image(self) -> bool:
        """Whether an item can be a decoded image, uint8[H,W,C]."""
        return self.dtype == np.uint8 and len(self.shape) == 3 and self.shape[2] in (1, 3, 4)

    def __str__(self) -> str:
        return f"{self.dtype} {' x '.join(map(str, self.shape))}"


class Signature(NamedTuple):
    """The input, and the outputs with the scores first. `fixed_batch_items` is 0 if a batch may have any number of items."""

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    fixed_batch_items: int = 0


def contract_signature(session: Session, contract: Contract) -> Signature:
    """The signature that the contract states. Raises InvalidModel if the graph has another."""
    inputs = {node.name: node for node in session.get_inputs()}
    dtype, element = np.dtype(contract.input.dtype), _ELEMENTS[contract.input.dtype]
    if set(inputs) != {INPUT_NAME} or inputs[INPUT_NAME].type != element:
        takes = ", ".join(f"{node.type} {name!r}" for name, node in sorted(inputs.items()))
        raise InvalidModel(f"the graph must take one {dtype} input named {INPUT_NAME!r}; it takes {takes}")
    shape = inputs[INPUT_NAME].shape
    if len(shape) != 4 or tuple(shape[1:]) != contract.input.shape:
        raise InvalidModel(f"the graph takes {shape}, the contract says [N, {', '.join(map(str, contract.input.shape))}]")
    if isinstance(shape[0], int) and shape[0] != contract.batch_items:
        wanted = "the first dimension must be dynamic"
        if contract.batch_items:
            wanted = f"the contract says {contract.batch_items}"
        raise InvalidModel(f"the graph takes batches of exactly {shape[0]}; {wanted}")
    outputs = {node.name: (node.type, node.shape) for node in session.get_outputs()}
    first, *others = contract.heads
    labels = {first.output: len(first.labels), LOGITS_NAME: len(first.labels)} | {head.output: len(head.labels) for head in others}
    for name, classes in labels.items():
        if name not in outputs:
            raise InvalidModel(f"the graph has no output named {name!r}; it gives {sorted(outputs)}")
        kind, given = outputs[name]
        if kind != "tensor(float)" or len(given) != 2:
            raise InvalidModel(f"the graph gives {name} as {kind} {given}; tensor(float) [N, K] is accepted")
        if given[1] != classes:
            raise InvalidModel(f"the graph gives {given[1]} {name}, the contract has {classes} labels")
    scores = tuple(TensorSpec(name, np.dtype(np.float32), (classes,)) for name, classes in labels.items())
    return Signature(TensorSpec(INPUT_NAME, dtype, contract.input.shape), scores, contract.batch_items)


def infer_signature(session: Session, classes: int | None = None, name: str = "model") -> Signature:
    """The signature of a model without a contract, found by running it.

    The scores are the first float output with one number a class; of several, one with `classes` numbers is preferred.
    `name` is the model's name in log lines.

    Raises:
        InvalidModel: the model cannot be served by tensor.
    """
    taken, fixed_batch_items = _infer_input(session)
    nodes = [node for node in session.get_outputs() if node.type in _DTYPES]
    left_out = ", ".join(f"{node.type} {node.name!r}" for node in session.get_outputs() if node.type not in _DTYPES)
    if not nodes:
        hint = " (a scikit-learn export with zipmap=False gives a tensor)" if "map(" in left_out else ""
        raise InvalidModel(f"the graph gives {left_out}; tensors of numbers are accepted{hint}")
    batches = (fixed_batch_items,) if fixed_batch_items else _PROBE_BATCHES
    outputs, *others = (_run_outputs(session, nodes, taken, items) for items in batches)
    for one, more in (pair for other in others for pair in zip(outputs, other, strict=True)):
        if one != more:
            raise InvalidModel(f"the graph gives {one.name!r} as {one} for one item, and as {more} for several")
    scores = _scores(outputs, classes)
    if scores is None:
        given = ", ".join(f"{output.name} ({output})" for output in outputs)
        given += f", {left_out}" if left_out else ""
        raise InvalidModel(f"not a classifier: outputs {given}; expected one float output with one value per class")
    if left_out:
        log.warning("%s: outputs that are not tensors of numbers are not served: %s", name, left_out[:MAX_REASON_CHARACTERS])
    return Signature(taken, (scores, *(output for output in outputs if output is not scores)), fixed_batch_items)


def _infer_input(session: Session) -> tuple[TensorSpec, int]:
    """The input, and the batch size if it is fixed, else 0."""
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
    return TensorSpec(node.name, dtype, shape), node.shape[0] if isinstance(node.shape[0], int) else 0


def _run_outputs(session: Session, nodes: Sequence[Node], taken: TensorSpec, items: int) -> list[TensorSpec]:
    try:
        arrays = session.run([node.name for node in nodes], {taken.name: np.zeros((items, *taken.shape), taken.dtype)})
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        raise InvalidModel(f"the graph fails on a batch of {items}, all zeros: {first_line(error)}") from None
    for node, array in zip(nodes, arrays, strict=True):
        if array.ndim < 1 or len(array) != items:
            raise InvalidModel(f"the graph gives {node.name!r} {array.shape} for a batch of {items}; one row an item is accepted")
    return [TensorSpec(node.name, array.dtype, array.shape[1:]) for node, array in zip(nodes, arrays, strict=True)]


def _scores(outputs: Sequence[TensorSpec], classes: int | None) -> TensorSpec | None:
    """The output with one number a class; None if there is none."""
    found = [
        output for output in outputs if output.dtype.kind == "f" and 0 < math.prod(output.shape) == max(output.shape, default=1)
    ]
    return next((output for output in found if math.prod(output.shape) == classes), next(iter(found), None))


def depends_on_batch(session: Session, signature: Signature) -> bool:
    """Whether an item's scores change with the rest of its batch. Tried on random items; False if the graph rejects them."""
    random = np.random.default_rng(0)
    shape = (signature.fixed_batch_items or 2, *signature.input.shape)
    items = random.integers(0, 256, shape, np.uint8) if signature.input.dtype == np.uint8 else random.random(shape)
    items = items.astype(signature.input.dtype)
    changed = items.copy()
    changed[1:] = 0
    try:
        found = [session.run([signature.outputs[0].name], {signature.input.name: batch})[0][0] for batch in (items, changed)]
    except Exception:  # noqa: BLE001 - such as an index out of range
        return False
    first, second = (scores.astype(np.float64) for scores in found)
    with np.errstate(all="ignore"):  # NaN and infinity compare as unchanged
        return bool((np.abs(first - second) > _BATCH_EFFECT * np.abs(first).max()).any())
