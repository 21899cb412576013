"""The contract of a model: JSON in the ONNX file's `metadata_props["convoy.contract"]`.

Export writes it and the server reads it. It makes one file the whole release: input size and preprocessing, labels, provenance, and
golden samples that prove that a provider computes what training computed.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import from_json

from service.errors import InvalidModel, first_line
from service.model.input_spec import InputSpec, Part
from service.model.providers import ProviderName

METADATA_KEY = "convoy.contract"
PRODUCER = "convoy"
"""What a file with a contract names as its producer. One that has lost its contract since is known by it."""

INPUT_NAME = "image"
PROBABILITIES_NAME = "probabilities"
LOGITS_NAME = "logits"
ACTIVATIONS_NAME = "activations"
CLASS_WEIGHTS_NAME = "class_weights"
EMBEDDING_NAME = "embedding"

MAX_GOLDEN_PIXELS = 1 << 24
"""Limit for a golden sample's image, which is decoded whenever the model is loaded."""

MAX_HEADS = 16


class Training(Part):
    """Where the weights came from, and how good they are.

    `accuracy` is the fraction correct of the test set and `calibration_error` its expected calibration error, both measured on the
    exported file. `parameters` counts the weights of the trained network; None where older versions did not write it. The file can
    have fewer: the export folds batch norms into convolutions. `temperature` is the calibration temperature inside the graph; 1 if
    none was fitted. `data_digest` shows whether the data have changed since. Unknown fields, of a later version, are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    data: str
    data_digest: str = ""
    network: str
    epochs: int = Field(ge=0)
    parameters: int | None = Field(default=None, ge=0)
    seed: int
    accuracy: float | None = Field(default=None, ge=0, le=1)
    accuracy_interval: tuple[float, float] | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    calibration_error: float | None = Field(default=None, ge=0, le=1)
    versions: dict[str, str] = Field(default={})
    commit: str | None = None


class Origin(Part):
    """Where an imported model came from.

    Attributes:
        source: the name of the file or folder.
        digest: SHA-256 of it, in hexadecimal.
        framework: what wrote it, as it says, such as `pytorch 2.13.0`.
        command: what imported it.
        versions: of the software that imported it, by package.
        pixels: how it was shown that the server sees the pixels that training saw; empty if it was not.
        data: the labelled pictures that it was measured on; empty if there were none.
        data_digest: shows whether these have changed since.
        accuracy: fraction of them that it gets right, with its 95 % confidence interval and its expected calibration error.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str
    digest: str
    framework: str = ""
    command: str = ""
    versions: dict[str, str] = Field(default={})
    pixels: str = ""
    data: str = ""
    data_digest: str = ""
    accuracy: float | None = Field(default=None, ge=0, le=1)
    accuracy_interval: tuple[float, float] | None = None
    calibration_error: float | None = Field(default=None, ge=0, le=1)


class Head(Part):
    """One answer of a model: a probability for each of its labels.

    Attributes:
        name: for answers; that of an only one is its output's.
        output: the graph's output that holds the probabilities, float32[N,K].
        labels: their names.
        activation: what made probabilities of the network's numbers. `softmax`: one label is true. `sigmoid`: one of two labels is,
            by one number, which is the probability of the second. `multilabel`: each label is true or not, by itself.
        threshold: of `multilabel`: from this probability on, a label is taken as true.
    """

    name: str
    output: str
    labels: tuple[str, ...] = Field(min_length=1)
    activation: Literal["softmax", "sigmoid", "multilabel"]
    threshold: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Head":
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels are not unique")
        if len(self.labels) < 2 and self.activation != "multilabel":
            raise ValueError(f"{self.activation} needs two labels or more")
        if self.activation == "sigmoid" and len(self.labels) != 2:
            raise ValueError(f"sigmoid is of two labels, and there are {len(self.labels)}")
        if (self.activation == "multilabel") != (self.threshold is not None):
            raise ValueError("a threshold belongs to multilabel, and only there")
        return self


class Golden(Part):
    """A picture, what is expected of it, and the largest difference allowed to each provider.

    The probabilities are those of the source, such as PyTorch's; below fp32 they are the file's own on the CPU, as a server proves
    only that it computes what was exported. How far those are from the source is checked by the export.

    Attributes:
        image: an encoded picture, lossless: versions of libjpeg decode a JPEG slightly differently.
        pixels_sha256: of what it becomes, [H,W,C] of the input's dtype, in hexadecimal; not checked if empty.
        probabilities: a row for each head.
        tolerance: by provider.
    """

    image: Base64Bytes
    pixels_sha256: str = ""
    probabilities: tuple[tuple[float, ...], ...]
    tolerance: dict[ProviderName, Annotated[float, Field(gt=0, lt=1)]]


