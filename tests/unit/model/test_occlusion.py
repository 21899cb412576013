"""Patches over a picture, and what hiding with them tells."""

import numpy as np
import pytest

from service.model import occlusion


@pytest.mark.parametrize("along", [7, 18])
@pytest.mark.parametrize(("length", "patch"), [(28, 6), (32, 6), (224, 45), (1, 1), (2, 1), (3, 1), (9, 2)])
def test_patches_hide_every_pixel(length: int, patch: int, along: int) -> None:
    starts = occlusion.starts(length, patch, along)
    hidden = {pixel for start in starts for pixel in range(start, start + patch)}
    assert hidden >= set(range(length))
    assert all(start < length and start + patch > 0 for start in starts)
    assert len(starts) <= along


def test_log_odds_survive_certainty() -> None:
    assert occlusion.log_odds(np.array([[200.0, 0.0], [0.0, 0.0]], np.float32), 0).tolist() == [200.0, 0.0]
    three = occlusion.log_odds(np.array([[1.0, 0.0, 0.0]], np.float32), 0)[0]
    p = np.e / (np.e + 2)
    assert three == pytest.approx(np.log(p / (1 - p)))
