"""Makes a graph of a fixed batch take any number of items, where it can. Whether it can is found by running it."""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.importing import onnx_graph
from export.importing.network_input import NetworkInput
from export.importing.recipe import Recipe
from export.importing.source_graph import SourceGraph
from service.errors import UserError

_TRIED_ITEMS = (1, 2, 3, 5)
_RELATIVE_TOLERANCE = 1e-3


def with_open_batch(
    model: onnx.ModelProto, network: NetworkInput, recipe: Recipe, values: list[str], pixels: NDArray[np.generic]
) -> onnx.ModelProto | None:
    """The graph with an open batch, or None if it does not give the same then.

    Args:
        model: the graph, of a fixed batch.
        network: what it takes.
        recipe: what happens to pixels.
        values: what must stay the same.
        pixels: [n,H,W,C] to try it on.
    """
    from dataclasses import replace

    opened = replace(network, batch_items=0)
    expected = SourceGraph(model, network, recipe, values).run(pixels)
    for candidate in _candidates(model, network):
        try:
            graph = SourceGraph(candidate, opened, recipe, values)
            for items in _TRIED_ITEMS:
                found = graph.run(pixels, items)
                if not all(_close(expected[name], found[name]) for name in values):
                    break
            else:
                return candidate
        except UserError:  # it fails on another batch
            continue
    return None


def _candidates(model: onnx.ModelProto, network: NetworkInput) -> Iterator[onnx.ModelProto]:
    """The graph with an open batch; then also with the batch that is written into the shapes of `Reshape` open."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    value = next(value for value in opened.graph.input if value.name == network.name)
    value.type.tensor_type.shape.dim[0].dim_param = "N"
    del opened.graph.value_info[:]
    for output in opened.graph.output:
        output.type.ClearField("value")
    yield opened
    reshaped = onnx.ModelProto()
    reshaped.CopyFrom(opened)
    onnx_graph.constants_as_weights(reshaped)
    weights = {tensor.name: tensor for tensor in reshaped.graph.initializer}
    changed = False
    for node in reshaped.graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        shape = numpy_helper.to_array(tensor).tolist() if tensor is not None else []
        if tensor is not None and len(shape) > 1 and shape[0] == network.batch_items:
            shape[0] = 0 if -1 in shape else -1  # 0: as many as there were
            name = f"{node.output[0]}__shape"
            reshaped.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
            node.input[1] = name
            changed = True
    if changed:
        yield reshaped


def _close(expected: NDArray[np.generic], found: NDArray[np.generic]) -> bool:
    if expected.shape != found.shape:
        return False
    largest = float(np.abs(expected.astype(np.float64)).max(initial=0.0))
    return bool(np.allclose(expected, found, rtol=_RELATIVE_TOLERANCE, atol=_RELATIVE_TOLERANCE * max(largest, 1e-6) * 0.1))
