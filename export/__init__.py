"""Convoy's export stage: trains a PyTorch CNN and writes one self-describing ONNX file; imports models that others trained."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.importing.publish_api import publish

__all__ = ["publish"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for: most commands need neither PyTorch nor ONNX."""
    if name != "publish":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from export.importing.publish_api import publish

    return publish
