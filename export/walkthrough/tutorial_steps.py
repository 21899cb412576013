"""The steps of a convolutional layer as in the tutorials, computed by hand for one photo, without a trained network.

Load, gray, 300x300, values from 0 to 1, a Laplacian kernel, ReLU, 2x2 max pooling, a flat vector, a dense layer. Shapes are (items,
rows, columns, channels), as in the tutorials.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import signal

from service.errors import InvalidRequest
from service.model.input_spec import InputSpec
from service.model.preprocessing import open_image, resize, to_pixels

SIDE = 300
UNITS = 64
LAPLACIAN = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], np.float32)

_SEED = 0


@dataclass(frozen=True)
class TutorialSteps:
    """The image after every step.

    Attributes:
        loaded: uint8[H,W,3].
        gray: uint8[H,W,1].
        resized: uint8[300,300,1].
        normalised: float32[1,300,300,1], from 0 to 1.
        convolved: float32[1,300,300,1].
        rectified: float32[1,300,300,1].
        pooled: float32[1,150,150,1].
        flat: float32[1,22500].
        dense: float32[1,64].
    """

    loaded: NDArray[np.uint8]
    gray: NDArray[np.uint8]
    resized: NDArray[np.uint8]
    normalised: NDArray[np.float32]
    convolved: NDArray[np.float32]
    rectified: NDArray[np.float32]
    pooled: NDArray[np.float32]
    flat: NDArray[np.float32]
    dense: NDArray[np.float32]


def compute_steps(encoded: bytes, max_pixels: int) -> TutorialSteps:
    """Computes all steps for an encoded image. Raises InvalidRequest as `service.model.preprocessing.open_image` does."""
    image = _upright(encoded, max_pixels)
    loaded = to_pixels(image, _own_size(*image.size, channels=3))
    gray = to_pixels(image, _own_size(*image.size, channels=1))
    resized = resize(gray[:, :, 0], InputSpec(height=SIDE, width=SIDE, channels=1))
    normalised = np.asarray(resized / np.float32(255), np.float32)[np.newaxis]
    convolved = convolve(normalised)
    rectified = np.maximum(convolved, 0)
    pooled = max_pool(rectified)
    flat = pooled.reshape(1, -1)
    return TutorialSteps(loaded, gray, resized, normalised, convolved, rectified, pooled, flat, flat @ dense_weights(flat.shape[1]))


def decode_photo(encoded: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """An encoded image in its own size, uint8[H,W,3]. Raises InvalidRequest as `compute_steps` does."""
    image = _upright(encoded, max_pixels)
    return to_pixels(image, _own_size(*image.size, channels=3))


def convolve(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Laplacian of float32[1,H,W,1], in the same shape; the border is padded with zeros."""
    # In float32, flat regions would give small values instead of 0.
    image = images[0, :, :, 0].astype(np.float64)
    return np.asarray(signal.correlate2d(image, LAPLACIAN, mode="same"), np.float32)[np.newaxis, :, :, np.newaxis]


def max_pool(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest value of every 2x2 window of float32[1,H,W,1] with even sides."""
    _, height, width, _ = images.shape
    return np.asarray(images.reshape(1, height // 2, 2, width // 2, 2, 1).max(axis=(2, 4)), np.float32)


def dense_weights(inputs: int) -> NDArray[np.float32]:
    """Untrained weights float32[inputs,64]: Glorot and Bengio's uniform initialisation (AISTATS 2010), as in Keras."""
    limit = np.sqrt(6 / (inputs + UNITS))
    return np.random.default_rng(_SEED).uniform(-limit, limit, (inputs, UNITS)).astype(np.float32)


def _upright(encoded: bytes, max_pixels: int) -> Image.Image:
    """The image with its EXIF orientation applied, which may swap its sides. Raises InvalidRequest as `to_pixels` does."""
    image = open_image(encoded, max_pixels)
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise whatever broken input makes them raise
        raise InvalidRequest(f"the image's data are broken or cut short ({type(error).__name__})") from None


def _own_size(width: int, height: int, channels: Literal[1, 3]) -> InputSpec:
    """An input of an image's own size, which may be larger than a network takes."""
    return InputSpec.model_construct(height=height, width=width, channels=channels)
