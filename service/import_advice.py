"""What to type for a model that Convoy did not export, so that it takes pictures: `convoy import`, with the flags that fit."""

from collections.abc import Sequence

_CHANNELS = (1, 3)


def import_advice(dtype: str, shape: Sequence[int]) -> str:
    """What follows "takes no pictures" in a message, with a semicolon; empty for a model whose item is no picture.

    `dtype`, as numpy names it, and `shape` are of one item of its input.
    """
    if len(shape) != 3 or not (shape[0] in _CHANNELS or shape[2] in _CHANNELS):
        return ""
    height, width, channels = (*shape[1:], shape[0]) if shape[0] in _CHANNELS else shape
    flags = f"--resize stretch:{height}x{width}"
    if channels == 1:
        flags += " --channels gray"
    if dtype != "uint8":
        flags += " --scale 255"
        flags = f"--preset torchvision|timm|keras|caffe` (or {flags} ...)" if channels == 3 else f"{flags}`"
    else:
        flags += "`"
    return f"; `convoy import FILE --repository DIR --name NAME {flags} makes a model of it that does"
