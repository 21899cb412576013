"""Images of every accepted kind (bytes, paths, arrays, PIL images) as items of a request. Imports neither numpy nor Pillow."""

import io
import math
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from service.errors import FileUnreadable, UserError

MAX_MESSAGE_BYTES = 2**31 - 1
"""Protobuf's limit."""

NOT_REGULAR = "not a regular file"

_SMALL_FILE_BYTES = 64 * 1024
_NONBLOCK = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

_PNG_MODES = {mode: mode for mode in ("1", "L", "LA", "I;16", "I;16B", "P", "RGB", "RGBA")} | {
    "La": "LA", "PA": "RGBA", "RGBa": "RGBA",
}  # fmt: skip
"""PIL mode -> the PNG mode that keeps all of its information; RGB for any other."""

_EXIF = struct.Struct(">4sI 3HI2H I")  # a TIFF with one entry: the orientation, one 16-bit number
_ORIENTATION = 0x0112
_MAX_KINDS = 1000


@runtime_checkable
class Pixels(Protocol):
    """A numpy array, without importing numpy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C), or (H, W) for gray."""

    @property
    def dtype(self) -> Any:
        """Must be uint8."""

    def tobytes(self) -> bytes:
        """The pixels row by row."""


@runtime_checkable
class Picture(Protocol):
    """A PIL.Image.Image, without importing PIL."""

    @property
    def mode(self) -> str:
        """PIL's pixel format."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""

    def getexif(self) -> Any:
        """EXIF data, which may contain an orientation."""

    def convert(self, mode: str) -> "Picture":
        """The image in another mode."""

    def save(self, fp: Any, format: str, **params: Any) -> None:  # noqa: A002 - PIL's own name
        """Writes an image file."""


Image = bytes | str | os.PathLike[str] | Pixels | Picture
"""An encoded image's bytes, the path of an image file, a PIL image, or decoded pixels uint8[H,W,C] of exactly the model's shape."""

Images = Sequence[Image] | Pixels
"""Several images, or the pixels of several: uint8[N,H,W,C]."""


def needs_reading(images: Images) -> bool:
    """Whether `items` has to read files or encode PIL images."""
    if isinstance(images, Pixels) or not isinstance(images, Sequence):
        return False
    return not all(isinstance(image, bytes | Pixels) for image in images)


def is_path(image: Any) -> bool:
    """Whether `item` has to read a file."""
    return _kind(image) is os.PathLike


def is_picture(image: Any) -> bool:
    """Whether `item` has to encode a PIL image."""
    return _kind(image) is Picture


_KINDS: dict[type, Any] = {}
"""By the type of an image the kind of `Image` that it is; None if it is none. To look at a Protocol takes ten microseconds."""


def _kind(image: Any) -> Any:
    try:
        return _KINDS[type(image)]
    except KeyError:
        kinds = {bytes: bytes, str: os.PathLike, os.PathLike: os.PathLike, Pixels: Pixels, Picture: Picture}
        found = next((kind for base, kind in kinds.items() if isinstance(image, base)), None)
        if len(_KINDS) < _MAX_KINDS:
            _KINDS[type(image)] = found
        return found


def held_bytes(image: Any) -> int:
    """What an image holds in memory: of a PIL image its pixels, once it is decoded; of a path, and of what is no image, nothing."""
    kind = _kind(image)
    if kind is bytes:
        return len(image)
    if kind is Pixels:
        return math.prod(image.shape)
    if kind is not Picture:
        return 0
    width, height = image.size
    return int(width * height * (1 if image.mode in ("1", "L", "P") else 4))


def items(images: Images) -> Iterator[dict[str, bytes]]:
    """For each image the one field of its `Item`: `encoded` or `pixels`. Raises UserError for an image that cannot be sent."""
    return (item(image) for image in _each(images))


def _each(images: Any) -> Iterable[Image]:
    if isinstance(images, Pixels):
        if len(images.shape) != 4:
            raise UserError(f"an array of images is uint8[N,H,W,C], not of shape {images.shape}; put one image in a list")
    elif isinstance(images, str | bytes | os.PathLike) or not isinstance(images, Sequence):
        raise UserError("images must be a list, even for one image")
    each: Iterable[Image] = images
    return each


def item(image: Any, most_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, bytes]:
    """The field of its `Item` for one image. Raises UserError if it cannot be sent, and LargeFile as `read_file`."""
    kind = _kind(image)
    if kind is bytes:
        return {"encoded": image}
    if kind is os.PathLike:
        return {"encoded": read_file(image, most_bytes, waits=False)}
    if kind is Pixels:
        if image.dtype != "uint8" and str(image.dtype) != "uint8":  # str() of a dtype takes ten microseconds
            raise UserError(f"pixels must be uint8, not {image.dtype}: send the image as decoded, not normalised")
        if len(image.shape) not in (2, 3):
            raise UserError(f"pixels of one image are uint8[H,W,C], not of shape {image.shape}")
        return {"pixels": image.tobytes()}
    if kind is Picture:
        return {"encoded": _png(image)}
    raise UserError(f"an image is bytes, a path, a PIL image or a uint8 array, not {type(image).__name__}")


def _png(picture: Picture) -> bytes:
    """Lossless and fast; keeps the orientation, and no other metadata."""
    if picture.mode.startswith(("I", "F")) and picture.mode not in _PNG_MODES:
        raise UserError(f"PIL images of mode {picture.mode} are not accepted: their range of values is not defined")
    buffer = io.BytesIO()
    try:
        exif = _exif(picture)
        mode = _PNG_MODES.get(picture.mode, "RGB")
        if picture.mode != mode:
            picture = picture.convert(mode)
        picture.save(buffer, "PNG", compress_level=1, exif=exif, icc_profile=None)
    except Exception as error:  # noqa: BLE001 - Pillow decodes lazily, here, and a broken file can make it raise anything
        raise UserError(f"cannot encode a PIL image as PNG: {error}") from None
    return buffer.getvalue()


def _exif(picture: Picture) -> bytes:
    """EXIF data with the orientation alone; empty for none, or if it cannot be read."""
    try:
        turn = picture.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - Pillow's parsers raise any error on broken EXIF data
        return b""
    return _EXIF.pack(b"MM\0*", 8, 1, _ORIENTATION, 3, 1, int(turn), 0, 0) if turn in range(2, 9) else b""


class LargeFile(Exception):
    """A file of more bytes than asked for. It is no error: it is read once there is room for it."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


