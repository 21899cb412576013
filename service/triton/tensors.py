"""The tensors that a `config.pbtxt` lists, against those of the graph: checked, and brought from one shape to the other.

Triton's clients send and get the shapes of `dims`; the graph has those of `reshape` where there is one. If max_batch_size is above
0, both leave the batch dimension out. If it is 0 they are whole shapes. If the graph's begins with -1, that is a batch dimension
all the same. Else a request is one tensor of exactly these dimensions, which the graph takes as one item, or as many as its first
dimension says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidModel
from service.model.signature import TensorSpec
from service.triton.model_config import ConfiguredTensor, Shape

DTYPES: dict[str, np.dtype[Any]] = {
    "TYPE_BOOL": np.dtype(np.bool_), "TYPE_UINT8": np.dtype(np.uint8), "TYPE_UINT16": np.dtype(np.uint16),
    "TYPE_UINT32": np.dtype(np.uint32), "TYPE_UINT64": np.dtype(np.uint64), "TYPE_INT8": np.dtype(np.int8),
    "TYPE_INT16": np.dtype(np.int16), "TYPE_INT32": np.dtype(np.int32), "TYPE_INT64": np.dtype(np.int64),
    "TYPE_FP16": np.dtype(np.float16), "TYPE_FP32": np.dtype(np.float32), "TYPE_FP64": np.dtype(np.float64),
}  # fmt: skip

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorForms:
    """The shapes that clients send and get, for a model whose graph has others.

    Attributes:
        items: 0 if clients' tensors have a batch dimension; else how many items of the graph such a tensor is.
        input: the input's shape: of one item or, without a batch dimension, of the whole.
        outputs: the shapes of the outputs that are offered, likewise, by name.
    """

    items: int
    input: Shape
    outputs: Mapping[str, Shape]

    def fits_input(self, shape: Sequence[int]) -> bool:
        """Whether a client's tensor has the shape to be `to_items`."""
        return tuple(shape if self.items else shape[1:]) == self.input

    def to_items(self, tensor: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
        """[n, *spec.shape] of a client's tensor that `fits_input`."""
        return tensor.reshape(self.items or len(tensor), *spec.shape)

    def from_items(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs that are offered, as clients get them."""
        return {
            name: outputs[name].reshape(shape) if self.items else outputs[name].reshape(len(outputs[name]), *shape)
            for name, shape in self.outputs.items()
        }

    def shape(self, item: Shape) -> list[int]:
        """The shape of a tensor in metadata, of one of the shapes that are here."""
        return list(item) if self.items else [-1, *item]


def tensor_forms(
    batches: bool,
    inputs: Sequence[ConfiguredTensor],
    outputs: Sequence[ConfiguredTensor],
    taken: TensorSpec,
    given: Sequence[TensorSpec],
) -> TensorForms | None:
    """The shapes that clients send and get; None if they are the graph's, and all outputs are offered.

    Args:
        batches: whether max_batch_size is above 0.
        inputs: as the config lists them; none if it says nothing of them.
        outputs: likewise.
        taken: what the graph takes.
        given: what the graph gives.

    Raises InvalidModel if the graph is not as the config says.
    """
    if not inputs and not outputs:
        return None
    for what, tensors in (("input", inputs), ("output", outputs)):
        names = [tensor.name for tensor in tensors]
        if repeated := next((name for name in names if names.count(name) > 1), ""):
            raise InvalidModel(f"config.pbtxt: {what} {repeated[:64]!r} is there {names.count(repeated)} times; accepted is once")
    specs = {spec.name: spec for spec in given}
    for tensor in inputs:
        if tensor.name != taken.name:
            raise InvalidModel(f"config.pbtxt: the graph has no input {tensor.name[:64]!r}; it takes {taken.name!r}")
        _check_type("input", tensor, taken)
    for tensor in outputs:
        if tensor.name not in specs:
            raise InvalidModel(f"config.pbtxt: the graph has no output {tensor.name[:64]!r}; it gives {', '.join(specs)}")
        _check_type("output", tensor, specs[tensor.name])
    items = 0
    if not batches and inputs:
        first = (inputs[0].reshape or inputs[0].dims)[0] if inputs[0].reshape != () else 0
        items = max(0, first)
        if first == 0 or len(inputs[0].reshape or inputs[0].dims) != len(taken.shape) + 1:
            raise _wrong_shape("input", inputs[0], taken, batches)
    named = {tensor.name: tensor for tensor in outputs}
    input_shape = _client_shape("input", inputs[0], taken, batches, items) if inputs else _whole(taken.shape, items)
    offered = {
        spec.name: _client_shape("output", named[spec.name], spec, batches, items) if outputs else _whole(spec.shape, items)
        for spec in given
        if not outputs or spec.name in named
    }
    if not items and input_shape == taken.shape and offered == {spec.name: spec.shape for spec in given}:
        return None
    return TensorForms(items, input_shape, offered)


def _check_type(what: str, tensor: ConfiguredTensor, spec: TensorSpec) -> None:
    if DTYPES.get(tensor.data_type) != spec.dtype:
        has = _NAMES.get(spec.dtype, str(spec.dtype))
        raise InvalidModel(f"config.pbtxt: {what} {tensor.name!r} is {tensor.data_type}; in the graph it is {has}")


def _client_shape(what: str, tensor: ConfiguredTensor, spec: TensorSpec, batches: bool, items: int) -> Shape:
    graph = tensor.dims if tensor.reshape is None else tensor.reshape
    dims = tensor.dims
    if not batches:
        if not graph or (graph[0] != -1 and graph[0] != items):
            raise _wrong_shape(what, tensor, spec, batches)
        graph = graph[1:]
    if len(graph) != len(spec.shape) or any(size not in (-1, has) for size, has in zip(graph, spec.shape, strict=True)):
        raise _wrong_shape(what, tensor, spec, batches)
    if not batches and not items:
        if dims[0] != -1:
            raise _wrong_shape(what, tensor, spec, batches)
        dims = dims[1:]
    whole = _whole(spec.shape, items)
    if tensor.reshape is None:
        return whole
    size, fixed = math.prod(whole), math.prod(each for each in dims if each != -1)
    if dims.count(-1) > 1 or (size % fixed if -1 in dims else size != fixed):
        raise _wrong_shape(what, tensor, spec, batches)
    return tuple(size // fixed if each == -1 else each for each in dims)


def _whole(shape: Shape, items: int) -> Shape:
    return (items, *shape) if items else shape


def _wrong_shape(what: str, tensor: ConfiguredTensor, spec: TensorSpec, batches: bool) -> InvalidModel:
    said = f"dims {list(tensor.dims)}" + ("" if tensor.reshape is None else f", reshape {list(tensor.reshape)}")
    has = f"{list(spec.shape)} an item, which is what they say if max_batch_size is above 0"
    if not batches:
        has = f"{[-1, *spec.shape]} with the batch dimension, which they include if max_batch_size is 0"
    return InvalidModel(f"config.pbtxt: {what} {tensor.name!r} has {said}; in the graph it is {has}")
