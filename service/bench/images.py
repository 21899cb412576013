"""Pictures to send where the user gives none: made up, but as costly to decode as photographs of their size."""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

Encoding = Literal["pixels", "png", "jpeg"]
REQUESTS = 16
"""So many different requests are made, and sent in turn."""

_JPEG_QUALITY = 90


def made_up(model: str, version: str, items: int, shape: tuple[int, int, int], encoding: Encoding, seed: int) -> tuple[bytes, ...]:
    """Requests of pictures of `shape` (height, width, channels), serialised."""
    generator = np.random.default_rng(seed)

    def item() -> pb.Item:
        height, width, channels = shape
        # Broad patches with some grain on them: noise alone would be a picture that no encoder is made for.
        patches = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 6, (height, width, 3))
        picture = Image.fromarray(np.clip(np.asarray(patches) + grain, 0, 255).astype(np.uint8)).convert(
            "L" if channels == 1 else "RGB"
        )
        if encoding == "pixels":
            return pb.Item(pixels=picture.tobytes())
        file = io.BytesIO()
        picture.save(file, encoding, quality=_JPEG_QUALITY)
        return pb.Item(encoded=file.getvalue())

    return tuple(_request(model, version, [item() for _ in range(items)]) for _ in range(REQUESTS))


def of_files(model: str, version: str, items: int, paths: Sequence[Path], seed: int) -> tuple[bytes, ...]:
    """Requests of the user's pictures, as they are; drawn at random where a request has room for more than one.

    Raises:
        UserError: a file cannot be read.
    """
    files = []
    for path in paths:
        try:
            files.append(pb.Item(encoded=path.read_bytes()))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
    if items == 1:
        return tuple(_request(model, version, [file]) for file in files)
    drawn = random.Random(seed)  # noqa: S311 - nobody guesses it
    return tuple(_request(model, version, drawn.choices(files, k=items)) for _ in range(REQUESTS))


def _request(model: str, version: str, items: Sequence[pb.Item]) -> bytes:
    return pb.ClassifyRequest(model=model, version=version, items=items).SerializeToString()
