"""From a request's items to the array that a model takes: raw pixels, and images decoded on the transport's thread or in a pool.

Small encoded images of a model whose batches run on the transport's thread are decoded on that thread, because a hand-over costs
more than they do. Small means few bytes and, by the header, few pixels: a small file that unfolds into a large picture must not
hold up all other calls. All other images are decoded in a pool of threads, or, if they are dear (`model/picture_cost.py`), in
processes of their own (`decoding_processes.py`).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.engine.decoding_processes import DecodingProcesses
from service.engine.query import Item
from service.engine.served_version import ServedVersion
from service.errors import InvalidRequest, QueueFull
from service.import_advice import import_advice
from service.model.input_spec import InputSpec
from service.model.picture_cost import CHEAP_BYTES, DEAR, decoding_steps, resizes_cheaply
from service.model.preprocessing import open_image, to_pixels
from service.model.resizing import resized_pixels
from service.model.signature import TensorSpec, picture_files
from service.requests.fair_threads import FairThreads
from service.requests.principal import UNKNOWN, Principal

INLINE_DECODE_ITEMS = 32
INLINE_DECODE_BYTES = 64 * 1024
INLINE_DECODE_STEPS = 64 * 1024
INLINE_RESIZE_PIXELS = 1024 * 1024
"""Of all items together once they are resized. A small picture may be stretched to a large one."""
UNDECODED_BYTES = 256 * 2**20
"""Bytes of encoded images that may wait for the pool, of all models together: queues count items, not bytes."""


class DecodingPool:
    """Pools of threads that decode: one for cheap pictures, one for requests with dear ones, which wait for decoding processes.

    Those who send pictures take turns, request by request. The bytes that wait for either pool are bounded, and who sends many
    cannot fill more than half of the room.

    Attributes:
        processes: decode dear pictures.
    """

    def __init__(self, threads: int, processes: DecodingProcesses) -> None:
        self._cheap = FairThreads(threads, "decode")
        self._dear = FairThreads(threads, "decode-dear")
        self.processes = processes
        self._lock = threading.Lock()
        self._held: dict[Principal, int] = {}  # bytes
        self.waiting_bytes = 0
        self.closed = False

    def submit(self, job: Callable[[], None], items: Sequence[Item], principal: Principal = UNKNOWN) -> None:
        """Runs a job that holds these items until it is done.

        Raises QueueFull if too many bytes wait, and Unavailable as `ThreadPool.submit`. The job is then never run.
        """
        encoded_bytes = sum(len(item.data) for item in items)
        with self._lock:
            waiting, own = self.waiting_bytes, self._held.get(principal, 0)
            full = waiting and waiting + encoded_bytes > UNDECODED_BYTES
            if full or (own and own + encoded_bytes > UNDECODED_BYTES // 2):
                raise QueueFull(
                    f"the decoding queue is full: {waiting} of {UNDECODED_BYTES} bytes wait, {own} of them of this client, "
                    f"which may have half; the request has {encoded_bytes}",
                    1.0,
                )
            self.waiting_bytes += encoded_bytes
            self._held[principal] = own + encoded_bytes

        def run() -> None:
            try:
                job()
            finally:
                self._give_back(principal, encoded_bytes)

        try:
            dear = any(item.encoded and decoding_steps(item.data) == DEAR for item in items)
            (self._dear if dear else self._cheap).submit(principal, run)
        except BaseException:
            self._give_back(principal, encoded_bytes)
            raise

    def close(self) -> None:
        """Ends threads and processes, which stop at their next image."""
        self.closed = True
        self._cheap.close()
        self._dear.close()
        self.processes.close()

    def _give_back(self, principal: Principal, encoded_bytes: int) -> None:
        with self._lock:
            self.waiting_bytes -= encoded_bytes
            left = self._held.pop(principal, 0) - encoded_bytes
            if left:
                self._held[principal] = left


def raw_images(served: ServedVersion, items: Sequence[Item], tensor: NDArray[Any] | None) -> NDArray[Any] | None:
    """The tensor, or uint8[n,H,W,C] of items that are all raw, with at most one copy; None if there is something to decode.

    Raises InvalidRequest for input that does not fit the model.
    """
    spec = served.model.input
    if tensor is not None:
        _check_tensor(tensor, spec)
        return tensor
    rows = [data for data, encoded in items if not encoded]
    if len(rows) < len(items):
        if not served.model.takes_pictures:
            index = next(index for index, item in enumerate(items) if item.encoded)
            raise tensors_only(served, f"items[{index}].encoded")
        return None
    if spec.dtype != np.uint8 and served.model.has_contract:
        return None  # what a picture becomes is float32, pixels are uint8 all the same
    if not spec.is_image:
        raise tensors_only(served, "items[0].pixels")
    size = spec.size_bytes
    for index, data in enumerate(rows):
        if len(data) != size:
            raise _wrong_size(index, items[index], spec)
    data = rows[0] if len(rows) == 1 else b"".join(rows)
    return np.frombuffer(data, spec.item_dtype)


def decode_quickly(served: ServedVersion, items: Sequence[Item]) -> NDArray[Any] | None:
    """[n,H,W,C] of the input's dtype, of items that the transport's thread may decode; None if decoding them would hold it up.

    Raises InvalidRequest for an item that cannot be decoded.
    """
    if not decodes_quickly(items):
        return None
    opened = [_open(served, index, item) if item.encoded else None for index, item in enumerate(items)]
    if sum(image.width * image.height for image in opened if image is not None) > INLINE_DECODE_STEPS:
        return None  # a header in the file's first bytes was not the last
    spec = served.model.contract.input
    if sum(resized_pixels(image.size, spec) for image in opened if image is not None) > INLINE_RESIZE_PIXELS:
        return None
    return _to_pixels(served, items, opened)


def decode(
    served: ServedVersion, items: Sequence[Item], processes: DecodingProcesses, check_wanted: Callable[[], None]
) -> NDArray[Any]:
    """[n,H,W,C] of the input's dtype, of all items, the dear ones decoded by `processes`.

    For a graph that decodes it is the files themselves, object[n], after a look at their headers.

    Calls `check_wanted`, which may raise, before each image.

    Raises InvalidRequest for an item that cannot be decoded, and Unavailable if there are no processes.
    """
    if served.model.input.is_picture_file:
        return _to_files(served, items, check_wanted)
    return _to_pixels(served, items, [None] * len(items), processes, check_wanted)


def _to_pixels(
    served: ServedVersion,
    items: Sequence[Item],
    opened: Sequence[Image.Image | None],
    processes: DecodingProcesses | None = None,
    check_wanted: Callable[[], None] = lambda: None,
) -> NDArray[Any]:
    spec = served.model.contract.input
    for index, item in enumerate(items):
        if not item.encoded and len(item.data) != spec.pixels_bytes:
            raise _wrong_size(index, item, TensorSpec(served.model.input.name, np.dtype(np.uint8), spec.shape))
    images = np.empty((len(items), *spec.shape), spec.dtype)
    for index, item in enumerate(items):
        if not item.encoded:
            images[index] = np.frombuffer(item.data, np.uint8).reshape(spec.shape)
            continue
        image = opened[index]
        try:
            if image is None and processes is not None:  # one at a time: a decoded image is large
                check_wanted()
                images[index] = _decode_one(item.data, spec, served.policy.max_image_pixels, processes, check_wanted)
            elif image is not None:
                images[index] = to_pixels(image, spec)
        except InvalidRequest as error:
            raise _undecodable(index, error) from None
    return images


def _to_files(served: ServedVersion, items: Sequence[Item], check_wanted: Callable[[], None]) -> NDArray[Any]:
    """object[n] of the files, for a graph that decodes. By their headers they may be decoded on an instance's thread."""
    for index, item in enumerate(items):
        if not item.encoded:
            raise tensors_only(served, f"items[{index}].pixels")
        check_wanted()
        image, steps = _open(served, index, item), decoding_steps(item.data)
        if steps == DEAR or image.width * image.height > steps:
            found = f"the picture is {image.format} of {image.width} x {image.height} pixels"
            accepted = f"PNG and JPEG that need at most {CHEAP_BYTES // 2**20} MiB to be decoded are accepted"
            raise _undecodable(index, InvalidRequest(f"{found}; by this model, whose graph decodes, {accepted}"))
    return picture_files([item.data for item in items])


