"""The contract: what a model says of itself, as JSON in the ONNX file's `metadata_props["convoy.contract"]`.

Export writes it, the server reads it, and nothing else knows its form. It makes one file the whole release: input size and
preprocessing, labels, where the weights came from, and golden samples that prove a provider computes what training computed.
"""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import InvalidModel

METADATA_KEY = "convoy.contract"
INPUT_NAME = "image"
PROBABILITIES_NAME = "probabilities"
LOGITS_NAME = "logits"

ProviderName = Literal["cpu", "cuda", "tensorrt", "openvino"]


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
    """

    data: str
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
    """A picture, the probabilities that PyTorch gave for it, and how far a provider may be off."""

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
    def from_json(cls, text: str | bytes) -> "Contract":
        """Reads and checks a contract; raises InvalidModel with the first thing wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "the whole"
            raise InvalidModel(f"contract: {where}: {first['msg']}") from None
