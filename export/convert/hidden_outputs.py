"""Adds outputs to a graph that a server computes only for those who ask: for class activation maps, and embeddings.

What is added is a value that the network computes anyway. An answer without it holds none of it, but ONNX Runtime runs the added
Cast all the same and fuses nothing across the value, which is some percent of a small network's time.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from export.inspection.activations import Activations
from export.inspection.average_pooling import average_pooling, last_product
from service.errors import UserError
from service.model.contract import ACTIVATIONS_NAME, CLASS_WEIGHTS_NAME, EMBEDDING_NAME, LOGITS_NAME, PROBABILITIES_NAME, Contract
from service.model.cpus import cpu_budget

_EXAMPLE_SEED = 0


@dataclass(frozen=True)
class HiddenOutputs:
    """Which outputs are wanted: for class activation maps, and embeddings."""

    explainable: bool = False
    embeddings: bool = False

    def add_to(self, graph: onnx.ModelProto, contract: Contract) -> tuple[onnx.ModelProto, Contract]:
        """The graph with the outputs that are wanted, and the contract that states them. `graph` is not changed.

        Raises:
            UserError: the network has no such value.
        """
        if not (self.explainable or self.embeddings):
            return graph, contract
        extended = (
            inliner.inline_local_functions(graph) if graph.functions else onnx.ModelProto.FromString(graph.SerializeToString())
        )
        if contract.batch_items > 1:
            raise UserError(
                f"{self._flags}: the graph takes batches of exactly {contract.batch_items}; a free batch size is needed"
            )
        example = np.random.default_rng(_EXAMPLE_SEED).integers(0, 256, (1, *contract.input.shape))
        found = Activations(extended, True, example.astype(contract.input.dtype), cpu_budget())
        rows = contract.batch_items or "N"
        changes: dict[str, object] = {}
        if self.explainable:
            changes["activations"] = _add_activations(extended, found, rows)
        if self.embeddings:
            changes["embedding"] = _add_embedding(extended, found, rows)
        return extended, contract.model_copy(update=changes)

    @property
    def _flags(self) -> str:
        return " ".join(["--explainable"] * self.explainable + ["--embeddings"] * self.embeddings)


def _add_activations(model: onnx.ModelProto, found: Activations, rows: int | str) -> tuple[int, ...]:
    """Adds the activations before global average pooling, and the class weights after it. Returns the shape of an item's."""
    pooling = average_pooling(found, LOGITS_NAME) or average_pooling(found, PROBABILITIES_NAME)
    if pooling is None:
        raise UserError(
            "--explainable: the network does not end in global average pooling and a linear layer, as resnet18 does; without the "
            "flag a server explains its answers by hiding parts of the picture, which works for every network"
        )
    shape = found.value(pooling.maps).shape[1:]
    _add_output(model, pooling.maps, ACTIVATIONS_NAME, [rows, *shape])
    if pooling.weights is not None:
        source = f"{CLASS_WEIGHTS_NAME}_value"
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(pooling.weights, np.float32), source))
        model.graph.node.append(helper.make_node("Identity", [source], [CLASS_WEIGHTS_NAME], name=CLASS_WEIGHTS_NAME))
        model.graph.output.append(helper.make_tensor_value_info(CLASS_WEIGHTS_NAME, TensorProto.FLOAT, pooling.weights.shape))
    return shape


def _add_embedding(model: onnx.ModelProto, found: Activations, rows: int | str) -> int:
    """Adds what the last linear layer takes. Returns how many numbers an item has."""
    product = last_product(found, LOGITS_NAME) or last_product(found, PROBABILITIES_NAME)
    value = None if product is None else found.value(product.input[0])
    if product is None or value is None or value.size != np.prod(value.shape[1:]):
        raise UserError("--embeddings: the network does not end in a linear layer, whose input is the embedding")
    _add_output(model, product.input[0], EMBEDDING_NAME, [rows, int(value.size)], flat=value.ndim > 2)
    return int(value.size)


def _add_output(model: onnx.ModelProto, value: str, name: str, shape: list[int | str], *, flat: bool = False) -> None:
    """Adds `value` as a float32 output of this name, [N, ...]; as rows of numbers if it is to be `flat`."""
    nodes = [helper.make_node("Cast", [value], [name], to=TensorProto.FLOAT, name=name)]
    if flat:
        nodes[0].input[0] = f"{name}_rows"
        nodes.insert(0, helper.make_node("Flatten", [value], [f"{name}_rows"], name=f"{name}_rows"))
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