def _decode_one(
    encoded: bytes, spec: InputSpec, max_pixels: int, processes: DecodingProcesses, check_wanted: Callable[[], None]
) -> NDArray[Any]:
    steps = decoding_steps(encoded)
    if steps != DEAR:
        image = open_image(encoded, max_pixels)
        if image.width * image.height <= steps and resizes_cheaply(image, spec):
            return to_pixels(image, spec)
    return processes.decode(encoded, spec, max_pixels, check_wanted)


def _open(served: ServedVersion, index: int, item: Item) -> Image.Image:
    """The header of one encoded item."""
    try:
        return open_image(item.data, served.policy.max_image_pixels)
    except InvalidRequest as error:
        raise _undecodable(index, error) from None


def decodes_quickly(items: Sequence[Item]) -> bool:
    """Few bytes, few pixels, and no compressed text of a PNG, which is unfolded with the header if it may turn the image."""
    if len(items) > INLINE_DECODE_ITEMS or sum(len(item.data) for item in items) > INLINE_DECODE_BYTES:
        return False
    steps = 0
    for item in items:
        if item.encoded:
            data = item.data
            each = decoding_steps(data)
            if each == DEAR or b"zTXt" in data or b"iTXt" in data:
                return False
            steps += each
    return steps <= INLINE_DECODE_STEPS


def _undecodable(index: int, error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"item {index}: {error}", f"items[{index}].encoded")


def tensors_only(served: ServedVersion, field: str) -> InvalidRequest:
    """The error for pictures that are sent to a model without a contract."""
    spec = served.model.input
    if spec.is_picture_file:
        return InvalidRequest(f"model {served.name!r} takes no raw pixels: its graph decodes picture files; send those", field)
    no, instead = ("picture files", "raw pixels of exactly that shape, or ") if spec.is_image else ("pictures", "")
    return InvalidRequest(
        f"model {served.name!r} was not exported by Convoy and takes no {no}: nothing says how one becomes its input "
        f"{spec.name!r}, {spec}. Send it {instead}tensors over the Open Inference Protocol"
        f"{import_advice(str(spec.dtype), spec.shape)}",
        field,
    )


def _check_tensor(tensor: NDArray[Any], spec: TensorSpec) -> None:
    if tensor.dtype != spec.dtype or tensor.shape[1:] != spec.shape:
        given = " x ".join(map(str, tensor.shape[1:]))
        raise InvalidRequest(f"the tensor's items are {tensor.dtype} {given}; the model takes {spec}", spec.name)


def _wrong_size(index: int, item: Item, spec: TensorSpec) -> InvalidRequest:
    message = f"item {index}: {len(item.data)} bytes of pixels; the model takes {spec.size_bytes} ({spec})"
    return InvalidRequest(message, f"items[{index}].pixels")
