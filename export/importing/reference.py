"""A reference of the pixels: pictures, and what the pipeline of the training made of them.

A `.npz` file (of `numpy.savez`, no pickles) with the pictures and one or more of what is expected of them, in the same order:

- `paths`: str[n], picture files, relative to the folder of the `.npz`; or `picture_0`, `picture_1`, ...: each a file's bytes,
  uint8[bytes], or a decoded picture, uint8[h,w] or uint8[h,w,3].
- `pixels`: [n,H,W,C] of 0 to 255, after resize and crop, before scaling. They must be the same, every one.
- `inputs`: what the network takes, [n,C,H,W], [n,H,W,C] or rows of numbers, scaled and normalised. They must be the same to 1e-4,
  and the pixels that they come from the same, every one.
- `outputs`: the scores of the first head, [n,K], as the source's pipeline gives them.
"""

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from export.data.image_files import MAX_PIXELS
from export.files import read_file
from export.importing.gates import Gate, predict
from export.importing.network_input import NetworkInput
from export.importing.recipe import Recipe
from export.importing.transforms import RESIZES_TENSORS
from export.importing.wrapping import WrappedHead, prepare
from service.errors import InvalidRequest, UserError, first_line
from service.model.contract import PROBABILITIES_NAME
from service.model.inference import Model
from service.model.preprocessing import decode, encode_png
from service.model.resizing import pillow_rounds_otherwise

ACCEPTED = "accepted is a file of numpy.savez with `paths` or `picture_0`, ..., and `pixels`, `inputs` or `outputs`"

_ZIP = b"PK"
_OBJECTS = "Object arrays"
"""In numpy's message, which advises to allow pickles: they run any code."""
_NUMBERS = "biuf"
"""Kinds of NumPy types: bool, integers, floats."""
_INPUT_TOLERANCE = 1e-4
_FLOAT_PIXEL_TOLERANCE = 1e-3
"""Of pixels that are not rounded, 0 to 255, whose sums float32 may take in another order."""
_TENSOR_TOLERANCE = 0.5
"""The mean difference, of 0 to 255, up to which a resized tensor is that of the same resize; of another it is several."""

Transform = Callable[[bytes], NDArray[Any]]
"""What the pipeline of the training makes of a picture's bytes: pixels [H,W,C] of 0 to 255."""


@dataclass(frozen=True)
class Reference:
    """Encoded pictures, and what is expected of them; None for what is not said."""

    name: str
    pictures: tuple[bytes, ...]
    pixels: NDArray[Any] | None = None
    inputs: NDArray[Any] | None = None
    outputs: NDArray[Any] | None = None


def read_reference(path: Path) -> Reference:
    """Reads a reference. Raises UserError if it is none."""
    content = read_file(path)
    if not content.startswith(_ZIP):
        raise UserError(f"--reference {path}: it is no .npz file; {ACCEPTED}")
    found: dict[str, NDArray[Any]] = {}
    name = ""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            for name in archive.files:
                found[name] = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, KeyError, TypeError) as error:
        if _OBJECTS in str(error):
            fitting = "np.array(names, dtype=str)" if name == "paths" else "an array of numbers"
            raise UserError(
                f"--reference {path}: {name} holds objects of Python, which are not read; {fitting} is accepted"
            ) from None
        raise UserError(f"--reference {path}: {first_line(error)}; {ACCEPTED}") from None
    if "paths" in found:
        if found["paths"].dtype.kind != "U":
            raise UserError(f"--reference {path}: paths is {found['paths'].dtype}; np.array(names, dtype=str) is accepted")
        pictures = [read_file(path.parent / str(name)) for name in found["paths"].ravel()]
    else:
        pictures = []
        while (picture := found.get(f"picture_{len(pictures)}")) is not None:
            if picture.dtype != np.uint8 or picture.ndim not in (1, 2, 3):
                raise UserError(f"--reference {path}: picture_{len(pictures)} is {picture.dtype} {picture.shape}; {ACCEPTED}")
            pictures.append(picture.tobytes() if picture.ndim == 1 else encode_png(picture))
    expected = {name: found[name] for name in ("pixels", "inputs", "outputs") if name in found}
    if not pictures or not expected:
        raise UserError(f"--reference {path}: it has {', '.join(sorted(found)) or 'nothing'}; {ACCEPTED}")
    for name, value in expected.items():
        if value.dtype.kind not in _NUMBERS:
            raise UserError(f"--reference {path}: {name} is {value.dtype}; numbers are accepted")
        if value.ndim < 2 or len(value) != len(pictures):
            raise UserError(f"--reference {path}: {name} {value.shape} is not one row for each of {len(pictures)} pictures")
    return Reference(path.name, tuple(pictures), **expected)


def check_pixels(
    reference: Reference | None, transform: Transform | None, pictures: list[bytes], network: NetworkInput, recipe: Recipe
) -> Gate:
    """Compares the server's pixels with the reference, or with what the training's transform makes of the pictures.

    Raises:
        UserError: a value differs, or a shape does.
    """
    if reference is not None and (reference.pixels is not None or reference.inputs is not None):
        seen = [_check_pixels(reference, recipe)] if reference.pixels is not None else []
        seen += [_check_inputs(reference, network, recipe)] if reference.inputs is not None else []
        return Gate("pixels", "; ".join(seen))
    if transform is not None:
        return _check_transform(transform, pictures, recipe)
    why = "no --reference says what pixels the training saw"
    if reference is not None:
        why = f"{reference.name} has outputs, and neither pixels nor inputs that the training saw"
    return Gate("pixels", f"not proved: {why}", proved=False)


