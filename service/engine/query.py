"""A classify request in the form that every API makes of it."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from service.engine.served_version import ServedVersion
from service.observability.trace_context import TraceContext
from service.requests.principal import UNKNOWN, Principal

MANY_ITEMS = 512
"""A request with more items is checked against its model's limit before they are read."""


class Item(NamedTuple):
    """One image: the bytes of an image file if `encoded`, else uint8[H,W,C] of exactly the model's shape, as bytes."""

    data: bytes
    encoded: bool


class Query(NamedTuple):
    """What a client asks: `items`, or a `tensor` [n, *shape] of the model's dtype and item shape.

    `version` is a number, an alias or empty; `top_k`, `priority` and `timeout_seconds` are 0 for the model's default. `deadline` is
    in `time.monotonic` seconds, infinite if there is none. `validate` is called with the model before it computes, and may raise
    RequestError, or return the tensor in the shape that the graph has for it, or the items that it stands for. `trace` is the
    client's trace, if it sent one; `id` is the client's name for the request; `principal` is who sent it. `hidden` asks
    for the model's hidden outputs, too. `metadata` are the keys, in lower case, and values that came beside it.
    """

    model: str
    items: Sequence[Item]
    version: str = ""
    top_k: int = 0
    priority: int = 0
    timeout_seconds: float = 0.0
    deadline: float = math.inf
    tensor: NDArray[Any] | None = None
    validate: Callable[[ServedVersion], NDArray[Any] | Sequence[Item] | None] | None = None
    trace: TraceContext | None = None
    id: str = ""
    principal: Principal = UNKNOWN
    hidden: bool = False
    metadata: Iterable[tuple[str, str | bytes]] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of its images, as they came, or of its tensor."""
        return sum(len(item.data) for item in self.items) if self.tensor is None else self.tensor.nbytes
