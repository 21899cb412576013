"""Graphs that take a picture file and decode it themselves, as with DecodeImage of onnxruntime-extensions: one file a run.

What is behind DecodeImage is not made for files of strangers: of version 0.15.2, a file that is neither JPEG nor PNG ends the
process, a JPEG that is cut short is waited for without end, and a gray one becomes pixels of one channel. So no graph gets a
client's file. Pillow decodes it, with the limits that hold for all pictures, and the graph gets the same pixels in a PNG that was
written here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidModel, InvalidRequest, first_line
from service.model.png import write_png
from service.model.preprocessing import encode_png, open_image, to_rgb
from service.model.signature import Session

_ANY_PIXELS = 2**62
"""How many there are was checked when the request came."""


def takes_a_file(session: Session) -> bool:
    """Whether the graph takes uint8[n], of any length: a picture file, if it is a classifier of pictures."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)":
        return False
    shape = inputs[0].shape
    return len(shape) == 1 and not isinstance(shape[0], int)


class DecodingGraph:
    """A session of such a graph with a batch, of one item: `run` takes object[1] of a picture file, and gives one row."""

    def __init__(self, session: Session) -> None:
        """Raises InvalidModel if it does not decode: two files of the same pixels must be the same to it."""
        self._session = session
        [node] = session.get_inputs()
        self._input = node.name
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        names = [output.name for output in session.get_outputs()]
        why = ""
        try:
            one, other = (self._run(names, file) for file in (write_png(pixels), encode_png(pixels)))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            why = f"it fails on a PNG: {first_line(error)}"
        else:
            if not all(np.array_equal(*pair, equal_nan=pair[0].dtype.kind == "f") for pair in zip(one, other, strict=True)):
                why = "two files of the same picture are not the same to it"
        if why:
            raise InvalidModel(
                f"the graph takes uint8 {node.name!r} {node.shape}, and no batch: accepted is the bytes of a picture file that it "
                f"decodes, but {why}. Export it so that it takes pixels, [N, height, width, 3]"
            )

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """As InferenceSession.run, one row in each output. Raises InvalidRequest for a file that cannot be decoded."""
        [file] = feed[self._input]
        try:
            pixels = to_rgb(open_image(file, _ANY_PIXELS))
        except InvalidRequest as error:
            raise InvalidRequest(str(error), "items") from None
        return [_row(output) for output in self._run(names, write_png(pixels))]

    def _run(self, names: Sequence[str], file: bytes) -> Sequence[NDArray[Any]]:
        return self._session.run(names, {self._input: np.frombuffer(file, np.uint8)})


def _row(output: NDArray[Any]) -> NDArray[Any]:
    """[1, *shape] of what a graph gives for one item, whether or not with a dimension of the batch."""
    return output if output.ndim > 1 and len(output) == 1 else output[np.newaxis]
