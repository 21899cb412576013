"""The ranges of pixel values."""

import numpy as np

from export.walkthrough import (
    pixel_scaling,
)


def test_pixel_scalings() -> None:
    pixels = np.array([[0, 51, 255]], np.uint8)
    assert pixel_scaling.scale_pixels(pixels, "0..255").tolist() == [[0, 51, 255]]
    np.testing.assert_allclose(pixel_scaling.scale_pixels(pixels, "0..1"), [[0, 0.2, 1]], rtol=1e-6)
    np.testing.assert_allclose(pixel_scaling.scale_pixels(pixels, "-1..1"), [[-1, -0.6, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        pixel_scaling.scale_pixels(pixels, "imagenet"), [[-0.485 / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]], rtol=1e-5
    )
