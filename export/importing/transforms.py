"""Translates a transform into a recipe: torchvision's, timm's, or an image processor of Hugging Face.

Steps are known by the names of their classes and by their attributes, so none of these packages is needed here. A step that a
recipe cannot express is refused by name, and never left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from export.importing import hf_processor
from export.importing.assembly import PILLOW_FILTERS, Scaling, Sizes, assemble, of_channels
from export.importing.preprocessor_files import of_timm_config
from export.importing.recipe import Recipe
from service.errors import UserError
from service.model.input_spec import Pad

RESIZES_TENSORS = " (it resizes tensors)"
"""In the source of a recipe: PyTorch resizes tensors by rounding otherwise than Pillow, which the server resizes with."""

_IN_ORDER = "a resize, a centre crop, the conversion to a tensor, and Normalize are accepted, in this order"
_PICTURES = "a resize before the conversion to a tensor is accepted"
_PACKAGES = ("torchvision", "timm", "torch")
_TENSOR_TYPES = ("torch.float32", "torch.uint8")


def of_transforms(transforms: Any, channels: int, height: int = 0, width: int = 0) -> Recipe:
    """The recipe of a transform from a picture, as Pillow opens it, to a tensor.

    Args:
        transforms: a Compose of torchvision (v1 or v2) or of timm, a list of their steps, `weights.transforms()`, or an image
            processor of Hugging Face.
        channels: that the network takes.
        height: that the network takes, in pixels; 0 where it takes any.
        width: likewise.

    Raises:
        UserError: a step cannot be expressed, the result has no fixed size, or it does not fit the network.
    """
    network = Sizes(height, width, channels)
    kind = type(transforms).__name__
    if isinstance(config := getattr(transforms, "pretrained_cfg", None), dict):
        return of_timm_config(kind, config, network)
    if hasattr(transforms, "image_mean") and hasattr(transforms, "to_dict"):
        on_tensors = getattr(transforms, "backend", "pil") == "torchvision" or kind.endswith("Fast")
        source = f"{kind}{RESIZES_TENSORS if on_tensors else ''}"
        return hf_processor.of_settings(source, {**transforms.to_dict(), "image_processor_type": kind}, network)
    translation = _Translation(kind, network)
    for step in _steps(transforms):
        translation.add(step)
    return translation.recipe()


def _steps(transform: Any) -> Iterator[Any]:
    """The steps of a transform, of those in it too."""
    name = type(transform).__name__
    if isinstance(transform, (list, tuple)):
        inner: Any = transform
    elif name == "Compose":
        inner = transform.transforms
    elif name == "Sequential":
        inner = list(transform)
    else:
        yield transform
        return
    for step in inner:
        yield from _steps(step)


@dataclass
class _Translation:
    """What the steps so far have done to a picture.

    Attributes:
        source: the name of the whole, for messages.
        network: what the network takes.
        resize: as of InputSpec.
        filter: as of InputSpec.
        size: (height, width), if every picture has it now.
        crop: whether it was cropped.
        pad: as of InputSpec.
        gray: whether it was turned gray.
        on: `picture`, as Pillow has it, then `bytes`, a tensor of 0 to 255, then `numbers`, a tensor of floats.
        scaling: of the numbers.
    """

    source: str
    network: Sizes
    resize: str = "none"
    filter: str = "bilinear"
    dtype: str = "uint8"
    size: tuple[int, int] | None = None
    crop: bool = False
    pad: Pad = field(default_factory=Pad)
    gray: bool = False
    on: str = "picture"
    scaling: Scaling = field(default_factory=Scaling)
    resized_tensor: bool = False

    def add(self, step: Any) -> None:
        """Follows one step. Raises UserError if it cannot be expressed."""
        name = type(step).__name__
        known = _STEPS.get(name) if type(step).__module__.partition(".")[0] in _PACKAGES else None
        if known is None:
            shown = getattr(step, "__name__", name)
            if "Random" in shown:
                raise self.refusal(shown, "is random, and belongs to training: the transform of evaluation is accepted")
            raise self.refusal(shown, f"cannot be expressed; {_IN_ORDER}")
        known(self, step)

    def refusal(self, step: str, why: str) -> UserError:
        """The error for a step that cannot be followed."""
        return UserError(f"{self.source}: {step} {why}")

    def recipe(self) -> Recipe:
        """What the steps come to."""
        if self.on == "picture":
            raise UserError(
                f"{self.source}: it gives a picture and no tensor; with ToTensor, and Normalize if there is one, it is accepted"
            )
        if self.resize.startswith(("short:", "pad:")) and not self.crop:
            raise UserError(
                f"{self.source}: a resize that keeps the ratio needs a centre crop; without one pictures are of many sizes"
            )
        fields: dict[str, Any] = {
            "resize": self.resize, "filter": self.filter, "crop": "center" if self.crop else None, "dtype": self.dtype,
            "alpha": "drop", "exif": "ignore", "pad": self.pad,
        }  # fmt: skip
        source = f"{self.source}{RESIZES_TENSORS}" if self.resized_tensor else self.source
        return assemble(source, self.network, self.size, self.scaling, gray=self.gray, **fields)

    def resize_to(self, step: str, size: Any, interpolation: Any, antialias: Any) -> None:
        """The picture, or the tensor, is resized: to a short side, or to (height, width)."""
        sides = _sides(size)
        if sides is None:
            raise self.refusal(step, f"to the size {size!r} cannot be expressed; a number or (height, width) is accepted")
        if len(sides) == 1 and self.size is not None and self.size[0] == self.size[1]:
            sides = (sides[0], sides[0])
        if sides == self.size:
            return
        if self.resize != "none" or self.crop:
            raise self.refusal(step, f"after a {'crop' if self.crop else 'resize'} cannot be expressed; {_IN_ORDER}")
        if self.scaling != Scaling(self.scaling.scale):
            raise self.refusal(step, f"after Normalize cannot be expressed; {_IN_ORDER}")
        self.filter = _filter(interpolation)
        if self.filter not in PILLOW_FILTERS:
            raise self.refusal(step, f"with {self.filter} cannot be expressed; accepted are {', '.join(PILLOW_FILTERS)}")
        if self.on != "picture":
            self._resize_tensor(step, antialias)
        self.resize = f"short:{sides[0]}" if len(sides) == 1 else f"stretch:{sides[0]}x{sides[1]}"
        self.size = (sides[0], sides[1]) if len(sides) == 2 else None

    def _resize_tensor(self, step: str, antialias: Any) -> None:
        """Tensors are resized by PyTorch, which rounds otherwise than Pillow; without antialiasing, as TensorFlow does it."""
        self.resized_tensor = True
        if antialias is False or antialias == "warn":
            if self.filter != "bilinear":
                raise self.refusal(
                    step, f"of a tensor with {self.filter} and no antialias cannot be expressed; put it before ToTensor"
                )
            self.filter = "tf-bilinear"
        elif self.filter == "nearest":
            raise self.refusal(step, f"of a tensor with nearest cannot be expressed; {_PICTURES}")
        if self.filter == "tf-bilinear" and self.on == "numbers":
            self.dtype = "float32"

    def crop_to(self, step: str, size: Any) -> None:
        """The middle of the picture is cut out."""
        sides = _sides(size)
        if sides is None:
            raise self.refusal(step, f"to the size {size!r} cannot be expressed; a number or (height, width) is accepted")
        wanted = (sides[0], sides[-1])
        if wanted == self.size:
            return
        if self.crop:
            raise self.refusal(step, f"a second time cannot be expressed; {_IN_ORDER}")
        if self.scaling.mean != (0.0,) and (self.size is None or min(self.size[0] - wanted[0], self.size[1] - wanted[1]) < 0):
            raise self.refusal(step, f"after Normalize may pad with numbers that are no pixels; {_IN_ORDER}")
        self.crop, self.size = True, wanted

    def to_tensor(self) -> None:
        """The picture becomes a tensor of bytes; a tensor stays one."""
        self.on = "bytes" if self.on == "picture" else self.on

    def to_numbers(self, scale: float) -> None:
        """The bytes become floats, divided by `scale`; floats stay."""
        if self.on != "numbers":
            self.on, self.scaling = "numbers", Scaling(scale)


def _sides(size: Any) -> tuple[int, ...] | None:
    """A number as a short side, one or two numbers of a list; else None."""
    sides = (size,) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else ()
    fits = len(sides) in (1, 2) and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    return sides if fits else None


def _filter(interpolation: Any) -> str:
    """The name of a filter, from torchvision's enumeration, Pillow's, its number or its name."""
    value = getattr(interpolation, "value", interpolation)
    if isinstance(value, int) and 0 <= value < len(PILLOW_FILTERS):
        return PILLOW_FILTERS[value]
    return str(value)


def _resize(state: _Translation, step: Any) -> None:
    if getattr(step, "max_size", None) is not None:
        raise state.refusal("Resize", "with max_size cannot be expressed")
    state.resize_to("Resize", step.size, step.interpolation, getattr(step, "antialias", True))


def _center_crop(state: _Translation, step: Any) -> None:
    state.crop_to("CenterCrop", step.size)


def _resize_keep_ratio(state: _Translation, step: Any) -> None:
    """Of timm's crop_mode `border`: the whole picture, as large as fits into a size."""
    if step.longest != 1 or any(getattr(step, "random_" + what + "_prob", 0) for what in ("scale", "aspect")):
        raise state.refusal("ResizeKeepRatio", "to a size that is not square cannot be expressed; with longest=1 it is accepted")
    state.resize_to("ResizeKeepRatio", tuple(step.size), step.interpolation, True)
    assert state.size is not None  # noqa: S101 - of two numbers
    state.resize, state.size = f"pad:{state.size[0]}x{state.size[1]}", None


