"""A small typed client of `convoy.v1.Classifier`, in two forms: `Client`, and `AsyncClient` for asyncio.

with Client("127.0.0.1:8001") as client:
    answer = client.classify(["cat.jpg", "dog.png"], model="pets")
    print(answer.results[0][0].label)

A client may be given several servers, or a name with several addresses, and takes in turn those that say they serve. gRPC itself
tries a call of up to 1 MiB again, three times within a second, when no server could take it, and when the queue was full, after the
time that the server asks for.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

from service.client.connection import Connection, checked_timeout, deadline_seconds
from service.client.messages import (
    CallFailed,
    Classification,
    Image,
    Images,
    ModelInfo,
    ModelStatus,
    Pixels,
    Prediction,
    call_failed,
    classification,
    classify_request,
    filled,
    model_info,
    model_statuses,
    needs_reading,
    outcome,
)
from service.client.stream import AsyncFeed, Feed
from service.pb.convoy.v1 import classifier_pb2 as pb

__all__ = [
    "AsyncClient", "CallFailed", "Classification", "Client", "Image", "Images", "ModelInfo", "ModelStatus", "Pixels", "Prediction",
]  # fmt: skip

IN_FLIGHT = 64
"""As many requests of a stream as a server reads before it has answered one."""


class _Stubs:
    """The methods of the service on a channel of either kind."""

    def __init__(self, channel: Any) -> None:
        def unary(name: str, request: Any, response: Any) -> Any:
            return _unless_closed(
                channel.unary_unary(f"/convoy.v1.Classifier/{name}", request.SerializeToString, response.FromString)
            )

        self.classify = unary("Classify", pb.ClassifyRequest, pb.ClassifyResponse)
        self.get_model = unary("GetModel", pb.GetModelRequest, pb.GetModelResponse)
        self.list_models = unary("ListModels", pb.ListModelsRequest, pb.ListModelsResponse)
        self.classify_stream = _unless_closed(
            channel.stream_stream(
                "/convoy.v1.Classifier/ClassifyStream",
                pb.ClassifyStreamRequest.SerializeToString,
                pb.ClassifyStreamResponse.FromString,
            )
        )


def _unless_closed(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that raises CallFailed once its channel is closed."""

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except (ValueError, grpc.aio.UsageError):
            raise _closed() from None

    return call


def _closed() -> CallFailed:
    return CallFailed("CANCELLED", "the client is closed")


