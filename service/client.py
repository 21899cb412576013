"""A small typed client of `convoy.v1.Classifier`, in two forms: `Client`, and `AsyncClient` for asyncio.

with Client("127.0.0.1:8001") as client:
    answer = client.classify(["cat.jpg", "dog.png"], model="pets")
    print(answer.results[0][0].label)

A client may be given several servers, or a name with several addresses, and takes them in turn. gRPC itself tries a call
again when no server could take it, or the queue was full, after the time that the server asks for.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from service.client_messages import (
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
    model_info,
    model_statuses,
    needs_reading,
    outcome,
    read_file,
)
from service.client_stream import AsyncFeed, Feed
from service.errors import UserError
from service.pb.convoy.v1 import classifier_pb2 as pb

__all__ = [
    "AsyncClient", "CallFailed", "Classification", "Client", "Image", "Images", "ModelInfo", "ModelStatus", "Pixels", "Prediction",
]  # fmt: skip

IN_FLIGHT = 64
"""As many requests of a stream as a server reads before it has answered one."""

MAX_RETRIED_BYTES = 1024 * 1024
"""gRPC keeps a request to try it again up to this size. No server's limit is below it (`--max-message-bytes`), so that a request
which is refused as too large, with the status of a full queue, is never sent twice."""

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "convoy.v1.Classifier"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
}
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
_TARGET = re.compile(rf"(dns|unix|ipv4|ipv6|xds):\S+|{_HOST_PORT.pattern}")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}:[0-9]{1,5}")
_LOOPBACK = re.compile(r"(ipv4:)?127\.|localhost:|(ipv6:)?\[::1\]")


class _Connection:
    """Where the servers are, and how to speak to them."""

    def __init__(self, server: str | Sequence[str], tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None) -> None:
        self.target = _target(server)
        self.options: list[tuple[str, Any]] = [
            # What is too large is the server's to say.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            ("grpc.per_rpc_retry_buffer_size", MAX_RETRIED_BYTES),
            # A server that vanishes while calls are in flight is noticed in 30 seconds, not after TCP's quarter of an hour.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # A proxy in the environment is for other machines; gRPC would send calls to this one through it too.
            ("grpc.enable_http_proxy", 0 if _LOOPBACK.match(self.target) else 1),
        ]
        self.credentials: grpc.ChannelCredentials | None = None
        if tls_ca is None and tls_cert is None and tls_key is None:
            return
        if tls_ca is None or (tls_cert is None) != (tls_key is None):
            raise UserError("TLS needs the server's CA, and a client certificate needs its key: --tls-ca, --tls-cert, --tls-key")
        key, certificate = (read_file(path) if path is not None else None for path in (tls_key, tls_cert))
        self.credentials = grpc.ssl_channel_credentials(read_file(tls_ca), key, certificate)


def _target(server: str | Sequence[str]) -> str:
    """The one name that gRPC knows a server, or several, by."""
    if isinstance(server, str) and _TARGET.fullmatch(server):
        return server
    servers = server.split(",") if isinstance(server, str) else server
    if len(servers) == 1 and _TARGET.fullmatch(servers[0]):
        return servers[0]
    if len(servers) > 1 and all(_IPV4.fullmatch(each) for each in servers):
        return "ipv4:" + ",".join(servers)
    raise UserError(
        f"server {server!r}: give it as HOST:PORT, such as 127.0.0.1:8001 or [::1]:8001; several servers as a list of IPv4 "
        "addresses with ports, or as dns:///HOST:PORT, which stands for all addresses of the name"
    )


class _Stubs:
    """The methods of the service on a channel of either kind."""

    def __init__(self, channel: Any) -> None:
        def unary(name: str, request: Any, response: Any) -> Any:
            return channel.unary_unary(f"/convoy.v1.Classifier/{name}", request.SerializeToString, response.FromString)

        self.classify = unary("Classify", pb.ClassifyRequest, pb.ClassifyResponse)
        self.get_model = unary("GetModel", pb.GetModelRequest, pb.GetModelResponse)
        self.list_models = unary("ListModels", pb.ListModelsRequest, pb.ListModelsResponse)
        self.classify_stream = channel.stream_stream(
            "/convoy.v1.Classifier/ClassifyStream",
            pb.ClassifyStreamRequest.SerializeToString,
            pb.ClassifyStreamResponse.FromString,
        )


class Client:
    """A connection to one server or several. Safe to share between threads; close it, or use it in a `with` statement."""

    def __init__(
        self,
        server: str | Sequence[str] = "127.0.0.1:8001",
        *,
        timeout_seconds: float = 30.0,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        """Makes a client; it connects with its first call.

        Args:
            server: HOST:PORT; or a list of IPv4 addresses with ports, or dns:///HOST:PORT, of which each address takes its turn.
            timeout_seconds: the deadline of each call, with all that gRPC tries; a stream has none.
            tls_ca: PEM file of the CA that the server's certificate must come from; turns TLS on.
            tls_cert: PEM file of the client's certificate, for mutual TLS.
            tls_key: PEM file of its private key.

        Raises:
            UserError: not a server's address, or a PEM file cannot be read, or one is missing.
        """
        connection = _Connection(server, tls_ca, tls_cert, tls_key)
        self.server = connection.target
        self._timeout_seconds = timeout_seconds
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
            timeout_seconds: how long the server may take; 0 leaves it at the client's own deadline.

        Raises:
            UserError: a file cannot be read, or an array is not uint8.
            CallFailed: the server refused or failed, or cannot be reached.
        """
        request = classify_request(
            images, model=model, version=version, top_k=top_k, priority=priority, timeout_seconds=timeout_seconds
        )
        return classification(self._call(self._stubs.classify, request))

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
    ) -> Iterator[tuple[int, Classification | CallFailed]]:
        """Classifies any number of requests over one stream: the way to the most answers a second.

        Requests are taken as there is room for them, by a thread of the client's. When the stream breaks because its server
        drains or its connection has reached its age, what is not answered is sent again on a new one.

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
            while True:
                answered = False
                call = self._stubs.classify_stream(feed.outgoing())
                try:
                    for response in call:
                        answered = True
                        number = int(response.id)
                        if feed.answered(number):
                            yield number, outcome(response)
                    break
                except grpc.RpcError as error:
                    failed = call_failed(error)
                    if not answered or failed.code != "UNAVAILABLE":
                        raise failed from None
                finally:
                    call.cancel()
            feed.check()
        finally:
            feed.close()

    def model(self, model: str, version: str = "") -> ModelInfo:
        """What a served model takes and gives. Raises CallFailed, NOT_FOUND if it is not served."""
        return model_info(self._call(self._stubs.get_model, pb.GetModelRequest(model=model, version=version)))

    def models(self) -> list[ModelStatus]:
        """Every version in the server's repository, and how it stands. Raises CallFailed."""
        return model_statuses(self._call(self._stubs.list_models, pb.ListModelsRequest()))

    def _call(self, stub: Any, request: Any) -> Any:
        try:
            return stub(request, timeout=self._timeout_seconds)
        except grpc.RpcError as error:
            raise call_failed(error) from None


