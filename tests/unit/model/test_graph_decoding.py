"""Graphs that decode: what they are handed of a client's picture. The graph here reads no more of a PNG than its size."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidRequest
from service.model.loading import load_model
from service.model.png import write_png
from service.model.preprocessing import open_image, to_rgb
from service.model.signature import picture_files
from tests.unit.model import foreign_graphs as foreign

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 40, 4), np.uint8), "RGBA")


def encoded(file_format: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = PICTURE.convert("RGB").convert(mode) if mode != "RGBA" else PICTURE
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("row", [True, False])
def test_a_graph_that_decodes_gets_a_png_of_every_picture_one_at_a_time(row: bool, tmp_path: Path) -> None:
    model = load_model(foreign.save_picture_file_classifier(tmp_path / "model.onnx", row=row), "cpu", 1)
    assert (str(model.input), model.input.shape) == ("the bytes of a picture file", (0,))
    assert (model.outputs[0].shape, model.takes_pictures, model.has_contract) == ((2,), True, False)
    assert list(model.measure(64)) == [1]
    files = [encoded("PNG"), encoded("JPEG"), encoded("JPEG", "L"), encoded("JPEG", "CMYK"), encoded("GIF"), encoded("PNG", "1")]
    [scores] = model.predict(picture_files(files))
    np.testing.assert_allclose(scores, [[0.4, 0.6]] * len(files), rtol=1e-6)


def test_a_file_that_cannot_be_decoded_is_the_clients_fault(tmp_path: Path) -> None:
    model = load_model(foreign.save_picture_file_classifier(tmp_path / "model.onnx"), "cpu", 1)
    jpeg = encoded("JPEG")
    with pytest.raises(InvalidRequest, match="broken or cut short"):
        model.predict(picture_files([jpeg[: len(jpeg) // 2]]))


def test_pixels_are_those_of_a_plain_decoder_without_alpha_and_not_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = to_rgb(open_image(encoded("PNG", "RGBA", exif=exif), 10**6))
    assert np.array_equal(found, np.asarray(PICTURE)[:, :, :3])
    sixteen = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x1234, np.uint16)).save(sixteen, "PNG")
    assert to_rgb(open_image(sixteen.getvalue(), 10**6)).tolist() == [[[0x12] * 3] * 4] * 4


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (300, 700)])
def test_every_reader_finds_in_a_png_the_pixels_that_were_written(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(write_png(pixels)), formats=["PNG"])), pixels)