class Client:
    """A connection to one server or several. Safe to share between threads; close it, or use it in a `with` statement."""

    def __init__(
        self,
        server: str | Sequence[str] = "127.0.0.1:8001",
        *,
        timeout_seconds: float | None = 30.0,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        """Makes a client; it connects with its first call.

        Args:
            server: HOST:PORT; or a list of IPv4 addresses with ports, or dns:///HOST:PORT, of which each address takes its turn.
            timeout_seconds: the deadline of each call, with all that gRPC tries; None for no deadline. A stream has none.
            tls_ca: PEM file of the CA that the server's certificate must come from; turns TLS on.
            tls_cert: PEM file of the client's certificate, for mutual TLS.
            tls_key: PEM file of its private key.

        Raises:
            UserError: not a server's address, no timeout, or a PEM file is missing or is not what it should be.
        """
        connection = Connection(server, tls_ca, tls_cert, tls_key)
        self.server = connection.target
        self._timeout_seconds = checked_timeout(timeout_seconds)
        if connection.credentials is None:
            self._channel = grpc.insecure_channel(connection.target, connection.options)
        else:
            self._channel = grpc.secure_channel(connection.target, connection.credentials, connection.options)
        self._stubs = _Stubs(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._channel.close()

    def classify(
        self,
        images: Images,
        model: str,
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
    ) -> Classification:
        """Classifies images with one model, in one request.

        Args:
            images: at least one; kinds may be mixed. Or uint8[N,H,W,C].
            model: the model's name.
            version: a version number or an alias; empty for the one served by default.
            top_k: how many labels an image gets; 0 means 5.
            priority: 1 is served first; 0 means the model's default level.
            timeout_seconds: how long the server may take, and the call a second more; 0 leaves it at the client's own deadline.

        Raises:
            UserError: a file cannot be read, an array is not uint8, or a field has a value that it cannot have.
            CallFailed: the server refused or failed, or cannot be reached.
        """
        request = classify_request(
            images, model=model, version=version, top_k=top_k, priority=priority, timeout_seconds=timeout_seconds
        )
        return classification(self._call(self._stubs.classify, request, timeout_seconds))

    def classify_stream(
        self,
        requests: Iterable[Images],
        model: str,
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
        in_flight: int = IN_FLIGHT,
    ) -> Generator[tuple[int, Classification | CallFailed], None, None]:
        """Classifies any number of requests over one stream: the way to the most answers a second.

        Requests are taken as there is room for them, by a thread of the client's. When the stream breaks because its server
        drains or its connection has reached its age, what is not answered is sent again on a new one; for about a second, if
        nothing is answered meanwhile.

        Args:
            requests: the images of each request, as for `classify`.
            model: the model's name.
            version: as for `classify`.
            top_k: as for `classify`.
            priority: as for `classify`.
            timeout_seconds: how long the server may take for each request; 0 sets no limit.
            in_flight: how many requests may be unanswered.

        Yields:
            The number of a request, from 0, and its answer, or the CallFailed that the server refused it with; as they are ready.

        Raises:
            UserError: a request cannot be made; what was sent before is answered first.
            CallFailed: the stream could not be had, or it broke for another reason.
        """
        fields = {"model": model, "version": version, "top_k": top_k, "priority": priority, "timeout_seconds": timeout_seconds}
        feed = Feed(requests, fields, in_flight)
        try:
            while feed.waiting():
                call = self._stubs.classify_stream(feed.outgoing())
                try:
                    for response in call:
                        number = int(response.id)
                        if feed.answered(number):
                            yield number, outcome(response)
                    break
                except grpc.RpcError as error:
                    refused = feed.too_large(error)
                    if refused is None:
                        time.sleep(feed.pause_seconds(error))
                    elif feed.answered(refused):
                        yield refused, call_failed(error)
                finally:
                    call.cancel()
            feed.check()
        finally:
            feed.close()

    def model(self, model: str, version: str = "") -> ModelInfo:
        """What a served model takes and gives. Raises UserError, or CallFailed: NOT_FOUND if it is not served."""
        return model_info(self._call(self._stubs.get_model, filled(pb.GetModelRequest(), model=model, version=version)))

    def models(self) -> list[ModelStatus]:
        """Every version in the server's repository, and how it stands. Raises CallFailed."""
        return model_statuses(self._call(self._stubs.list_models, pb.ListModelsRequest()))

    def _call(self, stub: Any, request: Any, server_seconds: float = 0.0) -> Any:
        try:
            return stub(request, timeout=deadline_seconds(self._timeout_seconds, server_seconds))
        except grpc.RpcError as error:
            raise call_failed(error) from None


class AsyncClient:
    """`Client` for asyncio: the same arguments, answers and errors. To be made where a loop runs; close it, or use `async with`."""

    def __init__(
        self,
        server: str | Sequence[str] = "127.0.0.1:8001",
        *,
        timeout_seconds: float | None = 30.0,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        """See Client."""
        connection = Connection(server, tls_ca, tls_cert, tls_key)
        self.server = connection.target
        self._timeout_seconds = checked_timeout(timeout_seconds)
        if connection.credentials is None:
            self._channel = grpc.aio.insecure_channel(connection.target, connection.options)
        else:
            self._channel = grpc.aio.secure_channel(connection.target, connection.credentials, connection.options)
        self._closed = False
        self._stubs = _Stubs(self._channel)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See Client."""
        self._closed = True
        await self._channel.close()

    async def classify(
        self,
        images: Images,
        model: str,
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
    ) -> Classification:
        """See Client."""
        fields = {"model": model, "version": version, "top_k": top_k, "priority": priority, "timeout_seconds": timeout_seconds}
        if needs_reading(images):
            request = await asyncio.to_thread(classify_request, images, **fields)
        else:
            request = classify_request(images, **fields)
        return classification(await self._call(self._stubs.classify, request, timeout_seconds))

    async def classify_stream(
        self,
        requests: Iterable[Images] | AsyncIterable[Images],
        model: str,
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
        in_flight: int = IN_FLIGHT,
    ) -> AsyncGenerator[tuple[int, Classification | CallFailed], None]:
        """See Client; requests are taken by a task."""
        fields = {"model": model, "version": version, "top_k": top_k, "priority": priority, "timeout_seconds": timeout_seconds}
        feed = AsyncFeed(requests, fields, in_flight)
        try:
            while await feed.waiting():
                call = self._stubs.classify_stream()
                writing = asyncio.create_task(feed.write_to(call))
                try:
                    async for response in call:
                        number = int(response.id)
                        if await feed.answered(number):
                            yield number, outcome(response)
                    break
                except grpc.aio.AioRpcError as error:
                    refused, suspect = feed.too_large(error), feed.suspect(error)
                    if refused is not None:
                        if await feed.answered(refused):
                            yield refused, call_failed(error)
                    elif suspect is not None:
                        answer = await self._outcome(suspect, timeout_seconds)
                        if await feed.answered(int(suspect.id)):
                            yield int(suspect.id), answer
                    else:
                        await asyncio.sleep(feed.pause_seconds(error))
                except asyncio.CancelledError:
                    self._check_open()
                    raise
                finally:
                    writing.cancel()
                    call.cancel()
            feed.check()
        finally:
            feed.close()

    async def _outcome(self, request: pb.ClassifyRequest, timeout_seconds: float) -> Classification | CallFailed:
        """As a stream's. Raises CallFailed if servers do not answer, after gRPC's retries."""
        try:
            return classification(await self._call(self._stubs.classify, request, timeout_seconds))
        except CallFailed as failed:
            if failed.code in ("UNAVAILABLE", "CANCELLED"):
                raise
            return failed

    async def model(self, model: str, version: str = "") -> ModelInfo:
        """See Client."""
        return model_info(await self._call(self._stubs.get_model, filled(pb.GetModelRequest(), model=model, version=version)))

    async def models(self) -> list[ModelStatus]:
        """See Client."""
        return model_statuses(await self._call(self._stubs.list_models, pb.ListModelsRequest()))

    async def _call(self, stub: Any, request: Any, server_seconds: float = 0.0) -> Any:
        try:
            return await stub(request, timeout=deadline_seconds(self._timeout_seconds, server_seconds))
        except grpc.aio.AioRpcError as error:
            raise call_failed(error) from None
        except asyncio.CancelledError:
            self._check_open()
            raise

    def _check_open(self) -> None:
        """Raises CallFailed if a call was cancelled because the client was closed, not its task, though gRPC tells it so."""
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise _closed() from None
