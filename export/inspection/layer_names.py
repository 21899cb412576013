"""What a node of an ONNX graph is called: the same name wherever layers are shown."""

import ast
from collections.abc import Sequence

import onnx


def layer_name(node: onnx.NodeProto, weights: Sequence[str]) -> str:
    """The PyTorch module that the node comes from, where the exporter notes it; else the node's own name, or its output's.

    A weight's name says it best: a convolution that a batch norm was folded into is noted as that norm.
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
            if len(scopes) > 2 and scopes[-2]:  # the last is the operation within the module
                return scopes[-2].removeprefix("network.")
    return node.name.removeprefix("node_") or next(filter(None, node.output), "")
