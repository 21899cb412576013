"""The name of a layer: one rule, used everywhere that layers are shown; and which layers have a batch norm folded into them."""

import ast
from collections.abc import Sequence

import onnx


def layer_name(node: onnx.NodeProto, weights: Sequence[str]) -> str:
    """The name of the PyTorch module that the node comes from, else the node's own name or that of its output.

    The module is taken from the names of the `weights` first, then from the exporter's note on the node: a convolution with a
    batch norm folded into it carries the note of the norm. Of a norm by itself the note comes first: weights that are equal, such
    as the scales of norms that have learned nothing, are stored once, under the name of the first.
    """
    scopes = _scopes(node)
    for weight in () if scopes and node.op_type == "BatchNormalization" else weights:
        module, dot, _ = weight.partition(".weight")
        if dot:
            return module.removeprefix("network.")
    if len(scopes) > 2 and scopes[-2]:  # the last is the operation inside the module
        return scopes[-2].removeprefix("network.")
    return node.name.removeprefix("node_") or next(filter(None, node.output), "")


def has_folded_norm(node: onnx.NodeProto) -> bool:
    """Whether PyTorch's exporter folded a batch norm into the weights of this node."""
    scopes = _scopes(node)
    return node.op_type != "BatchNormalization" and bool(scopes) and "batch_norm" in scopes[-1]


def _scopes(node: onnx.NodeProto) -> list[str]:
    """The exporter's note on a node: the modules that it comes from, outermost first, and the operation; empty without one."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                return [str(scope) for scope in ast.literal_eval(entry.value)]
            except (ValueError, SyntaxError):
                break
    return []
