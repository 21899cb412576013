"""Patches over a picture, and what hiding with them tells."""

import numpy as np
import pytest

from service.model import occlusion

SHAPES = [(28, 28), (224, 224), (32, 128), (128, 32), (64, 128), (224, 1000), (480, 640), (1, 1), (2, 3), (9, 9), (1, 5000)]


@pytest.mark.parametrize("most", [49, 99, 199, occlusion.MOST_PLACES, 9999])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_patches_hide_every_pixel(height: int, width: int, most: int) -> None:
    grid = occlusion.grid_of(height, width, most)
    assert len(set(grid.places)) == len(grid.places) <= most
    heat = occlusion.mean_falls(np.ones(len(grid.places)), grid, height, width)
    np.testing.assert_array_equal(heat, np.ones((height, width)), "what no patch hides has no mean")
    assert all(-grid.patch < top < height and -grid.patch < left < width for top, left in grid.places)


@pytest.mark.parametrize(("side", "most", "patch", "places"), [(28, 324, 6, 225), (224, 324, 45, 289), (224, 49, 45, 49)])
def test_of_a_square_picture_the_patch_is_a_fifth(side: int, most: int, patch: int, places: int) -> None:
    grid = occlusion.grid_of(side, side, most)
    assert (grid.patch, len(grid.places)) == (patch, places)


def test_log_odds_survive_certainty() -> None:
    assert occlusion.log_odds(np.array([[200.0, 0.0], [0.0, 0.0]], np.float32), 0).tolist() == [200.0, 0.0]
    three = occlusion.log_odds(np.array([[1.0, 0.0, 0.0]], np.float32), 0)[0]
    p = np.e / (np.e + 2)
    assert three == pytest.approx(np.log(p / (1 - p)))
