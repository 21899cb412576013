"""The network's input that a user asks for: its size, and how pictures of other sizes are resized and cropped to it."""

import re
from dataclasses import dataclass

from pydantic import ValidationError

from service.errors import UserError
from service.model.input_spec import InputSpec

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
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    resize: str | None = None
    filter: str | None = None
    crop: tuple[int, int] | None = None

    def of(self, default: InputSpec) -> InputSpec:
        """The input, with the rest from a default. Raises UserError if the choices contradict each other."""
        if self.crop and not self.resize:
            raise UserError(f"--crop {_shown(self.crop)} needs --resize ({RESIZE}): what is cut is cut of a resized picture")
        if self.crop and self.size and self.crop != self.size:
            raise UserError(f"--crop {_shown(self.crop)} and --image-size {_shown(self.size)}: the crop gives the network's input")
        mode, resized = parse_resize(self.resize) if self.resize else (default.resize, None)
        height, width = self.crop or self.size or resized or (default.height, default.width)
        if resized and resized != (height, width):
            mode += f":{resized[0]}x{resized[1]}"
        chosen = {
            "height": height,
            "width": width,
            "channels": self.channels or default.channels,
            "resize": mode,
            "filter": self.filter or default.filter,
            "crop": "center" if self.crop else None,
        }
        try:
            return InputSpec.model_validate(chosen)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            if said.endswith("a crop is needed"):
                size = self.size or resized
                said = f"what it gives is cropped to the network's input: --crop {_shown(size) if size else 'N'} is needed"
            raise UserError(f"--resize {self.resize}: {said}") from None


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