class AsyncClient:
    """`Client` for asyncio: the same arguments, answers and errors. To be made where a loop runs; close it, or use `async with`."""

    def __init__(
        self,
        server: str | Sequence[str] = "127.0.0.1:8001",
        *,
        timeout_seconds: float = 30.0,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        """See Client."""
        connection = _Connection(server, tls_ca, tls_cert, tls_key)
        self.server = connection.target
        self._timeout_seconds = timeout_seconds
        if connection.credentials is None:
            self._channel = grpc.aio.insecure_channel(connection.target, connection.options)
        else:
            self._channel = grpc.aio.secure_channel(connection.target, connection.credentials, connection.options)
        self._stubs = _Stubs(self._channel)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See Client."""
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
        return classification(await self._call(self._stubs.classify, request))

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
    ) -> AsyncIterator[tuple[int, Classification | CallFailed]]:
        """See Client; requests are taken by a task."""
        fields = {"model": model, "version": version, "top_k": top_k, "priority": priority, "timeout_seconds": timeout_seconds}
        feed = AsyncFeed(requests, fields, in_flight)
        try:
            while True:
                answered = False
                call = self._stubs.classify_stream()
                writing = asyncio.create_task(feed.write_to(call))
                try:
                    async for response in call:
                        answered = True
                        number = int(response.id)
                        if await feed.answered(number):
                            yield number, outcome(response)
                    break
                except grpc.aio.AioRpcError as error:
                    failed = call_failed(error)
                    if not answered or failed.code != "UNAVAILABLE":
                        raise failed from None
                finally:
                    writing.cancel()
                    call.cancel()
            feed.check()
        finally:
            feed.close()

    async def model(self, model: str, version: str = "") -> ModelInfo:
        """See Client."""
        return model_info(await self._call(self._stubs.get_model, pb.GetModelRequest(model=model, version=version)))

    async def models(self) -> list[ModelStatus]:
        """See Client."""
        return model_statuses(await self._call(self._stubs.list_models, pb.ListModelsRequest()))

    async def _call(self, stub: Any, request: Any) -> Any:
        try:
            return await stub(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise call_failed(error) from None
