"""Reading image files: the input that suits them, and the memory that they need."""

from pathlib import Path

import pytest

from export.data.image_files import Header, ImageFile, check_memory, suitable_input
from service.errors import UserError
from service.model.input_spec import InputSpec


def test_the_input_suits_the_sizes_of_the_pictures() -> None:
    for size, expected in (((65, 60), 128), ((40, 66), 128), ((200, 300), 224)):
        files = [ImageFile(Path("x"), 0, Header(size, gray=False))] * 3
        assert suitable_input(files).shape == (expected, expected, 3)
    mixed = [ImageFile(Path("x"), 0, Header((side, side), gray=False)) for side in (20, 30, 31)]
    assert suitable_input(mixed).shape == (32, 32, 3)


def test_too_many_pictures_for_the_memory_are_refused_before_they_are_read() -> None:
    with pytest.raises(
        UserError, match=r"images of 4096x4096x3 take .* GB, and this machine has .*: choose a smaller --image-size"
    ):
        check_memory(1_000_000, InputSpec(height=4096, width=4096, channels=3))
    check_memory(1_000, InputSpec(height=28, width=28, channels=1))
