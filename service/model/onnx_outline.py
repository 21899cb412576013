"""An ONNX file without the data of its tensors: read from many gigabytes of weights in a moment, and in little memory.

An ONNX file is a protobuf message: a sequence of fields, each a tag and, where it may be long, its length. The file is walked from
tag to tag, and only what is kept is read. Fields up to a few KiB are kept as they are. Larger ones are entered if they are
messages that `onnx_messages` knows, and left out if they are a tensor's data or unknown. What is kept is an ONNX message again.
"""

import os
import stat
from pathlib import Path
from typing import Any

from service.errors import InvalidModel
from service.model.onnx_messages import MAX_DEPTH, MAX_FIELDS, check_fields, field_kinds, parse_model

_WHOLE_BYTES = 4096
"""Fields up to this size are kept as they are: entering them would save nothing."""

_MAX_KEPT_BYTES = 32 * 2**20
"""More is refused. The largest networks have a few MiB of nodes; a contract has golden samples of some MiB."""

_WINDOW_BYTES = 64 * 1024
_MAX_VARINT_BYTES = 10

_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5
"""Wire types of protobuf."""


def read_outline(path: Path) -> Any:
    """The message `Model` of an ONNX file, without `raw_data` and the other large fields that `onnx_messages` does not read.

    Nobody has tried the file yet: what it costs is bounded here, at about a hundred MB and some seconds.

    Raises:
        OSError: the file cannot be read.
        InvalidModel: it is not a regular file, not an ONNX file, or has too much beside the data of its tensors.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would block
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise InvalidModel("not a regular file")
        content = bytes(_Outline(descriptor, state.st_size).message("Model", 0, state.st_size))
    finally:
        os.close(descriptor)
    check_fields(content)
    return parse_model(content)


class _Outline:
    """Reads the file through a window that moves forward; what is left out is never read."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._window = b""
        self._window_at = 0
        self._kept = 0
        self._fields = 0

    def message(self, name: str, at: int, end: int, depth: int = 1) -> bytearray:
        """The message of this name that stands from `at` to `end`, without what is left out."""
        if depth > MAX_DEPTH:
            raise InvalidModel("not an ONNX file: its messages are nested too deep")
        kept = bytearray()
        while at < end:
            start = at
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise InvalidModel(f"it has more than {MAX_FIELDS:,} fields beside the data of its tensors")
            tag, at = self._varint(at, end)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, at = self._varint(at, end)
            elif wire_type == _FIXED_64:
                at += 8
            elif wire_type == _FIXED_32:
                at += 4
            elif wire_type == _LENGTH:
                length, at = self._varint(at, end)
                if at + length > end:
                    raise InvalidModel("not an ONNX file: it ends in the middle of a field")
                if length > _WHOLE_BYTES:
                    kept += self._large(name, tag, at, at + length, depth)
                    at += length
                    continue
                at += length
            else:
                raise InvalidModel("not an ONNX file")
            kept += self._keep(start, min(at, end))
        return kept

    def _large(self, message: str, tag: int, at: int, end: int, depth: int) -> bytes | bytearray:
        """A field of many bytes with its tag and length; nothing if it is left out."""
        field, kind = field_kinds(message).get(tag >> 3, ("", ""))
        if not kind or field == "raw_data":
            return b""
        is_message = kind[0].isupper() and kind != "Entry"
        content = self.message(kind, at, end, depth + 1) if is_message else self._keep(at, end)
        return _as_varint(tag) + _as_varint(len(content)) + content

    def _keep(self, start: int, end: int) -> bytes:
        self._kept += end - start
        if self._kept > _MAX_KEPT_BYTES:
            raise InvalidModel(f"it has more than {_MAX_KEPT_BYTES // 2**20} MiB beside the data of its tensors")
        return self._read(start, end)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at `at`, and where it ends."""
        value = 0
        for shift, byte in enumerate(self._read(at, min(at + _MAX_VARINT_BYTES, end))):
            value |= (byte & 0x7F) << 7 * shift
            if byte < 0x80:
                return value, at + shift + 1
        raise InvalidModel("not an ONNX file")

    def _read(self, start: int, end: int) -> bytes:
        """Bytes of the file, fewer if it has become shorter."""
        if end - start > _WINDOW_BYTES:
            return _pread(self._descriptor, start, end)
        if not self._window_at <= start <= end <= self._window_at + len(self._window):
            self._window_at = start
            self._window = os.pread(self._descriptor, _WINDOW_BYTES, start)
        return self._window[start - self._window_at : end - self._window_at]


def _pread(descriptor: int, start: int, end: int) -> bytes:
    content = bytearray()
    while start + len(content) < end:
        part = os.pread(descriptor, end - start - len(content), start + len(content))
        if not part:
            break
        content += part
    return bytes(content)


def _as_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