class Contract(Part):
    """What a model takes and gives, where it came from, and how to check it.

    The graph gives the probabilities of each head, and `logits` float32[N,K] for the first one, whose output is `probabilities`.
    `batch_items` is 0 unless the graph takes batches of exactly so many items. Of `training` and `origin` there is one.

    If there are `activations`, the network ends in global average pooling, and the graph gives also the `activations`
    float32[N,C,h,w] before it, here as (C, h, w), and the `class_weights` float32[K,C] after it; without these the C channels are
    the K classes. If there is an `embedding`, the graph gives what its last linear layer takes, float32[N,embedding].
    """

    # `schema` in the JSON, which is the name of a method of BaseModel.
    schema_version: Literal[2] = Field(default=2, alias="schema")
    name: str
    input: InputSpec
    heads: tuple[Head, ...] = Field(min_length=1, max_length=MAX_HEADS)
    precision: Literal["fp32", "int8", "fp16"]
    batch_items: int = Field(default=0, ge=0, le=4096)
    training: Training | None = None
    origin: Origin | None = None
    activations: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    embedding: PositiveInt | None = None
    golden: tuple[Golden, ...] = Field(max_length=4)

    @model_validator(mode="after")
    def _consistent(self) -> "Contract":
        if self.heads[0].output != PROBABILITIES_NAME:
            raise ValueError(f"the first head's output is not named {PROBABILITIES_NAME!r}")
        for what in ("name", "output"):
            given = [getattr(head, what) for head in self.heads]
            if len(set(given)) != len(given):
                raise ValueError(f"two heads have the same {what}")
        if LOGITS_NAME in [head.output for head in self.heads]:
            raise ValueError(f"a head's output is named {LOGITS_NAME!r}, as the logits of the first are")
        if self.hidden_outputs & {head.output for head in self.heads}:
            raise ValueError("a head's output has the name of a hidden output")
        if (self.training is None) == (self.origin is None):
            raise ValueError("one of training and origin is needed")
        for sample in self.golden:
            expected, found = [len(head.labels) for head in self.heads], [len(row) for row in sample.probabilities]
            if found != expected:
                raise ValueError(f"a golden sample has {found} probabilities for {expected} labels")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of the first head."""
        return self.heads[0].labels

    @property
    def head(self) -> str:
        """The activation of the first head."""
        return self.heads[0].activation

    @property
    def hidden_outputs(self) -> set[str]:
        """The outputs that the graph gives only to those who ask for them."""
        given = {ACTIVATIONS_NAME, CLASS_WEIGHTS_NAME} if self.activations else set()
        return given | ({EMBEDDING_NAME} if self.embedding else set())

    @property
    def measured(self) -> "Training | Origin":
        """Whichever there is: both hold accuracy, its interval and the calibration error."""
        found = self.training or self.origin
        assert found is not None  # noqa: S101 - validated
        return found

    @property
    def temperature(self) -> float:
        """The calibration temperature inside the graph."""
        return self.training.temperature if self.training else 1.0

    @property
    def seed(self) -> int:
        """That of the training; 0 for a model that came from elsewhere."""
        return self.training.seed if self.training else 0

    def to_json(self) -> str:
        """The text that goes into the ONNX file."""
        unset = {name for name in ("activations", "embedding") if getattr(self, name) is None}  # older servers do not know them
        return self.model_dump_json(by_alias=True, exclude=unset)

    @classmethod
    def of_model(cls, model: Any) -> "Contract | None":
        """The contract in what `onnx_messages.parse_model` returns; None if it has none. Raises InvalidModel if it is invalid."""
        entries = model.metadata_props
        return next((cls.from_json(entry.value) for entry in entries if entry.key == METADATA_KEY.encode()), None)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Contract":
        """Parses and validates, of schema 2 or 1; raises InvalidModel with the first error."""
        try:
            return cls.model_validate(_as_schema_2(from_json(text)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "the whole"
            raise InvalidModel(f"contract: {where}: {first['msg']}") from None
        except ValueError as error:
            raise InvalidModel(f"contract: the whole: Invalid JSON: {first_line(error)}") from None


def own_head(labels: Sequence[str], activation: Literal["softmax", "sigmoid", "multilabel"] = "softmax") -> Head:
    """The one head of a network that Convoy trained."""
    return Head(name=PROBABILITIES_NAME, output=PROBABILITIES_NAME, labels=tuple(labels), activation=activation)


def _as_schema_2(content: Any) -> Any:
    """A contract of schema 1 with the fields of schema 2. What is not as it should be is left to validation."""
    if not isinstance(content, dict) or content.get("schema", 1) != 1:
        return content
    content = {**content, "schema": 2}
    content["heads"] = [
        {"name": PROBABILITIES_NAME, "output": PROBABILITIES_NAME, "labels": content.pop("labels", None),
         "activation": content.pop("head", None)}
    ]  # fmt: skip
    if isinstance(taken := content.get("input"), dict):
        content["input"] = {"fit": "stretch"} | taken
    if isinstance(samples := content.get("golden"), list):
        content["golden"] = [
            {"image": sample.get("image_png"), "probabilities": [sample.get("probabilities")], "tolerance": sample.get("tolerance")}
            if isinstance(sample, dict)
            else sample
            for sample in samples
        ]
    return content
