"""The contract of a model: JSON in the ONNX file's `metadata_props["convoy.contract"]`.

Export writes it and the server reads it. It makes one file the whole release: input size and preprocessing, labels, provenance, and
golden samples that prove that a provider computes what training computed.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from service.errors import InvalidModel, first_line
from service.model.providers import ProviderName

METADATA_KEY = "convoy.contract"
PRODUCER = "convoy"
"""What a file with a contract names as its producer. One that has lost its contract since is known by it."""

INPUT_NAME = "image"
PROBABILITIES_NAME = "probabilities"
LOGITS_NAME = "logits"

MAX_GOLDEN_PIXELS = 1 << 24
"""Limit for a golden sample's image, which is decoded whenever the model is loaded."""

MAX_RESIZED_SIDE = 8192
"""In pixels, of a picture once it is resized."""

MAX_HEADS = 16

Filter = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming", "tf-bilinear", "cv2-linear"]
_Byte = Annotated[int, Field(ge=0, le=255)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pad(_Part):
    """The border around a picture that `resize = "pad"` leaves smaller than the input.

    `color` is that of RGB, or of gray its first number. `align` is where the picture is: in the middle, or at the top left.
    """

    color: tuple[_Byte, _Byte, _Byte] = (0, 0, 0)
    align: Literal["center", "start"] = "center"


class Resizing(NamedTuple):
    """What `InputSpec.resize` says.

    Attributes:
        mode: `stretch` to the size; `short`, the shorter side to `height`; `pad`, into the size, with a border; `cover`, over the
            size, with what is too much cut off; or `none`.
        height: in pixels; 0 for `none`.
        width: in pixels; the same as `height` for `short`.
    """

    mode: Literal["stretch", "short", "pad", "cover", "none"]
    height: int
    width: int


class InputSpec(_Part):
    """The network's input, [H,W,C], and how a picture of any size becomes it: decoded, resized, cropped.

    Attributes:
        height: in pixels, as `width`.
        channels: 1 for gray, 3 for RGB.
        dtype: `float32` keeps what a resize gives between two integers, as TensorFlow does; the values are 0 to 255 all the same.
        resize: `stretch`, `pad` or `cover`, with `:HxW` if that is not the input's own size; `short:N`; or `none`.
        filter: of the resize, as Pillow names it; or TensorFlow's or OpenCV's bilinear one, which do not antialias.
        crop: what is cut of a picture that is larger than the input once resized. `center` rounds as torchvision does, and adds
            black where the picture is smaller; `center-floor` rounds down, as Hugging Face and Keras do. Without one, the resize
            must give the size.
        pad: of `resize = "pad"`.
        alpha: transparent pixels are shown over white, or their alpha is dropped, as by Pillow's `convert("RGB")`.
        exif: whether a picture is turned as its EXIF orientation says.
    """

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: Literal[1, 3]
    dtype: Literal["uint8", "float32"] = "uint8"
    resize: str = Field(default="stretch", pattern=r"^(none|short:[1-9]\d{0,3}|(stretch|pad|cover)(:[1-9]\d{0,3}x[1-9]\d{0,3})?)$")
    filter: Filter = "bilinear"
    crop: Literal["center", "center-floor"] | None = None
    pad: Pad = Pad()
    alpha: Literal["white", "drop"] = "white"
    exif: Literal["apply", "ignore"] = "apply"

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.height, self.width, self.channels

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of one image as the graph takes it."""
        return self.height * self.width * self.channels * (4 if self.dtype == "float32" else 1)

    @cached_property
    def resizing(self) -> Resizing:
        """`resize`, parsed."""
        mode, _, size = self.resize.partition(":")
        if mode == "none":
            return Resizing("none", 0, 0)
        if mode == "short":
            return Resizing("short", int(size), int(size))
        height, width = map(int, size.split("x")) if size else (self.height, self.width)
        return Resizing(cast("Any", mode), height, width)

    @cached_property
    def pixels_bytes(self) -> int:
        """Bytes of one image as raw pixels, uint8[H,W,C]."""
        return self.height * self.width * self.channels

    @cached_property
    def fitting(self) -> str:
        """How a picture of another size or shape becomes the input, in words: "stretched, bilinear"."""
        mode, height, width = self.resizing
        size = "" if (height, width) == (self.height, self.width) else f" to {height}x{width}"
        words = {
            "stretch": f"stretched{size}",
            "short": f"shorter side to {height}",
            "pad": f"padded{size}" + (f" with {self.pad.color}" if any(self.pad.color) else ""),
            "cover": f"cropped{size}",
            "none": "not resized",
        }
        return f"{words[mode]}{'' if mode == 'none' else f', {self.filter}'}{', center crop' if self.crop else ''}"

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, content: Any) -> Any:
        """Schema 1 had the filter as `resize`, and a `fit`. So have older checkpoints."""
        if not isinstance(content, dict) or "fit" not in content:
            return content
        content = dict(content)
        fit = content.pop("fit")
        return content | {"resize": "cover" if fit == "crop" else fit, "filter": content.get("resize", "bilinear")}

    @model_validator(mode="after")
    def _consistent(self) -> "InputSpec":
        mode, height, width = self.resizing
        if max(height, width) > MAX_RESIZED_SIDE:
            raise ValueError(f"resize: at most {MAX_RESIZED_SIDE} pixels a side are accepted")
        if self.crop is None and mode != "none" and (mode == "short" or (height, width) != (self.height, self.width)):
            raise ValueError(f"{self.resize} does not give {self.height}x{self.width}: a crop is needed")
        return self


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


class Origin(_Part):
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
    versions: dict[str, str] = {}
    pixels: str = ""
    data: str = ""
    data_digest: str = ""
    accuracy: float | None = Field(default=None, ge=0, le=1)
    accuracy_interval: tuple[float, float] | None = None
    calibration_error: float | None = Field(default=None, ge=0, le=1)


class Head(_Part):
    """One answer of a model: a probability for each of its labels.

    Attributes:
        name: for answers; that of the first is its output's.
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
        if (self.activation == "multilabel") != (self.threshold is not None):
            raise ValueError("a threshold belongs to multilabel, and only there")
        return self


class Golden(_Part):
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


class Contract(_Part):
    """What a model takes and gives, where it came from, and how to check it.

    The graph gives the probabilities of each head, and `logits` float32[N,K] for the first one, whose output is `probabilities`.
    `batch_items` is 0 unless the graph takes batches of exactly so many items. Of `training` and `origin` there is one.
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
        return self.model_dump_json(by_alias=True)

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
