"""What the user says of the preprocessing, put together with what the file says: one `Recipe`.

A preset, or a file of a framework, says all of it. Flags beside it change how a picture becomes pixels, as networks of one family
differ in that; the numbers of a preset are its own, and a flag that contradicts them is refused.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from export.data.input_choice import RESIZE, check_crop_pct, crop_pct_resize, parse_resize
from export.importing import preprocessor_files, presets
from export.importing.file_metadata import FileMetadata
from export.importing.network_input import NetworkInput
from export.importing.recipe import Recipe
from service.errors import UserError
from service.model.input_spec import InputSpec

_WHITE = 255
_UNIT_SLACK = 1.5
"""Some divide by 256, or by a little more than there can be."""
_WAYS = (
    "--preset or --preprocessor names a known one; --scale (255, or 1) with --mean and --std says it; "
    "--search-preprocessing --data DIR tries the usual ones"
)


@dataclass(frozen=True)
class RecipeOptions:
    """The flags; None where one is not given. `mean` and `std` are in units after `scale`, one number or one a channel."""

    preset: str | None = None
    preprocessor: Path | None = None
    resize: str | None = None
    filter: str | None = None
    crop: int | None = None
    crop_pct: float | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: Literal["rgb", "bgr", "gray"] | None = None
    pad_color: tuple[int, int, int] | None = None
    pad_align: str | None = None
    alpha: str | None = None
    exif: str | None = None

    def recipe(self, network: NetworkInput, found: FileMetadata) -> Recipe:
        """The recipe for a network; its sides are 0 where they are open and nothing else says them.

        Raises:
            UserError: the flags contradict each other or the network, or nothing says how pixels are scaled.
        """
        self._check()
        try:
            base = self._base(network, found)
            spec = InputSpec.model_validate(base.input.model_dump() | self._input_changes(base.input))
        except ValidationError as error:
            raise UserError(_first_error(error)) from None
        self._check_use(spec, base)
        numbers = {
            "scale": self.scale if self.scale is not None else base.scale,
            "mean": self._by_channel("--mean", self.mean, network.channels) if self.mean is not None else base.mean,
            "std": self._by_channel("--std", self.std, network.channels) if self.std is not None else base.std,
            "channel_order": self.channels if self.channels in ("rgb", "bgr") else base.channel_order,
        }
        if self._named():
            _refuse_contradictions(base, numbers, self)
        elif self.scale is not None:
            _refuse_other_units(self.scale, self.mean or (), self.std or ())
        changed = " and flags" if spec != base.input and base.source else ""
        return Recipe(input=spec, source=(base.source or "flags") + changed, **numbers)  # type: ignore[arg-type]

    def _named(self) -> bool:
        return self.preset is not None or self.preprocessor is not None

    def _check(self) -> None:
        if self.preset is not None and self.preprocessor is not None:
            raise UserError("--preset and --preprocessor both say how pictures are prepared: one of them is accepted")
        check_crop_pct(self.crop_pct, self.crop, self.resize)
        if (self.crop is not None) and self.resize is None and not self._named():
            raise UserError(f"--crop {self.crop} needs --resize ({RESIZE}): what is cut is cut of a resized picture")
        if (self.mean is not None or self.std is not None) and self.scale is None and not self._named():
            raise UserError("--mean and --std are in units after --scale: give it too, 255 for a mean such as 0.485, 1 for 123.7")
        if self.scale is not None and not self.scale > 0:
            raise UserError(f"--scale {self.scale:g}: a number above 0 is accepted, such as 255")
        if self.std is not None and 0 in self.std:
            raise UserError("--std: 0 is not accepted, as it is divided by")

    def _check_use(self, spec: InputSpec, base: Recipe) -> None:
        """Raises UserError for flags that would change nothing."""
        if (self.pad_color is not None or self.pad_align is not None) and spec.resizing.mode != "pad":
            flag = "--pad-align" if self.pad_color is None else "--pad-color"
            raise UserError(f"{flag} is of the border that --resize pad makes, and the resize is {spec.resize}")
        if self.channels in ("rgb", "bgr") and base.input.channels == 1:
            raise UserError(f"--channels {self.channels}: the network takes gray images, of 1 channel")

    def _base(self, network: NetworkInput, found: FileMetadata) -> Recipe:
        height, width, channels = network.height, network.width, network.channels
        if self.preset is not None:
            return presets.preset(self.preset, height, width, channels)
        if self.preprocessor is not None:
            return preprocessor_files.read_preprocessor(self.preprocessor, height, width, channels)
        if self.scale is None and found.preprocessor is not None and not found.ultralytics:
            return preprocessor_files.read_preprocessor(found.preprocessor, height, width, channels)
        if not height or not width:
            raise UserError("the graph takes images of any size: --input-shape H,W says which")
        spec = InputSpec(height=height, width=width, channels=1 if channels == 1 else 3)
        if self.scale is None and found.ultralytics:
            fitting = {"resize": f"short:{max(height, width)}", "crop": "center"}
            return Recipe(InputSpec.model_validate(spec.model_dump() | fitting), scale=255.0, source="Ultralytics' classifiers")
        if self.scale is None and found.scale is not None and found.mean is not None and found.std is not None:
            mean = self._by_channel("the file's mean", found.mean, channels)
            std = self._by_channel("the file's std", found.std, channels)
            return Recipe(spec, found.scale, mean, std, source=found.normalised_by)
        if self.scale is None and network.dtype.kind == "f":
            raise UserError(f"nothing says how the pixels of a {network.describe()} input are scaled: {_WAYS}")
        return Recipe(spec)

    def _input_changes(self, base: InputSpec) -> dict[str, Any]:
        changes: dict[str, Any] = {"resize": self._resize(base), "crop": self._crop(base)}
        if self.channels == "gray":
            changes["channels"] = 1
        if changes["resize"] is None:
            del changes["resize"]
        if self.filter is not None:
            changes["filter"] = self.filter
            changes["dtype"] = "float32" if self.filter == "tf-bilinear" else "uint8"
        if self.pad_color is not None or self.pad_align is not None:
            changes["pad"] = {"color": self.pad_color or base.pad.color, "align": self.pad_align or base.pad.align}
        changes |= {name: value for name, value in (("alpha", self.alpha), ("exif", self.exif)) if value is not None}
        return changes

    def _resize(self, base: InputSpec) -> str | None:
        """In the contract's words; None if it is not changed."""
        if self.crop_pct is not None:
            return crop_pct_resize(self.crop_pct, base.height, base.width)
        if self.resize is None:
            return None
        mode, size = parse_resize(self.resize)
        return mode if size in (None, (base.height, base.width)) else f"{mode}:{size[0]}x{size[1]}"

    def _crop(self, base: InputSpec) -> str | None:
        if self.crop is not None and (self.crop, self.crop) != (base.height, base.width):
            raise UserError(f"--crop {self.crop}: the network takes {base.height}x{base.width}, which the crop must give")
        if self.crop is not None or self.crop_pct is not None:
            return base.crop or "center"
        return base.crop if self.resize is None or self.resize.lower().startswith("short") else None

    def _by_channel(self, flag: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
        if len(values) not in (1, channels):
            counted = f"{channels} channels" if channels > 1 else "1 channel"
            raise UserError(f"{flag}: {len(values)} numbers for {counted}; one is accepted, or one a channel")
        return values


def _refuse_contradictions(base: Recipe, numbers: dict[str, Any], options: RecipeOptions) -> None:
    flag = "--preset" if options.preset is not None else "--preprocessor"
    own = {"scale": base.scale, "mean": base.mean, "std": base.std, "channel_order": base.channel_order}
    for name, value in numbers.items():
        if value != own[name] and not _equal(value, own[name]):
            shown = own[name] if isinstance(own[name], str) else ",".join(f"{number:g}" for number in _as_tuple(own[name]))
            given = "--channels" if name == "channel_order" else f"--{name}"
            raise UserError(
                f"{given} contradicts {flag}, which says {shown}: leave one of them out; beside {flag} accepted are --resize, "
                "--filter, --crop, --crop-pct, --pad-color, --pad-align, --alpha and --exif"
            )


def _refuse_other_units(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises UserError for a mean or std that no pixels can have after `scale`.

    Those of pixels from 0 to 255 and of pixels from 0 to 1 are easily taken for each other. The network would then see next to
    nothing, or numbers far beyond its own.
    """
    white = _WHITE / scale
    values = f"after --scale {scale:g} pixels are 0 to {white:g}"
    for flag, numbers in (("--mean", mean), ("--std", std)):
        shown = f"{flag} {','.join(f'{number:g}' for number in numbers)}"
        if any(number > white * _UNIT_SLACK for number in numbers):
            if scale != 1 and max(numbers) <= _WHITE * _UNIT_SLACK:
                fitting = f"for numbers of pixels from 0 to {_WHITE} give --scale 1, or divide them by {_WHITE}"
            else:
                fitting = f"numbers up to {white:g} are accepted"
            raise UserError(f"{shown}: {values}; {fitting}")
        if flag == "--std" and numbers and white >= _WHITE and max(numbers) < 1:
            raise UserError(f"{shown}: {values}, and become up to {white / min(map(abs, numbers)):,.0f}; give --scale {_WHITE}")


def _equal(one: Any, other: Any) -> bool:
    first, second = _as_tuple(one), _as_tuple(other)
    length = max(len(first), len(second))
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    spread = [values * length if len(values) == 1 else values for values in (first, second)]
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(*spread, strict=True))


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"])
    return f"{f'--{where}: ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
