import io

from PIL import Image

from service.engine.decoding import decodes_quickly
from service.model.preprocessing import open_image


def test_a_tiff_is_never_decoded_on_the_transports_thread() -> None:
    for name, quickly in (("TIFF", False), ("BMP", True)):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, name)
        assert decodes_quickly([open_image(buffer.getvalue(), 64)]) == quickly
