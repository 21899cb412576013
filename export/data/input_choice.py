"""The network's input that a user asks for: its size, and how pictures of other sizes are resized and cropped to it."""

import math
import re
from dataclasses import dataclass

from pydantic import ValidationError

from service.errors import UserError
from service.model.input_spec import MAX_RESIZED_SIDE, InputSpec

RESIZE = "stretch, pad or cover (each with :N or :HxW, if a crop follows), short:N or none"
"""What `--resize` accepts."""

SHORT_FORMS = {"stretch": "stretch", "crop": "cover", "pad": "pad"}
"""What `--fit` stands for: values of `--resize`."""

_RESIZE = re.compile(r"(none)|(short:[1-9]\d{0,3})|(stretch|pad|cover)(?::([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?)?")


@dataclass(frozen=True)
class InputChoice:
    """What is asked for; None takes the default, which is that of the data.

    Attributes:
        size: (height, width) of the network's input.
        channels: 1 (gray) or 3.
        resize: as RESIZE says.
        filter: of the resize, as in the contract.
        crop: (height, width) that is cut from the middle of the resized picture.
        crop_pct: in place of `resize` and `crop`: the share of the shorter side that the input is, above 0 to 1.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    resize: str | None = None
    filter: str | None = None
    crop: tuple[int, int] | None = None
    crop_pct: float | None = None

    def of(self, default: InputSpec) -> InputSpec:
        """The input, with the rest from a default. Raises UserError if the choices contradict each other."""
        check_crop_pct(self.crop_pct, self.crop, self.resize)
        if self.crop and not self.resize:
            raise UserError(f"--crop {_shown(self.crop)} needs --resize ({RESIZE}): what is cut is cut of a resized picture")
        if self.crop and self.size and self.crop != self.size:
            raise UserError(f"--crop {_shown(self.crop)} and --image-size {_shown(self.size)}: the crop gives the network's input")
        mode, resized = parse_resize(self.resize) if self.resize else (default.resize, None)
        height, width = self.crop or self.size or resized or (default.height, default.width)
        if self.crop_pct is not None:
            mode = crop_pct_resize(self.crop_pct, height, width)
        if resized and resized != (height, width):
            mode += f":{resized[0]}x{resized[1]}"
        chosen = {
            "height": height,
            "width": width,
            "channels": self.channels or default.channels,
            "resize": mode,
            "filter": self.filter or default.filter,
            "crop": "center" if self.crop or self.crop_pct is not None else None,
        }
        try:
            return InputSpec.model_validate(chosen)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            if said.endswith("a crop is needed"):
                size = self.size or resized
                said = f"what it gives is cropped to the network's input: --crop {_shown(size) if size else 'N'} is needed"
            raise UserError(f"--resize {self.resize}: {said}") from None


def check_crop_pct(crop_pct: float | None, crop: object, resize: str | None) -> None:
    """Raises UserError for what `--crop-pct` leaves no room for."""
    if crop_pct is None:
        return
    if crop is not None:
        raise UserError("--crop and --crop-pct both say what is cut: one of them is accepted")
    if resize is not None:
        raise UserError("--crop-pct says the resize too: it is accepted without --resize")


def crop_pct_resize(crop_pct: float, height: int, width: int) -> str:
    """The resize, in the contract's words, of which a square input is this share. Raises UserError for an input that is none."""
    if height != width:
        raise UserError(f"--crop-pct is for a square input, and this one is {height}x{width}: --resize and --crop say it")
    side = math.floor(height / crop_pct)
    if side > MAX_RESIZED_SIDE:
        raise UserError(
            f"--crop-pct {crop_pct:g}: the shorter side of a picture would become {side} pixels; "
            f"at most {MAX_RESIZED_SIDE} are accepted"
        )
    return f"short:{side}"


def parse_resize(text: str) -> tuple[str, tuple[int, int] | None]:
    """A value of `--resize`: the mode, for `short` with its side, and the size (height, width) of the others, if they have one.

    Raises UserError unless it is as RESIZE says.
    """
    match = _RESIZE.fullmatch(text.strip().lower())
    if match is None:
        raise UserError(f"--resize {text}: accepted are {RESIZE}")
    if match[3] is None:
        return match[0], None
    return match[3], (int(match[4]), int(match[5] or match[4])) if match[4] else None


def _shown(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
