"""Which layers of a network with several heads belong to one head alone."""

from collections.abc import Sequence
from typing import NamedTuple

from export.inspection.activations import Activations, LayerActivation
from export.walkthrough.subject import SubjectHead


class HeadLayer(NamedTuple):
    """A layer, and the head that it is of; None for one that several heads, or all, are computed from."""

    layer: LayerActivation
    head: SubjectHead | None


def by_head(activations: Activations, heads: Sequence[SubjectHead]) -> list[HeadLayer]:
    """The layers in an order in which they can be computed: those that heads share, then those of the first head, and so on.

    An output from which another is computed, such as features or logits, is no head by itself.
    """
    sources = {head: activations.sources(head.outputs) for head in heads}
    real = [
        head
        for head in heads
        if not any(other != head and sources[other].issuperset(head.outputs) for other in heads)
    ]  # fmt: skip
    if len(real) < 2:
        return [HeadLayer(layer, None) for layer in activations.layers]
    found = []
    for layer in activations.layers:
        of = [head for head in real if layer.last.output[0] in sources[head]]
        found.append(HeadLayer(layer, of[0] if len(of) == 1 else None))
    return sorted(found, key=lambda each: -1 if each.head is None else real.index(each.head))
