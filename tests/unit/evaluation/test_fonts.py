"""Names of classes in every writing: with a font that has the letters, and without."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder  # type: ignore[import-untyped]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from matplotlib import font_manager

from export.evaluation import figures, fonts
from export.evaluation.scores import Scores

NAMES = ("cat", "猫", "🦊 kitten", "กขค", "кошка ❤\ufe0f")
"""DejaVu Sans, which comes with matplotlib, has the first, and the last with its heart."""


@pytest.fixture(autouse=True)
def only_fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    own = [font for font in font_manager.fontManager.ttflist if "matplotlib" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    fonts._installed.cache_clear()
    yield
    fonts._installed.cache_clear()


def install(path: Path, family: str, letters: str) -> None:
    """A font of its own, in which each of the letters is a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, names = pen.glyph(), [f"letter{ord(letter):x}" for letter in letters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names, strict=True)})
    builder.setupGlyf(dict.fromkeys([".notdef", *names], square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    font_manager.fontManager.addfont(path)
    fonts._installed.cache_clear()


def test_letters_come_from_the_fonts_that_have_them(tmp_path: Path) -> None:
    assert fonts.drawable(("cat", "кошка", "قط")) == fonts.Drawn(["cat", "кошка", "قط"], ["sans-serif"], "")
    install(tmp_path / "animals.ttf", "Animals", "猫🦊")
    install(tmp_path / "thai.ttf", "Thai", "กขค")
    names, families, note = fonts.drawable(NAMES)
    assert (tuple(names), families, note) == (NAMES, ["sans-serif", "Thai", "Animals"], "")


def test_letters_that_no_font_has_are_left_out_and_the_picture_says_so(tmp_path: Path) -> None:
    names, families, note = fonts.drawable(NAMES)
    assert names == ["cat", "class 1", "kitten", "class 3", "кошка ❤\ufe0f"]
    assert families == ["sans-serif"]
    assert note == "letters of the names that no installed font has: U+0E01 and 4 more (Noto's fonts have them)"
    found = Scores(NAMES, np.arange(5), np.eye(5, dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of letters that it has no font for
        figures.draw_confusion(found, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
