"""Values as PNG images: feature maps, filters, vectors and heat maps, for a light and a dark background.

Signed values are red above zero, blue below and white at zero; others go from black at zero to yellow. All maps of a layer share
one scale, so that weak filters look weak. Gaps are transparent.
"""

import io
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHOWN_MAPS = 64
SHOWN_BARS = 128
COLUMNS = 8

_GAP = 255  # the transparent index of the palette
_GAP_PIXELS = 4
_TILE_PIXELS = 120
_PICTURE_PIXELS = 480
_STRIP_COLUMNS = 64
_CELL_PIXELS = 15
_LINE_VALUES = 960
_LINES = 64
_HIGHEST_SHARE = 99.8  # percent of the values within the scale, so that a single spike does not hide the others
_BARS = (960, 240)
SHOWN_VALUES = _LINES * _LINE_VALUES
_ABOVE, _BELOW, _LINE = (213, 94, 0, 255), (0, 114, 178, 255), (128, 128, 128, 255)  # orange and blue of Okabe and Ito's palette


@dataclass(frozen=True)
class Scale:
    """The values that the colours stand for: from `low` (0, or -high if there are negative values) to `high`, which is above 0.

    `clipped` says that some values are beyond the scale.
    """

    low: float
    high: float
    clipped: bool = False

    @classmethod
    def of(cls, values: NDArray[np.floating], shown: NDArray[np.floating] | None = None) -> "Scale":
        """The scale for `values` of any shape. Its sign and `clipped` go by all the values `shown`, if they are given."""
        finite = values[np.isfinite(values)]
        sizes = np.abs(finite)
        largest = float(sizes.max(initial=0.0))
        high = float(np.percentile(sizes, _HIGHEST_SHARE)) if largest else 1.0
        high = high or largest
        if shown is not None:
            finite = shown[np.isfinite(shown)]
            largest = float(np.abs(finite).max(initial=0.0))
        return cls(-high if finite.min(initial=0.0) < 0 else 0.0, high, largest > high)

    @property
    def colours(self) -> str:
        """The name of matplotlib's colour map."""
        return "RdBu_r" if self.low < 0 else "inferno"

    def indices(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Indices of the palette, 0 to 254, for values of any shape; values beyond the scale get its ends, NaN the lowest."""
        share = (np.nan_to_num(values, nan=self.low) - self.low) / (self.high - self.low)
        found: NDArray[np.uint8] = np.rint(np.clip(share, 0, 1) * (_GAP - 1)).astype(np.uint8)
        return found

    def palette(self) -> NDArray[np.uint8]:
        """uint8[256,3]; the last colour is that of the transparent gap."""
        found: NDArray[np.uint8] = (colormaps[self.colours](np.linspace(0, 1, _GAP))[:, :3] * 255).round().astype(np.uint8)
        return np.concatenate([found, np.full((1, 3), 128, np.uint8)])


def png(image: Image.Image) -> bytes:
    """An image as PNG; with a palette, gaps are transparent."""
    buffer = io.BytesIO()
    if image.mode == "P":
        image.save(buffer, "PNG", optimize=True, transparency=_GAP)
    else:
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def picture(pixels: NDArray[np.generic]) -> bytes:
    """Pixels [H,W], [H,W,1] or [H,W,3] from 0 to 255 as PNG: small images are enlarged so that pixels show, large ones reduced."""
    pixels = _whole_numbers(pixels)
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    largest = max(image.size)
    if largest > 2 * _PICTURE_PIXELS:
        image.thumbnail((2 * _PICTURE_PIXELS, 2 * _PICTURE_PIXELS), Image.Resampling.BILINEAR)
    return png(_enlarged(image, max(1, round(_PICTURE_PIXELS / largest))))


def maps(values: NDArray[np.floating], scale: Scale) -> bytes:
    """Feature maps [C,h,w] as PNG: the first SHOWN_MAPS, in rows of COLUMNS; a single map is large."""
    values = values[:SHOWN_MAPS]
    side = _PICTURE_PIXELS if len(values) == 1 else _TILE_PIXELS
    tiles = [_tile(each, scale, side) for each in values]
    return png(_palette(_in_grid(tiles), scale))


def filters(weights: NDArray[np.floating]) -> bytes:
    """Filters [F,C,h,w] as PNG, in rows of COLUMNS. Three channels are shown as colours; gray is zero."""
    weights = weights[:SHOWN_MAPS]
    if weights.shape[1] != 3:
        means = weights.mean(axis=1) if weights.shape[1] > 1 else weights[:, 0]
        scale = Scale(-float(np.abs(means).max()) or -1.0, float(np.abs(means).max()) or 1.0)
        return maps(means, scale)
    largest = float(np.abs(weights).max()) or 1.0
    colours = np.rint(127.5 + 127.5 * weights / largest).astype(np.uint8).transpose(0, 2, 3, 1)  # (F, h, w, 3)
    opaque = np.concatenate([colours, np.full((*colours.shape[:3], 1), 255, np.uint8)], axis=3)
    factor = max(1, _TILE_PIXELS // max(weights.shape[2:]))
    return png(Image.fromarray(_in_grid([each.repeat(factor, 0).repeat(factor, 1) for each in opaque])))


def strip(values: NDArray[np.floating], scale: Scale) -> bytes:
    """A vector as PNG: one cell for each value, line by line, up to SHOWN_VALUES."""
    shown = scale.indices(values[:SHOWN_VALUES])
    few = len(shown) <= _STRIP_COLUMNS * _STRIP_COLUMNS // 2
    columns = min(_STRIP_COLUMNS if few else _LINE_VALUES, len(shown))
    rows = -(-len(shown) // columns)
    cells = np.full(rows * columns, _GAP, np.uint8)
    cells[: len(shown)] = shown
    lines = cells.reshape(rows, columns).repeat(_CELL_PIXELS, 0).repeat(_CELL_PIXELS if few else 1, 1)
    lines = np.insert(lines, np.repeat(np.arange(1, rows) * _CELL_PIXELS, _GAP_PIXELS), _GAP, axis=0)
    return png(_palette(lines, scale))


def bars(values: NDArray[np.floating]) -> bytes:
    """A short vector as PNG: one bar for each value, orange and up above zero, blue and down below."""
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    values = np.nan_to_num(values, posinf=largest, neginf=-largest)
    width, height = _BARS
    image = Image.new("RGBA", _BARS)
    draw = ImageDraw.Draw(image)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    span = (high - low) or 1.0
    zero = round(1 + (height - 3) * high / span)
    step = width / len(values)
    for index, value in enumerate(values.tolist()):
        end = round(1 + (height - 3) * (high - value) / span)
        left, right = round(index * step + 0.15 * step), max(round(index * step + 0.15 * step), round((index + 0.85) * step) - 1)
        draw.rectangle((left, min(zero, end), right, max(zero, end)), fill=_ABOVE if value >= 0 else _BELOW)
    draw.line((0, zero, width, zero), fill=_LINE)
    return png(image)


def _whole_numbers(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pixels as an image has them: some filters give fractions, and bicubic ones a little below 0 and above 255."""
    found: NDArray[np.uint8] = np.rint(np.clip(pixels.astype(np.float32), 0, 255)).astype(np.uint8)
    return found


def _tile(values: NDArray[np.floating], scale: Scale, side: int) -> NDArray[np.uint8]:
    """One map as indices of the palette, enlarged by whole pixels or reduced by means to about `side` pixels."""
    largest = max(values.shape)
    if largest > 1.5 * side:
        height, width = (max(1, round(length * side / largest)) for length in values.shape)
        reduced = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        return scale.indices(np.asarray(reduced))
    factor = max(1, round(side / largest))
    return scale.indices(values).repeat(factor, 0).repeat(factor, 1)


def _in_grid(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Tiles of one shape, [h,w] or [h,w,4], in rows of COLUMNS with transparent gaps."""
    height, width = tiles[0].shape[:2]
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    shape = (rows * (height + _GAP_PIXELS) - _GAP_PIXELS, columns * (width + _GAP_PIXELS) - _GAP_PIXELS)
    canvas = np.full(shape, _GAP, np.uint8) if tiles[0].ndim == 2 else np.zeros((*shape, 4), np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + _GAP_PIXELS), index % columns * (width + _GAP_PIXELS)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def _palette(indices: NDArray[np.uint8], scale: Scale) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(scale.palette().tobytes())
    return image


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    return image if factor == 1 else image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