def served_pixels(pictures: tuple[bytes, ...] | list[bytes], recipe: Recipe) -> NDArray[Any]:
    """The pictures as the server decodes them, [n,H,W,C]. Raises UserError for one that is none."""
    try:
        return np.stack([decode(picture, recipe.input, MAX_PIXELS) for picture in pictures])
    except InvalidRequest as error:
        raise UserError(f"a picture cannot be decoded: {error}") from None


def _check_pixels(reference: Reference, recipe: Recipe) -> str:
    expected, found = np.asarray(reference.pixels), served_pixels(reference.pictures, recipe)
    if expected.shape != found.shape:
        raise UserError(
            f"pixels gate: {reference.name} has pixels {expected.shape}, the server makes {found.shape}; nothing was written"
        )
    return _zero_differences(reference.name, expected, found)


def _check_inputs(reference: Reference, network: NetworkInput, recipe: Recipe) -> str:
    expected = np.asarray(reference.inputs).astype(np.float64)
    pixels = served_pixels(reference.pictures, recipe)
    item = network.tensor_shape[1:] if network.has_batch else network.tensor_shape
    found = np.stack([prepare(pixels[at : at + 1], network, recipe).reshape(item) for at in range(len(pixels))])
    if found.shape != expected.shape:
        raise UserError(
            f"pixels gate: {reference.name} has inputs {expected.shape}, the graph takes {found.shape}; nothing was written"
        )
    worst = float(np.abs(found.astype(np.float64) - expected).max())
    least_step = 1.0 / (recipe.scale * max(recipe.std))
    allowed = _INPUT_TOLERANCE if recipe.input.dtype == "float32" else min(_INPUT_TOLERANCE, 0.1 * least_step)
    if not worst <= allowed:
        raise UserError(
            f"pixels gate: the network's numbers differ from those of {reference.name} by up to {worst:.3g} (allowed: "
            f"{allowed:.0e}; one step of a pixel is {least_step:.3g}); nothing was written"
        )
    return f"the network's numbers are those of {reference.name} to {worst:.1e} on {len(expected)} pictures"


def _check_transform(transform: Transform, pictures: list[bytes], recipe: Recipe) -> Gate:
    """Every pixel is that of the transform; or close, and not proved, where PyTorch or an older Pillow rounds otherwise."""
    name, expected, found = f"the transform ({recipe.source})", [transform(picture) for picture in pictures], []
    for made, picture in zip(expected, pictures, strict=True):
        [served] = served_pixels([picture], recipe)
        if made.shape != served.shape:
            raise UserError(f"pixels gate: {name} gives pixels {made.shape}, the server makes {served.shape}; nothing was written")
        found.append(served)
    difference = np.abs(np.stack(expected).astype(np.float64) - np.stack(found))
    allowed = 0.0 if recipe.input.dtype == "uint8" else _FLOAT_PIXEL_TOLERANCE
    rounds_otherwise = recipe.source.endswith(RESIZES_TENSORS) or pillow_rounds_otherwise()
    if difference.max() > allowed and rounds_otherwise and difference.mean() <= _TENSOR_TOLERANCE:
        seen = f"{(difference > 0).mean():.2%} of the values differ from {name}, by up to {difference.max():.3g} of 255"
        if pillow_rounds_otherwise():
            seen += f"; Pillow {PIL.__version__} rounds otherwise than the server, which does as Pillow 13"
        return Gate("pixels", f"not proved: {seen}, on {len(pictures)} pictures", proved=False)
    if allowed and difference.max() <= allowed:
        return Gate("pixels", f"{name} gives the same to {allowed:g} of 255 on {len(pictures)} pictures")
    return Gate("pixels", _zero_differences(name, np.stack(expected), np.stack(found)))


def _zero_differences(name: str, expected: NDArray[Any], found: NDArray[Any]) -> str:
    differ = expected.astype(np.float64) != found.astype(np.float64)
    if differ.any():
        largest = float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max())
        pictures = int(differ.reshape(len(differ), -1).any(axis=1).sum())
        raise UserError(
            f"pixels gate: {differ.mean():.2%} of the values differ from {name}, by up to {largest:.3g}, on {pictures} of "
            f"{len(expected)} pictures (allowed: 0); nothing was written"
        )
    return f"0 of {differ.size:,} values differ from {name} on {len(expected)} pictures"


def check_outputs(reference: Reference, served: Model, wrapped: WrappedHead, recipe: Recipe, allowed: float) -> Gate:
    """Compares the first head's probabilities with those of a reference's `outputs`. Raises UserError if they differ."""
    raw = np.asarray(reference.outputs).reshape(len(reference.pictures), -1)
    if raw.shape[1] != wrapped.head.units:
        raise UserError(
            f"--reference {reference.name}: outputs of {raw.shape[1]} numbers, and {wrapped.head.value!r} has {wrapped.head.units}"
        )
    expected = wrapped.head.probabilities(raw)
    found = predict(served, served_pixels(reference.pictures, recipe))[PROBABILITIES_NAME]
    worst = float(np.abs(expected - found).max())
    if not worst <= allowed:
        raise UserError(
            f"outputs gate: the answers differ from those of {reference.name} by up to {worst:.2g} (allowed: {allowed:.0e}); "
            "nothing was written"
        )
    return Gate("outputs", f"largest difference from {reference.name} {worst:.1e} on {len(expected)} pictures")
