"""A model's signature: the tensors that its graph takes and gives.

A contract states it, and the graph is checked against that. Without a contract it is inferred (`inferred_signature.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidModel
from service.model.contract import (
    ACTIVATIONS_NAME,
    CLASS_WEIGHTS_NAME,
    EMBEDDING_NAME,
    INPUT_NAME,
    LOGITS_NAME,
    Contract,
)
from service.model.png import write_png

DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16), "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8), "tensor(int8)": np.dtype(np.int8), "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int16)": np.dtype(np.int16), "tensor(uint32)": np.dtype(np.uint32), "tensor(int32)": np.dtype(np.int32),
    "tensor(uint64)": np.dtype(np.uint64), "tensor(int64)": np.dtype(np.int64), "tensor(bool)": np.dtype(np.bool_),
}  # fmt: skip


OPEN = (0,)
"""The shape of a picture file: any number of bytes."""

_SAMPLE_SHAPE = (480, 640, 3)
"""Of the picture by which it is measured how long an item takes."""

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
    def is_picture_file(self) -> bool:
        """Whether an item is the bytes of a picture file, which the graph decodes. An array of n items is object[n], of bytes."""
        return self.dtype == np.uint8 and self.shape == OPEN

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one item; 0 for picture files, which have any number."""
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def item_dtype(self) -> np.dtype[Any]:
        """One item as a single array element: `numpy.frombuffer` with it gives [n, *shape]."""
        return np.dtype((self.dtype, self.shape))

    @cached_property
    def is_image(self) -> bool:
        """Whether an item can be a decoded image, uint8[H,W,C]."""
        return self.dtype == np.uint8 and len(self.shape) == 3 and self.shape[2] in (1, 3, 4)

    def zeros(self, items: int) -> NDArray[Any]:
        """A batch of zeros, [n, *shape]; of picture files, one and the same black picture."""
        if not self.is_picture_file:
            return np.zeros((items, *self.shape), self.dtype)
        return picture_files([write_png(np.zeros(_SAMPLE_SHAPE, np.uint8))] * items)

    def __str__(self) -> str:
        if self.is_picture_file:
            return "the bytes of a picture file"
        return f"{self.dtype} {' x '.join(map(str, self.shape))}"


def picture_files(files: Sequence[bytes]) -> NDArray[Any]:
    """object[n] of n picture files: the batch of a model that takes them."""
    found = np.empty(len(files), object)
    found[:] = files
    return found


class Signature(NamedTuple):
    """The input, and the outputs with the scores first. `fixed_batch_items` is 0 if a batch may have any number of items.

    `hidden` are outputs, one row an item, that are computed for those who ask for them; `has_class_weights` says that the graph
    also gives the weights of its last layer.
    """

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    fixed_batch_items: int = 0
    hidden: tuple[TensorSpec, ...] = ()
    has_class_weights: bool = False


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
    hidden, has_class_weights = _hidden_outputs(outputs, contract)
    taken = TensorSpec(INPUT_NAME, dtype, contract.input.shape)
    return Signature(taken, scores, contract.batch_items, hidden, has_class_weights)


def _hidden_outputs(
    outputs: Mapping[str, tuple[str, Sequence[int | str | None]]], contract: Contract
) -> tuple[tuple[TensorSpec, ...], bool]:
    """The hidden outputs that the contract states, and whether there are class weights. Raises InvalidModel if some are missing."""
    shapes: dict[str, tuple[int, ...]] = {}
    if contract.activations:
        shapes[ACTIVATIONS_NAME] = contract.activations
    if contract.embedding:
        shapes[EMBEDDING_NAME] = (contract.embedding,)
    for name, shape in shapes.items():
        kind, given = outputs.get(name, ("nothing", []))
        if kind != "tensor(float)" or tuple(given[1:]) != shape:
            raise InvalidModel(
                f"the contract says that the graph gives {name} as tensor(float) [N, {_listed(shape)}]; it gives {given}"
            )
    classes = len(contract.labels)
    if contract.activations and CLASS_WEIGHTS_NAME in outputs:
        kind, given = outputs[CLASS_WEIGHTS_NAME]
        wanted = (classes, contract.activations[0])
        if kind != "tensor(float)" or tuple(given) != wanted:
            raise InvalidModel(
                f"the graph gives {CLASS_WEIGHTS_NAME} as {kind} {given}; tensor(float) [{_listed(wanted)}] is needed"
            )
    elif contract.activations and contract.activations[0] != classes:
        raise InvalidModel(
            f"the graph gives no {CLASS_WEIGHTS_NAME}, and {contract.activations[0]} activations for {classes} labels"
        )
    specs = tuple(TensorSpec(name, np.dtype(np.float32), shape) for name, shape in shapes.items())
    return specs, bool(contract.activations) and CLASS_WEIGHTS_NAME in outputs


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
