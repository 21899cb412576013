"""A heat map laid over a picture, as PNG."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PICTURE_PIXELS = 480
_POSITIVE, _NEGATIVE = (215, 25, 28), (30, 90, 200)
_OPACITY = 0.75


def overlay(
    pixels: NDArray[np.generic], heat: NDArray[np.floating], about: int = _PICTURE_PIXELS, *, optimize: bool = False
) -> bytes:
    """A heat map float[h,w] laid over an image [H,W,C] from 0 to 255, as PNG: red where it is positive, blue where negative.

    Small pictures are enlarged by whole pixels to `about` so many on the longer side. `optimize` takes ten times as long for a
    smaller file.
    """
    height, width = pixels.shape[:2]
    size = _drawn_size(height, width, about)
    shown = np.rint(np.clip(pixels.astype(np.float32), 0, 255)).astype(np.uint8)
    gray = Image.fromarray(shown[:, :, 0] if shown.shape[2] == 1 else shown).convert("L").resize(size, Image.Resampling.NEAREST)
    # Half the contrast, so that the colours show on black and on white.
    ground = (64 + np.asarray(gray, np.float32)[:, :, None] / 2).repeat(3, axis=2)
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    smooth = np.clip(smooth / (float(np.abs(heat).max()) or 1.0), -1, 1)[:, :, None]
    colour = np.where(smooth > 0, np.array(_POSITIVE, np.float32), np.array(_NEGATIVE, np.float32))
    mixed = ground + (colour - ground) * _OPACITY * np.abs(smooth)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(mixed).astype(np.uint8)).save(buffer, "PNG", optimize=optimize, compress_level=9 if optimize else 1)
    return buffer.getvalue()


def drawn_bytes(height: int, width: int, about: int) -> int:
    """Bytes of the pixels that are drawn of an image of this size."""
    drawn_width, drawn_height = _drawn_size(height, width, about)
    return drawn_width * drawn_height * 3


def _drawn_size(height: int, width: int, about: int) -> tuple[int, int]:
    """Width and height."""
    factor = max(1, round(about / max(height, width)))
    return width * factor, height * factor