def _center_crop_or_pad(state: _Translation, step: Any) -> None:
    fill = tuple(step.fill) if isinstance(step.fill, (list, tuple)) else (step.fill,) * 3
    known = len(fill) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in fill)
    if not known or step.padding_mode != "constant":
        raise state.refusal("CenterCropOrPad", f"with a border of {step.fill} cannot be expressed; 0 to 255 by channel is accepted")
    if any(fill) and not state.resize.startswith("pad:"):
        raise state.refusal("CenterCropOrPad", "with a border that is not black cannot be expressed but after ResizeKeepRatio")
    state.pad = Pad(color=(fill[0], fill[1], fill[2]))
    state.crop_to("CenterCropOrPad", step.size)


def _to_tensor(state: _Translation, step: Any) -> None:
    state.to_tensor()
    of_timm = type(step).__module__.startswith("timm.")  # its ToTensor does not scale
    state.to_numbers(1.0 if of_timm and type(step).__name__ == "ToTensor" else 255.0)


def _pil_to_tensor(state: _Translation, _step: Any) -> None:
    state.to_tensor()


def _to_dtype(state: _Translation, step: Any) -> None:
    name = type(step).__name__
    dtype = step.dtype
    if isinstance(dtype, dict):
        raise state.refusal(name, "with a dtype for each kind of value cannot be expressed; torch.float32 is accepted")
    if state.on == "picture":
        raise state.refusal(name, f"before the conversion to a tensor cannot be expressed; {_IN_ORDER}")
    if str(dtype) not in _TENSOR_TYPES or (str(dtype) == "torch.uint8" and state.on == "numbers"):
        raise state.refusal(name, f"to {dtype} cannot be expressed; torch.float32 is accepted")
    if str(dtype) == "torch.float32":
        state.to_numbers(255.0 if getattr(step, "scale", True) else 1.0)


