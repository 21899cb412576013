"""Reads a model into memory: the ONNX file, and the files beside it that hold weights of it.

ONNX Runtime by itself maps the files of weights. A file that is overwritten while it is mapped changes the model that serves, and
one that is truncated ends the process. So the server reads them, and ONNX Runtime is given what was read.
"""

import errno
import hashlib
import math
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from service.errors import FilesChanged, InvalidModel, PassingFailure
from service.model.files import NOT_REGULAR, file_state, read_file
from service.model.onnx_messages import EXTERNAL, check_fields, parse_model, tensors
from service.model.onnx_outline import read_outline

if TYPE_CHECKING:
    from service.model.signing import SignedFiles

_MAX_INLINE_BYTES = 4096
"""Tensors up to this size go into the graph: ONNX Runtime reads shapes and axes of operators before it is given any file."""

_MAX_FILE_BYTES = 2**31 - 1
"""The largest message of protobuf, which an ONNX file is. Not read, so that it costs no memory."""

_MAX_FILES = 10_000
_MAX_NAME_BYTES = 1024
"""Files of weights that a version may have, and the length of their names: each is looked at again and again, for changes."""

_MAX_DIMENSIONS = 64
"""Of a tensor. The product of a million numbers would take hours."""

_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16, 17: 8, 18: 8,
    19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Of an element, by ONNX's number of the data type."""


