"""What a transform makes of a picture, as pixels: the numbers that it gives, with scaling and normalisation taken back."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from export.importing.recipe import Recipe
from service.errors import UserError, first_line

_ROUNDING = 0.02
"""In steps of a pixel: what float32 loses on the way there and back."""


def pixels_of_transform(transforms: Any, recipe: Recipe) -> Callable[[bytes], NDArray[Any]]:
    """A function from a picture's file to what the transform gives, as pixels [H,W,C] of 0 to 255, red first.

    They are uint8 if all of them are whole numbers, as they are unless a tensor was resized; else float32.

    Args:
        transforms: what `of_transforms` takes.
        recipe: its translation, which says how the numbers are scaled.

    Raises:
        UserError: from the function, if the transform fails or gives something else than one picture.
    """
    mean, std = np.array(recipe.mean), np.array(recipe.std)

    def pixels(encoded: bytes) -> NDArray[Any]:
        values = _apply(transforms, _opened(encoded, recipe))  # (C, H, W)
        if values.ndim != 3 or values.shape[0] != len(mean):
            raise UserError(f"{recipe.source}: it gives {values.shape}, and [{len(mean)},H,W] is expected")
        restored: NDArray[Any] = (values.astype(np.float64).transpose(1, 2, 0) * std + mean) * recipe.scale
        if recipe.channel_order == "bgr":
            restored = restored[:, :, ::-1]
        if recipe.input.channels == 1:
            restored = restored[:, :, :1]  # of a gray picture all are the same
        whole: NDArray[Any] = np.rint(restored)
        if np.abs(restored - whole).max() <= _ROUNDING and whole.min() >= 0 and whole.max() <= 255:
            restored = whole.astype(np.uint8)
        return restored if restored.dtype == np.uint8 else restored.astype(np.float32)

    return pixels


def _opened(encoded: bytes, recipe: Recipe) -> Image.Image:
    """A picture as a training's loader opens it: `Image.open(...).convert("RGB")`, turned if the recipe says so."""
    image: Image.Image = Image.open(io.BytesIO(encoded))
    if recipe.input.exif == "apply":
        image = ImageOps.exif_transpose(image)
    image = image.convert("L" if len(recipe.mean) == 1 else "RGB")
    image.info.pop("transparency", None)  # Pillow keeps the colour, and a transform may look at it
    return image


def _apply(transforms: Any, image: Image.Image) -> NDArray[Any]:
    try:
        if hasattr(transforms, "image_mean"):  # of Hugging Face
            return np.asarray(transforms(images=image, return_tensors="np")["pixel_values"][0])
        value: Any = image
        for step in transforms if isinstance(transforms, (list, tuple)) else [transforms]:
            value = step(value)
        return np.asarray(value)
    except Exception as error:  # noqa: BLE001 - the transform is the user's, and may raise any error
        raise UserError(f"{type(transforms).__name__}: it fails on a picture of {image.size}: {first_line(error)}") from None
