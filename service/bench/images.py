"""Requests to send: of synthetic images, as costly to decode as photographs of their size, or of the user's files."""

import io
import random
from collections.abc import Iterable, Sequence
from typing import Literal

from PIL import Image, ImageChops

from service.pb.convoy.v1 import classifier_pb2 as pb

Encoding = Literal["pixels", "png", "jpeg"]
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
"""PIL's mode by the channels of a model's input."""
REQUESTS = 16
"""How many different requests are made, and sent in turn."""

_JPEG_QUALITY = 90
_GRAIN = 10
"""The largest difference that the grain makes to a pixel."""


def synthetic_requests(
    model: str, version: str, items: int, shape: tuple[int, int, int], encoding: Encoding, seed: int
) -> tuple[bytes, ...]:
    """Serialised requests of images of `shape` (height, width, channels)."""
    generator = random.Random(seed)  # noqa: S311 - not for security

    def item() -> pb.Item:
        picture = _picture(generator, *shape)
        if encoding == "pixels":
            return pb.Item(pixels=picture.tobytes())
        file = io.BytesIO()
        picture.save(file, encoding, quality=_JPEG_QUALITY)
        return pb.Item(encoded=file.getvalue())

    return tuple(_request(model, version, [item() for _ in range(items)]) for _ in range(REQUESTS))


def _picture(generator: random.Random, height: int, width: int, channels: int) -> Image.Image:
    """Smooth patches with some grain: no encoder is made for noise alone."""
    patches = Image.frombytes("RGB", (4, 4), generator.randbytes(4 * 4 * 3)).resize((width, height), Image.Resampling.BICUBIC)
    noise = Image.frombytes("RGB", (width, height), generator.randbytes(height * width * 3))
    grain = noise.point([value * (2 * _GRAIN + 1) // 256 for value in range(256)] * 3)
    return ImageChops.add(patches, grain, offset=-_GRAIN).convert(CHANNELS[channels])


def file_requests(model: str, version: str, items: int, files: Iterable[bytes], seed: int) -> tuple[bytes, ...]:
    """Serialised requests of encoded images as they are, in their order; drawn at random if a request has several."""
    given = [pb.Item(encoded=file) for file in files]
    if items == 1:
        return tuple(_request(model, version, [item]) for item in given)
    generator = random.Random(seed)  # noqa: S311 - not for security
    return tuple(_request(model, version, generator.choices(given, k=items)) for _ in range(REQUESTS))


def _request(model: str, version: str, items: Sequence[pb.Item]) -> bytes:
    return pb.ClassifyRequest(model=model, version=version, items=items).SerializeToString()
