"""Weights to start from: read from a file of PyTorch, safetensors or ONNX, and loaded into a network as far as they fit.

A weight fits if it has the same name and shape. Nothing in the file is run: PyTorch's files are read with `weights_only`.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.files import read_file
from service.errors import UserError, first_line

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx")

_NESTED = ("state_dict", "model_state_dict", "model", "network", "net", "best")
"""Keys that hold the weights in files that hold more; `best` and `network` are those of our own checkpoints."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the names of a network."""
_COUNTERS = "num_batches_tracked"


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, by name.

    Attributes:
        file: its name.
        digest: SHA-256 of the file in hexadecimal.
        tensors: without prefixes that libraries add.
    """

    file: str
    digest: str
    tensors: Mapping[str, torch.Tensor]

    def __str__(self) -> str:
        return f"{self.file} (sha256 {self.digest})"


@dataclass(frozen=True)
class Loaded:
    """What a network took of a file. Counters of batches are left out.

    Attributes:
        file: the file's name.
        loaded: names of the network's weights that were loaded.
        fresh: of each one that was not: its name, its shape and the shape in the file, None if the file has none of that name.
        unused: names in the file of the weights that the network has not.
    """

    file: str
    loaded: tuple[str, ...]
    fresh: tuple[tuple[str, tuple[int, ...], tuple[int, ...] | None], ...]
    unused: tuple[str, ...]


def read_weights(path: Path) -> Weights:
    """Reads a file of weights.

    Raises:
        UserError: the file cannot be read, is of another kind, or holds no tensors by name, or such as no network here has.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or path.is_dir():
        raise UserError(f"--weights {path}: a file that ends in {', '.join(SUFFIXES)} is accepted")
    content = read_file(path)
    try:
        if suffix == ".safetensors":
            found = _of_safetensors(content)
        elif suffix == ".onnx":
            found = _of_onnx(path)
        else:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken file can raise anything
        advice = "; a file of torch.save(network.state_dict(), ...) is accepted" if "weights_only" in str(error).lower() else ""
        raise UserError(
            f"--weights {path}: not weights that can be read ({type(error).__name__}: {_reason(error)}){advice}"
        ) from None
    tensors = _without_prefixes(_unnested(found))
    if not tensors:
        raise UserError(f"--weights {path}: holds no tensors by name, as a state dict does")
    for name, value in tensors.items():
        if kind := _odd_kind(value):
            raise UserError(f"--weights {path}: {name} is a {kind} tensor; dense ones of real numbers are accepted")
    return Weights(path.name, hashlib.sha256(content).hexdigest(), tensors)


@torch.no_grad()
def load_weights(network: nn.Module, weights: Weights, rename: Callable[[str], str] = str) -> Loaded:
    """Loads what fits into a network; the rest of the network stays as it is.

    Args:
        network: the network to change.
        weights: what was read.
        rename: the network's name of a weight that the file has under another.

    Raises:
        UserError: nothing fits, or two parts of the file fit equally well.
    """
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    names = _named_as(wanted, weights, rename)
    given = {name: weights.tensors[source] for name, source in names.items()}
    fits = [name for name, value in wanted.items() if name in given and given[name].shape == value.shape]
    loaded = tuple(name for name in fits if not name.endswith(_COUNTERS))
    if not loaded:
        raise UserError(
            f"--weights {weights.file}: nothing in it fits the network: it has {_examples(given)}; "
            f"the network has {_examples(wanted)}"
        )
    for name in fits:
        wanted[name].copy_(given[name])  # converts the type of the numbers
    left = [name for name in wanted if name not in fits and not name.endswith(_COUNTERS)]
    taken = {source for name, source in names.items() if name in wanted}
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    return Loaded(
        weights.file,
        loaded,
        tuple((name, tuple(wanted[name].shape), shapes.get(name)) for name in left),
        tuple(source for source in weights.tensors if source not in taken and not source.endswith(_COUNTERS)),
    )


def _of_safetensors(content: bytes) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load
    except ImportError:
        raise UserError("--weights: files of safetensors need the package of that name (pip install safetensors)") from None
    tensors: dict[str, torch.Tensor] = load(content)
    return tensors


def _of_onnx(path: Path) -> dict[str, torch.Tensor]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph  # with the data in files beside it
    return {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}


def _unnested(found: Any) -> dict[str, torch.Tensor]:
    """The tensors by name, from under the keys that files put them under."""
    while isinstance(found, Mapping):
        inner = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
        found = inner
    return {}


def _odd_kind(tensor: torch.Tensor) -> str:
    """What a tensor is that cannot be copied into a weight; empty for one that can."""
    kinds = {
        "nested": tensor.is_nested, "quantised": tensor.is_quantized, "complex": tensor.is_complex(), "meta": tensor.is_meta,
        "sparse": tensor.layout != torch.strided,
    }  # fmt: skip
    return next((kind for kind, is_so in kinds.items() if is_so), "")


def _without_prefixes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while prefix := next((prefix for prefix in _PREFIXES if tensors and all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _named_as(wanted: Mapping[str, torch.Tensor], weights: Weights, rename: Callable[[str], str]) -> dict[str, str]:
    """The names in the file by the network's names, without the first part of them if the network has that nowhere.

    So `model.conv.weight` of a trainer's file, or `network.conv.weight` of our ONNX files, is the network's `conv.weight`.
    """
    tensors = weights.tensors
    firsts = dict.fromkeys(f"{name.partition('.')[0]}." for name in tensors if "." in name)
    choices = {
        first: {rename(name.removeprefix(first)): name for name in tensors if name.startswith(first)} for first in ("", *firsts)
    }
    fitting = {
        first: sum(name in wanted and tensors[source].shape == wanted[name].shape for name, source in names.items())
        for first, names in choices.items()
    }
    best = [first for first, count in fitting.items() if count == max(fitting.values())]
    if fitting[best[0]] and best[0] and len(best) > 1:
        raise UserError(
            f"--weights {weights.file}: {best[0]}* and {best[1]}* fit the network equally well; a file with one of them is accepted"
        )
    return choices[best[0]]


def _examples(tensors: Mapping[str, torch.Tensor]) -> str:
    names = [f"{name} {'x'.join(map(str, value.shape))}" for name, value in tensors.items() if value.ndim]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    """The first sentence: PyTorch's message of `weights_only` is a page, and advises to run what is in the file."""
    return first_line(error).partition(". ")[0]
