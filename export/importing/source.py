"""Reads the model that is imported: an ONNX file, a folder that holds one, a program of `torch.export`, or a model of Keras.

Whatever it was, it becomes an ONNX graph with all its weights in it. Whether the file is what its name says is seen by its first
bytes, so that a checkpoint or an archive is refused by name.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import inliner

from export.files import read_file
from export.importing import conversion
from export.inspection.model_file import read_contract
from export.inspection.model_file import read_model as parse_model_file
from service.errors import LoadError, UserError, first_line
from service.model import model_files
from service.model.repository_layout import MODEL_FILE

ACCEPTED = "accepted are an ONNX file, a folder with one, a program.pt2 of torch.export.save, and a model.keras"

_MAX_MODEL_BYTES = 1 << 31
_EXPORT_FIRST = "export the network first: torch.onnx.export(model.eval(), ...), or torch.export.save"


@dataclass(frozen=True)
class Source:
    """A model as it was found.

    Attributes:
        path: the file or folder that the user named.
        file: the file that holds the graph.
        model: the graph with all its weights.
        digest: SHA-256 of the file, and of its files of weights, in hexadecimal.
        framework: what wrote it, as it says.
    """

    path: Path
    file: Path
    model: onnx.ModelProto
    digest: str
    framework: str


def read_source(path: Path) -> Source:
    """Reads what the user named.

    Raises:
        UserError: it is not there, or is nothing that can be imported; the message says what is accepted.
    """
    file = _file_in(path) if path.is_dir() else path
    head = _head(file)
    kind = _kind(file, head)
    if kind == "program":
        model = conversion.from_torch_program(file)
    elif kind == "keras":
        model = conversion.from_keras(file)
    else:
        return _read_onnx(path, file)
    return Source(path, file, _checked(file, model), hashlib.sha256(read_file(file)).hexdigest(), _framework(model))


def _file_in(folder: Path) -> Path:
    """The ONNX file of a folder: `model.onnx`, or the only one. Raises UserError if there is none, or are several."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix == ".onnx" and path.is_file())
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    named = [path for path in found if path.name == MODEL_FILE] or found
    if not named:
        raise UserError(f"{folder}: the folder holds no ONNX file; {ACCEPTED}")
    if len(named) > 1:
        raise UserError(
            f"{folder}: the folder holds {len(named)} ONNX files ({named[0].name}, {named[1].name}, ...): name one of them"
        )
    return named[0]


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(16)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None


def _kind(file: Path, head: bytes) -> str:
    """`onnx`, `program` or `keras`. Raises UserError for other formats that are known by their first bytes."""
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_archive(file)
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UserError(f"{file}: a pickle, which holds objects of Python and no graph; {_EXPORT_FIRST}; {ACCEPTED}")
    if head.startswith(b"\x89HDF"):
        raise UserError(
            f"{file}: an HDF5 file of Keras; save it as model.keras, or export it: model.export('model.onnx', format='onnx')"
        )
    if head[4:8] in (b"TFL3", b"ORTM"):
        what = (
            "a TensorFlow Lite file: convert it with tf2onnx"
            if head[4:8] == b"TFL3"
            else "a file in ORT format: take its ONNX file"
        )
        raise UserError(f"{file}: {what}; {ACCEPTED}")
    if not head:
        raise UserError(f"{file}: the file is empty; {ACCEPTED}")
    return "onnx"


def _kind_of_archive(file: Path) -> str:
    """Keras and PyTorch both write zip archives."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        raise UserError(f"{file}: a zip archive that is cut short or broken; {ACCEPTED}") from None
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return "keras"
    if any("archive_format" in name or name.startswith(("serialized_exported_program", "models/")) for name in names):
        return "program"
    if any(name.endswith("/code/__torch__.py") or "/code/" in name for name in names):
        raise UserError(f"{file}: a TorchScript archive; {_EXPORT_FIRST}; {ACCEPTED}")
    if any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{file}: a checkpoint of PyTorch, which holds weights and no graph; {_EXPORT_FIRST}; {ACCEPTED}")
    onnx_file = next((name for name in names if name.endswith(".onnx")), None)
    hint = f" (it holds {onnx_file}: unpack it)" if onnx_file else ""
    raise UserError(f"{file}: a zip archive{hint}; {ACCEPTED}")


def _read_onnx(path: Path, file: Path) -> Source:
    try:
        _, model = parse_model_file(file)
    except UserError as error:
        raise UserError(f"{error}; {ACCEPTED}") from None
    if read_contract(file, model) is not None:
        raise UserError(
            f"{file}: a model of Convoy already: copy it into the repository as <model>/<version>/{MODEL_FILE}; nothing was written"
        )
    try:
        content = model_files.read_model(file, inline=True)
    except LoadError as error:
        raise UserError(f"{file}: {error}") from None
    if content.weights or any(tensor.external_data for tensor in model.graph.initializer):
        model = onnx.load_model_from_string(content.graph)
    return Source(path, file, _checked(file, model), content.digest, _framework(model))


def _checked(file: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions of its own. Raises UserError if it is too large for one file, or invalid."""
    if model.ByteSize() >= _MAX_MODEL_BYTES:
        raise UserError(f"{file}: the graph and its weights have 2 GiB or more, and an imported model is one ONNX file below that")
    try:
        return inliner.inline_local_functions(model) if model.functions else model
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file}: not a valid ONNX model ({first_line(error)})") from None


def _framework(model: onnx.ModelProto) -> str:
    return f"{model.producer_name} {model.producer_version}".strip()