def _normalize(state: _Translation, step: Any) -> None:
    if state.on != "numbers":
        raise state.refusal("Normalize", f"before the conversion to floats cannot be expressed; {_IN_ORDER}")
    channels = state.network.channels
    mean = of_channels(state.source, "the mean of Normalize", step.mean, channels)
    std = of_channels(state.source, "the std of Normalize", step.std, channels)
    state.scaling = state.scaling.normalized(mean, std)


def _grayscale(state: _Translation, step: Any) -> None:
    if step.num_output_channels not in (1, 3):
        raise state.refusal("Grayscale", f"to {step.num_output_channels} channels cannot be expressed; to 1 or 3 is accepted")
    if state.on != "picture" or state.resize != "none":
        raise state.refusal(
            "Grayscale", "after the resize cannot be expressed: pictures become gray first, and so it must come first"
        )
    if step.num_output_channels != state.network.channels:
        raise state.refusal(
            "Grayscale", f"gives {step.num_output_channels} channels, and the network takes {state.network.channels}"
        )
    state.gray = True


def _image_classification(state: _Translation, step: Any) -> None:
    """What `weights.transforms()` of torchvision gives."""
    state.resize_to("ImageClassification", step.resize_size, step.interpolation, True)
    state.crop_to("ImageClassification", step.crop_size)
    state.to_tensor()
    state.to_numbers(255.0)
    _normalize(state, step)


def _rgb(state: _Translation, _step: Any) -> None:
    if state.network.channels != 3:
        raise state.refusal("RGB", f"gives three channels, and the network takes {state.network.channels}")


def _nothing(_state: _Translation, _step: Any) -> None:
    pass


_STEPS: dict[str, Callable[[_Translation, Any], None]] = {
    "Resize": _resize,
    "CenterCrop": _center_crop,
    "ResizeKeepRatio": _resize_keep_ratio,
    "CenterCropOrPad": _center_crop_or_pad,
    "ToTensor": _to_tensor,
    "MaybeToTensor": _to_tensor,
    "PILToTensor": _pil_to_tensor,
    "MaybePILToTensor": _pil_to_tensor,
    "ToImage": _pil_to_tensor,
    "ToImageTensor": _pil_to_tensor,
    "ToPureTensor": _nothing,
    "ToDtype": _to_dtype,
    "ConvertImageDtype": _to_dtype,
    "ConvertDtype": _to_dtype,
    "Normalize": _normalize,
    "Grayscale": _grayscale,
    "RGB": _rgb,
    "ImageClassification": _image_classification,
    "Identity": _nothing,
}
