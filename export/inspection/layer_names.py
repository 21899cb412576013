"""The name of a layer: one rule, used everywhere that layers are shown."""

import ast
from collections.abc import Sequence

import onnx


def layer_name(node: onnx.NodeProto, weights: Sequence[str]) -> str:
    """The name of the PyTorch module that the node comes from, else the node's own name or that of its output.

    The module is taken from the names of the `weights` first, then from the exporter's note on the node: a convolution with a
    batch norm folded into it carries the note of the norm.
    """
    for weight in weights:
        module, dot, _ = weight.partition(".weight")
        if dot:
            return module.removeprefix("network.")
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = [str(scope) for scope in ast.literal_eval(entry.value)]
            except (ValueError, SyntaxError):
                break
            if len(scopes) > 2 and scopes[-2]:  # the last is the operation inside the module
                return scopes[-2].removeprefix("network.")
    return node.name.removeprefix("node_") or next(filter(None, node.output), "")
