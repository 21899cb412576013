"""Reads an ONNX file: its graph, contract and digest, and the table of its layers. Needs neither PyTorch nor ONNX Runtime."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner

from export.files import read_file
from export.inspection.layers import Layer, layer_table
from export.inspection.outputs import Output, outputs
from service.errors import InvalidModel, LoadError, UserError, first_line
from service.model import model_files
from service.model.contract import METADATA_KEY, Contract

_FIRST_FIELD = b"\x08"  # ir_version
_WHOLE_NUMBER, _BYTES = 0, 2
_MODEL_FIELDS = {field.number for field in onnx.ModelProto.DESCRIPTOR.fields}
_INVALID = (
    DecodeError, ValueError, IndexError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError
)  # fmt: skip
"""Raised by onnx for a file that is no ONNX model, and for nodes that lack inputs."""


@dataclass(frozen=True)
class Inspection:
    """What a file says without being run.

    Attributes:
        layers: in graph order.
        parameters: elements of all weights, each weight counted once.
        statistics: how many of them are running means and variances.
        macs: multiply-accumulates for one image, without the layers for which they are unknown.
        contract: None for a file that Convoy did not write.
        digest: as a server has it: SHA-256 of the file and its external weights, in hexadecimal; empty if these cannot be read.
        size_bytes: size of the file, without external weights.
        external: names of the files beside it that hold weights.
        problem: why the external weights cannot be read; empty if they can.
        decodes: whether the graph takes uint8[n], of any length: the bytes of a picture file.
        outputs: what the graph gives; of a file without a contract, which says that itself.
    """

    layers: list[Layer]
    parameters: int
    statistics: int
    macs: int
    contract: Contract | None
    digest: str
    size_bytes: int
    external: tuple[str, ...] = ()
    problem: str = ""
    decodes: bool = False
    outputs: tuple[Output, ...] = ()


def inspect(path: Path) -> Inspection:
    """Reads a model file. External weights may be missing: the graph says how large they are.

    Raises:
        UserError: the file cannot be read or is not an ONNX model.
        InvalidModel: its contract is not valid.
    """
    content, model = read_model(path)
    contract = read_contract(path, model)
    digest = problem = ""
    try:
        digest = model_files.read_model(path).digest
    except LoadError as error:
        problem = str(error)
    with _invalid_is_user_error(path):
        inlined = inliner.inline_local_functions(model)
        layers = layer_table(inlined, has_contract=contract is not None)
    return Inspection(
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        statistics=sum(layer.statistics for layer in layers),
        macs=sum(layer.macs or 0 for layer in layers),
        contract=contract,
        digest=digest,
        size_bytes=len(content),
        external=tuple(str(file.relative_to(path.parent)) for file in model_files.weights_files(path)),
        problem=problem,
        decodes=_takes_a_file(inlined),
        outputs=() if contract is not None else outputs(inlined),
    )


def _takes_a_file(model: onnx.ModelProto) -> bool:
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = [value.type.tensor_type for value in model.graph.input if value.name not in weights]
    if len(taken) != 1 or taken[0].elem_type != onnx.TensorProto.UINT8 or len(taken[0].shape.dim) != 1:
        return False
    return not taken[0].shape.dim[0].HasField("dim_value")


def read_model(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """A model file's bytes, and the model parsed from them. Raises UserError as `inspect` does."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected an ONNX file, such as `convoy export` makes from a run")
    content = read_file(path)
    with _invalid_is_user_error(path, content):
        model = onnx.load_model_from_string(content)
        if not model.ir_version or not model.graph.node:
            raise ValueError("it has no layers")
    return content, model


def read_contract(path: Path, model: onnx.ModelProto) -> Contract | None:
    """The contract in a model that was read from `path`, None if it has none. Raises InvalidModel if it is not valid."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    try:
        return None if text is None else Contract.from_json(text)
    except InvalidModel as error:
        raise InvalidModel(f"{path}: {error}") from None


@contextmanager
def _invalid_is_user_error(path: Path, content: bytes = b"") -> Iterator[None]:
    try:
        yield
    except _INVALID as error:
        hint = ": the file is cut short, copy or download it again" if _ends_within_a_field(content) else ""
        raise UserError(f"{path}: not a valid ONNX model ({first_line(error)}){hint}") from None


def _ends_within_a_field(content: bytes) -> bool:
    """Whether a file begins as a ModelProto does, with its version, and ends before the end of one of its fields."""
    at = 0
    if not content.startswith(_FIRST_FIELD):
        return False
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if tag >> 3 not in _MODEL_FIELDS or kind not in (_WHOLE_NUMBER, _BYTES):
            return False
        length, at = _varint(content, at)
        at += length if kind == _BYTES else 0
    return at > len(content)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf's wire format, and where the next begins: beyond the content if that ends within it."""
    value = shift = 0
    while at < len(content) and content[at] & 0x80:
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    if at >= len(content):
        return _FIRST_FIELD[0] | _BYTES, len(content) + 1
    return value | content[at] << shift, at + 1
