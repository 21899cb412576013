"""The contract: what a model says of itself, as JSON in the ONNX file's `metadata_props["convoy.contract"]`.

Export writes it, the server reads it, and nothing else knows its form. It makes one file the whole release: input size and
preprocessing, labels, where the weights came from, and golden samples that prove a provider computes what training computed.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import InvalidModel
from service.model.providers import ProviderName

METADATA_KEY = "convoy.contract"
INPUT_NAME = "image"
PROBABILITIES_NAME = "probabilities"
LOGITS_NAME = "logits"

MAX_GOLDEN_PIXELS = 1 << 24
"""Of a golden sample's picture, which every server decodes that loads the model."""

_METADATA_PROPS = 14  # of onnx.ModelProto: messages of a key (1) and a value (2)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Part):
    """The picture that the network takes, uint8[H,W,C], and how any picture is brought to it."""

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3]
    resize: Literal["bilinear"] = "bilinear"
    fit: Literal["stretch", "crop", "pad"] = "stretch"

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one picture as raw pixels."""
        return self.height * self.width * self.channels


class Training(_Part):
    """Where the weights came from, and how good they are.

    `accuracy` is a fraction of the test part and `calibration_error` its expected calibration error, both measured through the
    file as it is served. `temperature` is what the network's logits were divided by, inside the graph; 1 if nothing was fitted.
    `data_digest` tells whether the data still are what they were. What a later export has to say beside does no harm.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    data: str
    data_digest: str = ""
    network: str
    epochs: int = Field(ge=0)
    seed: int
    accuracy: float | None = Field(default=None, ge=0, le=1)
    accuracy_interval: tuple[float, float] | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    calibration_error: float | None = Field(default=None, ge=0, le=1)
    versions: dict[str, str] = {}
    commit: str | None = None


class Golden(_Part):
    """A picture, the probabilities that were found for it at export, and how far a provider may be off.

    They are PyTorch's, or, for a precision below fp32, the file's own on the CPU: how far that is from PyTorch is the export's
    business, and what a server proves with them is that it computes what was exported.
    """

    image_png: Base64Bytes
    probabilities: tuple[float, ...]
    tolerance: dict[ProviderName, Annotated[float, Field(gt=0, lt=1)]]


class Contract(_Part):
    """All that a model says of itself."""

    # `schema` in the JSON; pydantic's own BaseModel.schema has the name in Python.
    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    input: InputSpec
    labels: tuple[str, ...] = Field(min_length=2)
    head: Literal["softmax", "sigmoid"]
    precision: Literal["fp32", "int8", "fp16"]
    training: Training
    golden: tuple[Golden, ...] = Field(max_length=4)

    @model_validator(mode="after")
    def _consistent(self) -> "Contract":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels are not unique")
        for sample in self.golden:
            if len(sample.probabilities) != len(self.labels):
                raise ValueError(f"a golden sample has {len(sample.probabilities)} probabilities for {len(self.labels)} labels")
        return self

    def to_json(self) -> str:
        """The text that goes into the ONNX file."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def of_file(cls, path: Path) -> "Contract | None":
        """The contract in an ONNX file, read without an engine; None if it has none.

        Raises:
            OSError: the file cannot be read.
            InvalidModel: it is no ONNX file, or its contract is not one.
        """
        try:
            for number, data in _fields(path.read_bytes()):
                if number == _METADATA_PROPS:
                    entry = dict(_fields(data))
                    if entry.get(1) == METADATA_KEY.encode():
                        return cls.from_json(entry.get(2, b""))
        except DecodeError:
            raise InvalidModel("not an ONNX file") from None
        return None

    @classmethod
    def from_json(cls, text: str | bytes) -> "Contract":
        """Reads and checks a contract; raises InvalidModel with the first thing wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "the whole"
            raise InvalidModel(f"contract: {where}: {first['msg']}") from None


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message of any type: number, and bytes or a number."""
    fields: Any = UnknownFieldSet(Empty.FromString(message))
    for field in fields:
        yield field.field_number, field.data
