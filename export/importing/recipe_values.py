"""Options of a recipe from Python: a dict with the values of the flags of `convoy import`."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from export.importing.assembly import is_side, numbers, shown
from export.importing.recipe_options import RecipeOptions
from service.errors import UserError

ACCEPTED = "dict(resize='short:256', crop=224, scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels='bgr')"
_CHANNELS = ("rgb", "bgr", "gray")


def options_of(values: Mapping[Any, Any]) -> RecipeOptions:
    """The options that a dict says, by the names of the flags, with `_` for `-`. Raises UserError for other names and values."""
    names = [field.name for field in fields(RecipeOptions)]
    if unknown := [name for name in values if name not in names]:
        raise UserError(f"transforms: {unknown[0]!r} is not known; accepted are {', '.join(names)}, such as {ACCEPTED}")
    return RecipeOptions(**{name: _value(name, value) for name, value in values.items() if value is not None})


def _value(name: str, value: Any) -> Any:
    where = f"transforms: {name}"
    if name in ("mean", "std"):
        return numbers("transforms", name, value)
    if name in ("scale", "crop_pct"):
        found = numbers("transforms", name, value)
        if len(found) == 1:
            return found[0]
        raise UserError(f"{where} is {shown(value)}; one number is accepted")
    if name == "crop":
        if is_side(value):
            return value
        raise UserError(f"{where} is {shown(value)}; the side of a square in pixels is accepted")
    if name == "pad_color":
        found = numbers("transforms", name, value)
        if len(found) == 3 and all(number in range(256) for number in found):
            return tuple(map(int, found))
        raise UserError(f"{where} is {shown(value)}; three whole numbers from 0 to 255 are accepted")
    if name == "preprocessor" and isinstance(value, (str, Path)):
        return Path(value)
    if not isinstance(value, str) or (name == "channels" and value not in _CHANNELS):
        accepted = f"{', '.join(_CHANNELS)} are accepted" if name == "channels" else "a text is accepted"
        raise UserError(f"{where} is {shown(value)}; {accepted}, as of --{name.replace('_', '-')} of `convoy import`")
    return value
