"""Convoy's server and client: an ONNX classifier answered over gRPC in batches; or in the own process, by `Local`."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.local import Local

__all__ = ["Local"]

DISTRIBUTION = "convoy-serving"
"""The name of the installed package; `convoy` on PyPI is another project's."""

if os.path.exists(os.path.join(os.path.dirname(__file__), "compiled.sha256")):  # noqa: PTH110, PTH118, PTH120 - pathlib takes longer to import
    from service.compiled import check_fresh

    check_fresh()


def convoy_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import version  # not at import: clients do not need it

    return version(DISTRIBUTION)


def __getattr__(name: str) -> Any:
    """Imports `Local` when it is asked for: it needs the extras of a server, and clients do not."""
    if name != "Local":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from service.local import Local

    return Local