def read_file(path: str | os.PathLike[str], most_bytes: int = MAX_MESSAGE_BYTES, *, waits: bool = True) -> bytes:
    """A file's bytes; what is no regular file is read only by who `waits` for it.

    Raises FileUnreadable, also for a file larger than a request can be, and LargeFile for another of more than `most_bytes`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY if waits else os.O_RDONLY | _NONBLOCK)
        try:  # without a Path, a file object and a look at the size first, a fraction of the time of a small picture
            content = os.read(descriptor, _SMALL_FILE_BYTES)
            more = content and os.read(descriptor, _SMALL_FILE_BYTES)
            if content and not more:
                return content
            status = os.fstat(descriptor)
            if not waits and not stat.S_ISREG(status.st_mode):  # a pipe without a writer looks empty, a device may never end
                raise FileUnreadable(f"{os.fspath(path)}: {NOT_REGULAR}")
            size = status.st_size
            if size > MAX_MESSAGE_BYTES:
                raise FileUnreadable(f"{os.fspath(path)}: {size} bytes; a request holds at most {MAX_MESSAGE_BYTES}")
            if size > most_bytes:
                raise LargeFile(size)
            with io.FileIO(descriptor, closefd=False) as file:
                return content + more + file.readall()
        finally:
            os.close(descriptor)
    except BlockingIOError:
        raise FileUnreadable(f"{os.fspath(path)}: {NOT_REGULAR}") from None
    except OSError as error:
        raise FileUnreadable(f"{os.fspath(path)}: {error.strerror}") from None
    except ValueError as error:  # a name with a zero byte
        raise FileUnreadable(f"{os.fspath(path)!r}: {error}") from None
