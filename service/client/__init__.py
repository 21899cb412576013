"""The Python client of `convoy.v1.Classifier`: `Client`, and `AsyncClient` for asyncio, with the same methods.

with Client("127.0.0.1:8001") as client:
    answer = client.classify(["cat.jpg", "dog.png"], model="pets")
    print(answer.results[0][0].label)

A Client may be shared between threads; an AsyncClient belongs to the event loop of its first call, until that is closed. Given
several servers, or a name with several addresses, a client uses those that are SERVING in turn. gRPC retries a call of up to 1 MiB
three times within about a second if no server could take it, or after the time that the server asks for if its queue was full.
"""

from service.client.aio import AsyncClient
from service.client.images import Image, Images, Pixels
from service.client.messages import (
    CallFailed,
    Classification,
    Explanation,
    ModelInfo,
    ModelStatus,
    Outcome,
    Prediction,
    RequestTooLarge,
)
from service.client.sync import Client

__all__ = [
    "AsyncClient", "CallFailed", "Classification", "Client", "Explanation", "Image", "Images", "ModelInfo", "ModelStatus",
    "Outcome", "Pixels", "Prediction", "RequestTooLarge",
]  # fmt: skip
