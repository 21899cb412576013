"""A model's input, and how a picture of any size becomes it. What it says, `preprocessing` does."""

from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_RESIZED_SIDE = 8192
"""In pixels, of a picture once it is resized."""

Filter = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming", "tf-bilinear", "cv2-linear"]
_Byte = Annotated[int, Field(ge=0, le=255)]


class Part(BaseModel):
    """A part of a contract: it cannot be changed, and has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Pad(Part):
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


class InputSpec(Part):
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
