"""Values as pictures: colours, scales, and odd values."""

import io

import numpy as np
import pytest
from PIL import Image

from export.walkthrough import (
    feature_maps,
)
from export.walkthrough.feature_maps import Scale


def test_maps_share_a_scale_and_zero_is_black_or_white() -> None:
    values = np.zeros((3, 2, 2), np.float32)
    values[1] = 1
    values[2, 0, 0] = 2
    image = Image.open(io.BytesIO(feature_maps.maps(values, Scale(0, 2)))).convert("RGBA")
    assert image.size == (3 * 120 + 2 * 4, 120)
    pixels = np.asarray(image)
    assert pixels[60, 122, 3] == 0  # the gap
    black, middle, bright = (pixels[30, 30 + 124 * at] for at in range(3))
    assert black[:3].max() < 10
    assert middle[:3].sum() < bright[:3].sum()
    assert (pixels[90, 90 + 124 * 2] == black).all()
    signed = Scale.of(np.array([-1.0, 0.5], np.float32))
    assert signed == Scale(-1.0, 1.0, True) or signed.low == -signed.high
    assert signed.palette()[int(signed.indices(np.zeros(1))[0])].min() > 240


@pytest.mark.parametrize("values", [np.zeros(3), np.array([np.nan, 1.0]), np.array([np.inf, -1.0]), np.full(4, np.nan)])
def test_odd_values_can_be_drawn(values: np.ndarray) -> None:
    scale = Scale.of(values)
    assert scale.high > scale.low
    for content in (feature_maps.bars(values), feature_maps.strip(values, scale), feature_maps.maps(values[None, None], scale)):
        assert Image.open(io.BytesIO(content)).size[0] > 0
