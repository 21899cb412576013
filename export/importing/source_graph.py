"""Runs a source's own graph on pictures: what its outputs are is seen so, and what the wrapped graph must give."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.importing.network_input import NetworkInput
from export.importing.recipe import Recipe
from export.importing.wrapping import prepare
from service.errors import LoadError, UserError
from service.model.cpus import cpu_budget
from service.model.session import OpenGraph

_BATCH_ITEMS = 8


class SourceGraph:
    """A session of the source's graph, with the recipe in numpy before it.

    Attributes:
        values: names of what it gives.
    """

    def __init__(self, model: onnx.ModelProto, network: NetworkInput, recipe: Recipe, values: Sequence[str]) -> None:
        """Raises UserError if ONNX Runtime cannot load the graph."""
        self.values = tuple(values)
        self._network = network
        self._recipe = recipe
        probed = onnx.ModelProto()
        probed.CopyFrom(model)
        del probed.graph.output[:]
        probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(values))
        try:
            self._session = OpenGraph(probed.SerializeToString(), cpu_budget())
        except LoadError as error:
            raise UserError(f"{error}") from None

    def with_recipe(self, recipe: Recipe) -> "SourceGraph":
        """The same session with another recipe before it."""
        other = copy.copy(self)
        other._recipe = recipe
        return other

    def run(self, pixels: NDArray[Any], items: int = 0) -> dict[str, NDArray[Any]]:
        """Each value, [n, ...], for pixels [n,H,W,C]; `items` at a time, or as many as the graph takes.

        Raises UserError if the graph fails, or gives another number of rows.
        """
        fixed = self._network.batch_items if self._network.has_batch else 1
        step = fixed or items or _BATCH_ITEMS
        parts = [self._run_batch(pixels[at : at + step], step if fixed else 0) for at in range(0, len(pixels), step)]
        return {name: _joined([part[name] for part in parts]) for name in self.values}

    def _run_batch(self, pixels: NDArray[Any], padded_to: int) -> dict[str, NDArray[Any]]:
        count = len(pixels)
        if count < padded_to:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], padded_to - count, axis=0)])
        try:
            given = self._session.run(prepare(pixels, self._network, self._recipe))
        except LoadError as error:
            raise UserError(f"the graph fails on pictures of {self._network.height}x{self._network.width}: {error}") from None
        return {name: self._rows(name, value, len(pixels))[:count] for name, value in given.items()}

    def _rows(self, name: str, value: Any, items: int) -> NDArray[Any]:
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.number):
            return np.zeros((items, 0))
        if not self._network.has_batch and (value.ndim == 0 or value.shape[0] != 1 or value.ndim == 1):
            return value[None]
        if value.ndim == 0 or len(value) != items:
            if value.ndim and items == 1:
                return value[None]  # no row an item: seen as one item of more dimensions
            raise UserError(f"the graph gives {name!r} {value.shape} for a batch of {items}; one row an item is accepted")
        return value


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """The rows of all batches; [n,0] where their shapes differ, as of boxes that are found in a picture: those are no scores."""
    if len({part.shape[1:] for part in parts}) > 1:
        return np.zeros((sum(map(len, parts)), 0))
    return np.concatenate(parts)