_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of reading that say nothing about the file."""

_OTHERS = "its files changed after they had been tried"


class ModelContent(NamedTuple):
    """A model in memory.

    Attributes:
        graph: the ONNX file. Tensors that ONNX Runtime does not look for in `weights` have been put into it.
        weights: the content of the other files, by the name that `graph` has for them.
        digest: SHA-256 of the ONNX file followed by its files of weights, by name, in hexadecimal.
        signer: who signed the version, as in `SignedFiles`; empty if no signature was asked for.
        graph_digest: that of the ONNX file alone.
        size_bytes: of all files.
    """

    graph: bytes
    weights: Mapping[str, bytes] = {}
    digest: str = ""
    signer: str = ""
    graph_digest: str = ""
    size_bytes: int = 0


class Expected(NamedTuple):
    """What is known of the files of a version before they are read: other ones are not parsed, and no larger ones are read."""

    digest: str
    graph_digest: str
    size_bytes: int


class _Place(NamedTuple):
    """Where the data of a tensor are. `size` is None if neither the file nor the tensor's type says it.

    `is_initializer` is whether it is one of the main graph, for which ONNX Runtime takes files from memory.
    """

    tensor: Any
    is_initializer: bool
    file: str
    offset: int
    size: int | None


def read_model(
    path: Path, *, inline: bool = False, signed: "SignedFiles | None" = None, expected: Expected | None = None
) -> ModelContent:
    """Reads an ONNX file and its files of weights. With `inline`, all weights are put into `graph`.

    With `signed`, what is read must be what was signed; nothing is parsed before that is known.

    Raises:
        FilesChanged: they changed while they were read, or since they were found to be what was signed; or they are not the
            `expected` ones.
        InvalidModel: a file of weights is not covered by the signature.
        PassingFailure: a file cannot be read for a reason that is not its own, such as too many open files.
        InvalidModel: a file is missing, too short, not a regular file or outside the model's folder, or cannot be read.
    """
    before = file_state(path)
    if before is not None and before[2] > _MAX_FILE_BYTES:
        raise InvalidModel("the model file has more than 2 GiB, which no ONNX file can: larger weights belong into files beside it")
    max_bytes = None if expected is None else expected.size_bytes
    graph = _read(path, "the model file", max_bytes=max_bytes)
    digest = hashlib.sha256(graph)
    graph_digest, size_bytes = digest.hexdigest(), len(graph)
    if expected is not None and graph_digest != expected.graph_digest:
        raise FilesChanged(_OTHERS)
    if signed is not None:
        signed.check_read(path.name, graph)
    message, places = _external_tensors(graph)
    files = {place.file: path.parent / place.file for place in places}
    states = {file: file_state(file) for file in files.values()}
    # Links may lead to another place in the repository, as in mounted volumes, but not to other files of the server.
    folders = path.absolute().parents[:3]  # of the version, of the model, of the repository
    weights = {name: _read(files[name], f"weights file {name!r}", folders, max_bytes) for name in sorted(files)}
    if before != file_state(path) or any(file_state(file) != state for file, state in states.items()):
        raise FilesChanged("its files changed while they were read")
    needed = dict.fromkeys(weights, 0)
    for place in places:
        needed[place.file] = max(needed[place.file], place.offset + (place.size or 0))
    for name, content in weights.items():
        if signed is not None:
            signed.check_read(name, content)
        if len(content) < needed[name]:
            raise InvalidModel(f"weights file {name!r} has {len(content)} bytes, the graph needs {needed[name]}")
    for content in weights.values():
        digest.update(content)
        size_bytes += len(content)
    if expected is not None and digest.hexdigest() != expected.digest:
        raise FilesChanged(_OTHERS)
    if places:
        graph = _with_tensors(message, places, weights, math.inf if inline else _MAX_INLINE_BYTES)
    signer = "" if signed is None else signed.signer
    return ModelContent(graph, weights, digest.hexdigest(), signer, graph_digest, size_bytes)


def weights_files(path: Path) -> tuple[Path, ...]:
    """The files of weights that an ONNX file names. Empty also if it cannot be read, or names a file that it must not."""
    try:
        places = _external_places(read_outline(path))
    except (InvalidModel, OSError):
        return ()
    return tuple(path.parent / name for name in sorted({place.file for place in places}))


def _external_tensors(graph: bytes) -> tuple[Any, list[_Place]]:
    """The parsed ONNX file, and where its tensors are that are not in it. No message if there are none."""
    if b"location" not in graph:  # saves parsing a large file
        return None, []
    check_fields(graph)
    try:
        message = parse_model(graph)
    except InvalidModel:
        return None, []  # ONNX Runtime says what is wrong with it
    return message, _external_places(message)


def _external_places(message: Any) -> list[_Place]:
    """Raises InvalidModel if they are in places, or in more files, that are not accepted."""
    places, files = [], set()
    for tensor, where in tensors(message):
        if tensor.data_location == EXTERNAL:
            place = _place(tensor, where)
            places.append(place)
            files.add(place.file)
            if len(files) > _MAX_FILES:
                raise InvalidModel(f"its weights are in more than {_MAX_FILES:,} files")
    return places


def _place(tensor: Any, where: tuple[str, ...]) -> _Place:
    given = {entry.key: entry.value for entry in tensor.external_data}
    name = tensor.name.decode(errors="replace")
    try:
        file = posixpath.normpath(given[b"location"].decode())
        offset, length = int(given.get(b"offset", 0)), int(given[b"length"]) if b"length" in given else None
    except (KeyError, ValueError):
        raise InvalidModel(f"tensor {name!r}: location, offset and length of its data are not a text and two numbers") from None
    if file.startswith(("/", "../")) or file in (".", "..") or "\0" in file:
        raise InvalidModel(f"weights file {file!r} is outside the model's folder")
    if len(given[b"location"]) > _MAX_NAME_BYTES:
        raise InvalidModel(f"the name of a weights file has more than {_MAX_NAME_BYTES} bytes")
    if len(tensor.dims) > _MAX_DIMENSIONS:
        raise InvalidModel(f"tensor {name!r} has more than {_MAX_DIMENSIONS} dimensions")
    bits = _BITS.get(tensor.data_type)
    if length is None and bits is not None:
        length = -(-math.prod(tensor.dims) * bits // 8)
    if offset < 0 or (length is not None and length < 0):
        raise InvalidModel(f"tensor {name!r}: offset or size of its data are negative")
    return _Place(tensor, where == ("graph", "initializer"), file, offset, length)


def _read(path: Path, what: str, folders: Sequence[Path] = (), max_bytes: int | None = None) -> bytes:
    """The content of a file, which must lie in one of the `folders`, links followed; without any, anywhere.

    Raises FilesChanged if it has more than `max_bytes`.
    """
    try:
        real = os.path.realpath(path)  # Path.resolve raises RuntimeError for a link to itself
        if folders and not any(Path(real).is_relative_to(folder.resolve()) for folder in folders):
            raise InvalidModel(f"{what} is a link to a place outside the repository")
        return read_file(path, max_bytes)
    except OSError as error:
        if folders and isinstance(error, FileNotFoundError):
            raise InvalidModel(f"{what} is missing") from None
        if error.errno == errno.EFBIG:
            raise FilesChanged(_OTHERS) from None
        if error.strerror == NOT_REGULAR:
            raise InvalidModel(f"{what} is {NOT_REGULAR}") from None
        refusal = PassingFailure if error.errno in _PASSING else InvalidModel
        raise refusal(f"cannot read {what}: {error.strerror}") from None


def _with_tensors(message: Any, places: list[_Place], weights: Mapping[str, bytes], max_bytes: float) -> bytes:
    """The ONNX file with its tensors of up to `max_bytes` in it, and those of subgraphs, functions and attributes, of any size.

    ONNX Runtime looks for the latter in files alone, not in what it is given.
    """
    for tensor, is_initializer, file, offset, size in places:
        del tensor.external_data[:]
        if is_initializer and (size is None or size > max_bytes):
            given = {"location": file, "offset": offset} | ({} if size is None else {"length": size})
            for key, value in given.items():
                tensor.external_data.add(key=key.encode(), value=str(value).encode())
        else:
            tensor.ClearField("data_location")
            tensor.raw_data = weights[file][offset : None if size is None else offset + size]
    try:
        content: bytes = message.SerializeToString()
    except Exception as error:  # noqa: BLE001 - protobuf's EncodeError or ValueError, by its implementation
        raise InvalidModel(f"the part of the weights that cannot stay outside the ONNX file is too large for it: {error}") from None
    return content
