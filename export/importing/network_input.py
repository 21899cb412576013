"""What a graph takes: the one image among its inputs, its layout, and its sizes as far as they are fixed."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from service.errors import UserError

Layout = Literal["nchw", "nhwc"]

_DTYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32), TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.UINT8: np.dtype(np.uint8), TensorProto.INT32: np.dtype(np.int32),
}  # fmt: skip
_CHANNELS = (1, 3)
LONGEST_SIDE = 4096
"""In pixels, as in the contract."""


@dataclass(frozen=True)
class NetworkInput:
    """The input of a graph that takes images.

    Attributes:
        name: of the tensor.
        dtype: of the tensor.
        layout: of an image; `nchw` and `nhwc` also without the dimension of the batch.
        height: in pixels; 0 if it is open, as `width`.
        channels: 1 or 3.
        batch_items: items of every batch; 0 if it is open.
        has_batch: whether the tensor has a dimension of the batch.
        is_flat: whether an image is a row of H*W*C numbers.
    """

    name: str
    dtype: np.dtype[Any]
    layout: Layout
    height: int
    width: int
    channels: int
    batch_items: int = 0
    has_batch: bool = True
    is_flat: bool = False

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape that the graph takes, -1 for an open batch."""
        sides = (self.channels, self.height, self.width) if self.layout == "nchw" else (self.height, self.width, self.channels)
        item = (math.prod(sides),) if self.is_flat else sides
        return (self.batch_items or -1, *item) if self.has_batch else item

    def with_size(self, height: int, width: int) -> "NetworkInput":
        """The same with its open sides bound."""
        return replace(self, height=height, width=width)

    def describe(self) -> str:
        """As people write it: float32 [N,3,224,224]."""
        return f"{self.dtype} [{','.join(str(side) if side > 0 else 'N' for side in self.tensor_shape)}]"

    def arrange(self, images: NDArray[Any]) -> NDArray[Any]:
        """Images [n,H,W,C] as the graph takes them; n is 1 if there is no dimension of the batch."""
        arranged = images.transpose(0, 3, 1, 2) if self.layout == "nchw" else images
        shape = (len(images), *self.tensor_shape[1:]) if self.has_batch else self.tensor_shape
        return np.ascontiguousarray(arranged.reshape(shape).astype(self.dtype))


def read_input(model: onnx.ModelProto, layout: str = "auto", size: tuple[int, int] | None = None) -> NetworkInput:
    """The image that a graph takes.

    Args:
        model: the graph.
        layout: `nchw`, `nhwc`, or `auto` to find it.
        size: (height, width) where the graph leaves them open.

    Raises:
        UserError: it takes no image, several inputs, or something that is not said.
    """
    weights = {tensor.name for tensor in model.graph.initializer} | {
        tensor.values.name for tensor in model.graph.sparse_initializer
    }
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise UserError(f"the graph takes {len(inputs)} inputs ({names}); one tensor of images is accepted")
    value = inputs[0]
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    sides = [max(dimension.dim_value, 0) for dimension in tensor.shape.dim]  # Paddle writes -1 for one that is open
    shown = (
        f"{value.name!r}, {TensorProto.DataType.Name(tensor.elem_type).lower()} [{','.join(str(side or '?') for side in sides)}]"
    )
    if dtype is None:
        raise UserError(f"the graph takes {shown}; images are float32, float16, float64, uint8 or int32")
    if len(sides) in (1, 2):
        return _flat(value.name, dtype, sides, size, shown)
    if len(sides) not in (3, 4):
        raise UserError(f"the graph takes {shown}; images are [N,C,H,W] or [N,H,W,C] of 1 or 3 channels")
    batch, image = (sides[0], sides[1:]) if len(sides) == 4 else (0, sides)
    found = _layout(model, value.name, image, layout, shown)
    height, width, depth = (image[1], image[2], image[0]) if found == "nchw" else (image[0], image[1], image[2])
    depth = depth or _channels_of_first_convolution(model) or 0
    if depth not in _CHANNELS:
        raise UserError(f"the graph takes {shown}: {depth or 'any number of'} channels in layout {found}; 1 and 3 are accepted")
    if max(height, width) > LONGEST_SIDE:
        raise UserError(f"the graph takes {shown}; images of at most {LONGEST_SIDE} pixels a side are accepted")
    return NetworkInput(value.name, dtype, found, height, width, depth, max(batch, 0), has_batch=len(sides) == 4)


def bind_size(model: onnx.ModelProto, network: NetworkInput) -> None:
    """Writes the sides of the image into the graph's input, where they were open."""
    value = next(value for value in model.graph.input if value.name == network.name)
    for dimension, side in zip(value.type.tensor_type.shape.dim, network.tensor_shape, strict=True):
        if side > 0:
            dimension.dim_value = side


def _flat(
    name: str, dtype: np.dtype[Any], sides: list[int], size: tuple[int, int] | None, shown: str
) -> NetworkInput:  # fmt: skip
    """An image as a row of numbers, as scikit-learn takes it. Raises UserError unless its size is said."""
    if size is None:
        raise UserError(f"the graph takes {shown}: rows of numbers; --input-shape H,W says of which image they are")
    numbers = sides[-1]
    for depth in _CHANNELS:
        if not numbers or numbers == size[0] * size[1] * depth:
            return NetworkInput(
                name, dtype, "nhwc", *size, depth, sides[0] if len(sides) == 2 else 0, len(sides) == 2, is_flat=True
            )
    raise UserError(
        f"the graph takes {shown}: rows of {numbers} numbers, and {size[0]}x{size[1]} images have another number of them"
    )


def _layout(model: onnx.ModelProto, name: str, image: list[int], asked: str, shown: str) -> Layout:
    if asked != "auto":
        depth = image[0] if asked == "nchw" else image[2]
        if depth and depth not in _CHANNELS:
            raise UserError(
                f"--layout {asked}: the graph takes {shown}, which has {depth} channels in that layout; 1 and 3 are accepted"
            )
        return "nchw" if asked == "nchw" else "nhwc"
    first, last = image[0] in _CHANNELS, image[2] in _CHANNELS
    if first != last:
        return "nchw" if first else "nhwc"
    if not first and image[0] and image[2]:
        raise UserError(f"the graph takes {shown}; images are [N,C,H,W] or [N,H,W,C] of 1 or 3 channels")
    consumers = [node for node in model.graph.node if name in node.input]
    for node in consumers:
        if node.op_type == "Conv":
            return "nchw"
        if node.op_type == "Transpose":
            order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
            if order in ([0, 3, 1, 2], [2, 0, 1]):
                return "nhwc"
    raise UserError(f"the graph takes {shown}: its layout is not clear; --layout nchw or nhwc says it")


def _channels_of_first_convolution(model: onnx.ModelProto) -> int | None:
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(shapes.get(node.input[1], ())) == 4:
            groups = next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == "group"), 1)
            return int(shapes[node.input[1]][1]) * int(groups)
    return None
