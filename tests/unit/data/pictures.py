"""Folders of random pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def draw(path: Path, size: tuple[int, int] = (16, 12), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    side = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], *side), dtype=np.uint8)).save(path)
    return path


def pets(root: Path, counts: dict[str, int], **kind: object) -> Path:
    for label, count in counts.items():
        for number in range(count):
            draw(root / label / f"{number:03}.png", **kind)  # type: ignore[arg-type]
    return root
