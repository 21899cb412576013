"""Real pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image


@pytest.fixture(scope="package")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo of 640x427 pixels."""
    path = tmp_path_factory.mktemp("photos") / "flower.png"
    Image.fromarray(load_sample_image("flower.jpg")).save(path)
    return path


@pytest.fixture(scope="package")
def photo() -> np.ndarray:
    """A part of a real photo as uint8[32,32,3]."""
    return np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((32, 32)))


@pytest.fixture(scope="package", autouse=True)
def _known_operators(known_operators: None) -> None:
    """Nearly each of these tests converts a network."""
