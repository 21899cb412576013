"""The contract of a model: JSON in the ONNX file's `metadata_props["convoy.contract"]`.

Export writes it and the server reads it. It makes one file the whole release: input size and preprocessing, labels, provenance, and
golden samples that prove that a provider computes what training computed.
"""

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import InvalidModel
from service.model.providers import ProviderName

METADATA_KEY = "convoy.contract"
INPUT_NAME = "image"
PROBABILITIES_NAME = "probabilities"
LOGITS_NAME = "logits"

MAX_GOLDEN_PIXELS = 1 << 24
"""Limit for a golden sample's image, which is decoded whenever the model is loaded."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Part):
    """The network's input, uint8[H,W,C], and how an image of any size is fitted to it."""

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
        """Bytes of one image as raw pixels."""
        return self.height * self.width * self.channels


class Training(_Part):
    """Where the weights came from, and how good they are.

    `accuracy` is the fraction correct of the test set and `calibration_error` its expected calibration error, both measured on the
    exported file. `temperature` is the calibration temperature inside the graph; 1 if none was fitted. `data_digest` shows whether
    the data have changed since. Unknown fields, of a later version, are ignored.
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
    """An image, its probabilities at export, and the largest difference allowed to each provider.

    The probabilities are PyTorch's; below fp32 they are the exported file's own on the CPU, as a server proves only that it
    computes what was exported. How far those are from PyTorch is checked by the export.
    """

    image_png: Base64Bytes
    probabilities: tuple[float, ...]
    tolerance: dict[ProviderName, Annotated[float, Field(gt=0, lt=1)]]


class Contract(_Part):
    """What a model takes and gives, where it came from, and how to check it."""

    # `schema` in the JSON, which is the name of a method of BaseModel.
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
    def of_model(cls, model: Any) -> "Contract | None":
        """The contract in what `onnx_messages.parse_model` returns; None if it has none. Raises InvalidModel if it is invalid."""
        entries = model.metadata_props
        return next((cls.from_json(entry.value) for entry in entries if entry.key == METADATA_KEY.encode()), None)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Contract":
        """Parses and validates; raises InvalidModel with the first error."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "the whole"
            raise InvalidModel(f"contract: {where}: {first['msg']}") from None
