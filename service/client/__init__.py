"""The Python client of `convoy.v1.Classifier`: `Client`, and `AsyncClient` for asyncio."""

from service.client.messages import (
    CallFailed,
    Classification,
    Image,
    Images,
    ModelInfo,
    ModelStatus,
    Pixels,
    Prediction,
)
from service.client.aio import AsyncClient, Client

__all__ = [
    "AsyncClient", "CallFailed", "Classification", "Client", "Image", "Images", "ModelInfo", "ModelStatus", "Pixels", "Prediction",
]  # fmt: skip
