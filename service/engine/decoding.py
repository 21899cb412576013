"""From a request's items to the array that a model takes: raw pixels, and images decoded on the transport's thread or in a pool.

Small encoded images of a model whose batches run on the transport's thread are decoded on that thread, because a hand-over costs
more than they do. Small means few bytes and, by the header, few pixels: a small file that unfolds into a large picture must not
hold up all other calls. All other images are decoded in a pool of threads.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.engine.query import Item
from service.engine.served_version import ServedVersion
from service.errors import InvalidRequest, QueueFull
from service.model.preprocessing import open_image, to_pixels
from service.model.signature import TensorSpec

log = logging.getLogger(__name__)

INLINE_DECODE_ITEMS = 32
INLINE_DECODE_BYTES = 64 * 1024
INLINE_DECODE_PIXELS = 64 * 1024
UNDECODED_BYTES = 256 * 2**20
"""Bytes of encoded images that may wait for the pool, of all models together: queues count items, not bytes."""


class DecodingPool:
    """A pool of decoding threads, with a bound on the bytes that wait for it."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self.waiting_bytes = 0
        self.closed = False

    def submit(self, job: Callable[[], None], encoded_bytes: int) -> None:
        """Runs a job that holds `encoded_bytes` until it is done. Raises QueueFull if too many bytes wait."""
        with self._lock:
            waiting = self.waiting_bytes
            if waiting and waiting + encoded_bytes > UNDECODED_BYTES:
                raise QueueFull(
                    f"the decoding queue is full: {waiting} of {UNDECODED_BYTES} bytes wait, the request has {encoded_bytes}", 1.0
                )
            self.waiting_bytes += encoded_bytes

        def run() -> None:
            try:
                job()
            except Exception:
                log.exception("a decoding job failed")
            finally:
                with self._lock:
                    self.waiting_bytes -= encoded_bytes

        self._executor.submit(run)

    def close(self) -> None:
        """Ends the threads, which stop at their next image."""
        self.closed = True
        self._executor.shutdown()


def raw_images(served: ServedVersion, items: Sequence[Item], tensor: NDArray[Any] | None) -> NDArray[Any] | None:
    """The tensor, or uint8[n,H,W,C] of items that are all raw, with at most one copy; None if there is something to decode.

    Raises InvalidRequest for input that does not fit the model.
    """
    spec = served.model.input
    if tensor is not None:
        _check_tensor(tensor, spec)
        return tensor
    for index, item in enumerate(items):
        if item.encoded:
            if not served.model.has_contract:
                raise _tensors_only(served, f"items[{index}].encoded")
            return None
    if not spec.is_image:
        raise _tensors_only(served, "items[0].pixels")
    for index, item in enumerate(items):
        if len(item.data) != spec.size_bytes:
            raise _wrong_size(index, item, spec)
    data = items[0].data if len(items) == 1 else b"".join([item.data for item in items])
    return np.frombuffer(data, spec.item_dtype)


def decode_quickly(served: ServedVersion, items: Sequence[Item]) -> NDArray[np.uint8] | None:
    """uint8[n,H,W,C] of items that the transport's thread may decode; None if decoding them would hold it up.

    Raises InvalidRequest for an item that cannot be decoded.
    """
    if not _opens_quickly(items):
        return None
    opened = [_open(served, index, item) if item.encoded else None for index, item in enumerate(items)]
    return _to_pixels(served, items, opened) if decodes_quickly(opened) else None


def decode(served: ServedVersion, items: Sequence[Item], check_wanted: Callable[[], None]) -> NDArray[np.uint8]:
    """uint8[n,H,W,C] of all items. Calls `check_wanted`, which may raise, before each image.

    Raises InvalidRequest for an item that cannot be decoded.
    """
    return _to_pixels(served, items, [None] * len(items), check_wanted)


def _to_pixels(
    served: ServedVersion,
    items: Sequence[Item],
    opened: Sequence[Image.Image | None],
    check_wanted: Callable[[], None] = lambda: None,
) -> NDArray[np.uint8]:
    for index, item in enumerate(items):
        if not item.encoded and len(item.data) != served.model.input.size_bytes:
            raise _wrong_size(index, item, served.model.input)
    spec = served.model.contract.input
    images = np.empty((len(items), *spec.shape), np.uint8)
    for index, item in enumerate(items):
        if not item.encoded:
            images[index] = np.frombuffer(item.data, np.uint8).reshape(spec.shape)
            continue
        image = opened[index]
        if image is None:  # one at a time: a decoded image is large
            check_wanted()
            image = _open(served, index, item)
        try:
            images[index] = to_pixels(image, spec)
        except InvalidRequest as error:
            raise _undecodable(index, error) from None
    return images


def _open(served: ServedVersion, index: int, item: Item) -> Image.Image:
    """The header of one encoded item."""
    try:
        return open_image(item.data, served.policy.max_image_pixels)
    except InvalidRequest as error:
        raise _undecodable(index, error) from None


def _opens_quickly(items: Sequence[Item]) -> bool:
    """Few bytes, no AVIF or HEIC, and no compressed text of a PNG, which is unfolded with the header if it may turn the image."""
    return (
        len(items) <= INLINE_DECODE_ITEMS
        and sum(len(item.data) for item in items) <= INLINE_DECODE_BYTES
        and not any(item.data[4:8] == b"ftyp" for item in items)
        and not any(kind in item.data for item in items for kind in (b"zTXt", b"iTXt"))
    )


def decodes_quickly(opened: Sequence[Image.Image | None]) -> bool:
    """Few pixels, and no progressive JPEG or TIFF, which may hold any number of scans or tiles of them."""
    images = [image for image in opened if image is not None]
    return sum(image.width * image.height for image in images) <= INLINE_DECODE_PIXELS and not any(
        "progressive" in image.info or image.format == "TIFF" for image in images
    )


def _undecodable(index: int, error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"item {index}: {error}", f"items[{index}].encoded")


def _tensors_only(served: ServedVersion, field: str) -> InvalidRequest:
    spec = served.model.input
    no, instead = ("picture files", "raw pixels of exactly that shape, or ") if spec.is_image else ("pictures", "")
    return InvalidRequest(
        f"model {served.name!r} was not exported by Convoy and takes no {no}: nothing says how one becomes its input "
        f"{spec.name!r}, {spec}. Send it {instead}tensors over the Open Inference Protocol",
        field,
    )


def _check_tensor(tensor: NDArray[Any], spec: TensorSpec) -> None:
    if tensor.dtype != spec.dtype or tensor.shape[1:] != spec.shape:
        given = " x ".join(map(str, tensor.shape[1:]))
        raise InvalidRequest(f"the tensor's items are {tensor.dtype} {given}; the model takes {spec}", spec.name)


def _wrong_size(index: int, item: Item, spec: TensorSpec) -> InvalidRequest:
    message = f"item {index}: {len(item.data)} bytes of pixels; the model takes {spec.size_bytes} ({spec})"
    return InvalidRequest(message, f"items[{index}].pixels")
