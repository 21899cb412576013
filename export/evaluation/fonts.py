"""Fonts that have the letters of class names: matplotlib's own has no East Asian writing and few emoji.

Where the first font lacks letters, the installed ones are looked through for them. Letters that none has are left out of a name.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from matplotlib import font_manager

from export.text import first_of

_OWN = "sans-serif"
_PLACEHOLDERS = "Last Resort"
"""A font of matplotlib that has a box for every letter there is."""

_NO_LETTERS = "\u200b\u200c\u200d\ufe0e\ufe0f"
"""Signs between letters, and for the kind of an emoji, that are seen by what they do: no loss where a font lacks them."""


class Drawn(NamedTuple):
    """Names as they can be drawn.

    Attributes:
        names: with the letters that there is a font for; `class N` where none is left.
        families: the fonts, for matplotlib; letters are taken from the first that has them.
        note: what is missing, for the reader of the picture; empty if nothing is.
    """

    names: list[str]
    families: list[str]
    note: str


def drawable(labels: Sequence[str]) -> Drawn:
    """How the names of the classes can be drawn on this machine."""
    missing = {ord(letter) for label in labels for letter in label if letter not in _NO_LETTERS}
    missing -= _letters(font_manager.findfont(font_manager.FontProperties(family=[_OWN])))
    families = [_OWN]
    while missing:
        family, path = max(_installed().items(), key=lambda font: len(missing & _letters(font[1])), default=("", ""))
        if not (family and missing & _letters(path)):
            break
        families.append(family)
        missing -= _letters(path)
    lost = {chr(letter) for letter in missing}
    names = [_without(label, lost, number) for number, label in enumerate(labels)]
    some = first_of([f"U+{ord(letter):04X}" for letter in sorted(lost)], 1)
    note = f"letters of the names that no installed font has: {some} (Noto's fonts have them)" if lost else ""
    return Drawn(names, families, note)


def _without(label: str, lost: set[str], number: int) -> str:
    if not lost & set(label):
        return label
    kept = "".join(letter for letter in label if letter not in lost and letter not in _NO_LETTERS).strip()
    return kept if any(letter.isalnum() for letter in kept) else f"class {number}"


@cache
def _installed() -> dict[str, str]:
    """The file of each upright font of usual weight, by its family."""
    return {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal", "regular", "book") and not font.name.startswith(_PLACEHOLDERS)
    }


@cache
def _letters(path: str) -> frozenset[int]:
    """The letters of a font, as numbers; none if it cannot be drawn, as fonts of pictures."""
    try:
        font = font_manager.get_font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
