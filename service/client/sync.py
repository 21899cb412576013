"""The synchronous client. Generated from aio.py by `make sync-client`: edit that."""

import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

from service.client.connection import (
    FOREVER_SECONDS,
    ChannelSettings,
    Connection,
    Stubs,
    Token,
    checked_connections,
    checked_timeout,
    deadline_seconds,
)
from service.client.images import Image, Images
from service.client.messages import (
    CallFailed,
    Classification,
    Explanation,
    ModelInfo,
    ModelStatus,
    Outcome,
    classification,
    classify_request,
    explain_request,
    explanations,
    filled,
    model_info,
    model_statuses,
    outcome,
)
from service.client.stream import IN_FLIGHT, Window
from service.client.sync_many import ManyImages
from service.pb.convoy.v1 import classifier_pb2 as pb

_Request = TypeVar("_Request", pb.ClassifyRequest, pb.ExplainRequest)


class Client:
    """A client of one server, or of several with the same models. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        server: str | Sequence[str] = "127.0.0.1:8001",
        *,
        timeout_seconds: float | None = 30.0,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        token: Token | None = None,
        insecure: bool = False,
        connections: int = 1,
    ) -> None:
        """Connects with the first call.

        Args:
            server: HOST:PORT or unix:PATH; or several that take turns: a list of IP addresses with ports, a list of unix:PATH, or
                dns:///HOST:PORT for all addresses of a name.
            timeout_seconds: the deadline of each call, retries included; None for no deadline. A stream has none.
            tls_ca: PEM file of the CA that signed the server's certificate; turns TLS on.
            tls_cert: PEM file of the client's certificate, for mutual TLS.
            tls_key: PEM file of its private key.
            token: says who calls, to a server with `--auth`: a token, or a function that returns the one to send, for each call.
            insecure: send the token over connections without TLS to other machines too.
            connections: how many to each server; calls take them in turn. A server with several workers answers each connection
                with one of them. A stream stays with one server: of a name (dns:///) as many are used as there are connections.

        Raises:
            UserError: an invalid address, timeout, token or number of connections, a PEM file that is missing or invalid, or a
                token without TLS.
        """
        self._settings = ChannelSettings(server, tls_ca, tls_cert, tls_key, token, insecure=insecure)
        self.server = self._settings.target
        self._timeout_seconds = checked_timeout(timeout_seconds)
        shared = checked_connections(connections) == 1
        self._connections = [Connection(self._settings, grpc, shared=shared) for _ in range(connections)]
        self._turns = itertools.cycle(self._connections)
        # A stream stays with one server: so that each of a list gets one, it is connected to by itself.
        each = self._settings.each()
        self._to_each = [(settings, Connection(settings, grpc, shared=shared)) for settings in each for _ in range(connections)]
        if len(each) == 1:
            self._to_each = [(self._settings, connection) for connection in self._connections]

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls in flight are cancelled."""
        for connection in [*self._connections, *(connection for _, connection in self._to_each)]:
            channel = connection.close()
            if channel is not None:
                channel.close()

    def classify(
        self,
        images: Images,
        model: str,
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
        embeddings: bool = False,
    ) -> Classification:
        """Classifies images with one model, in one request.

        Args:
            images: at least one; kinds may be mixed. Or uint8[N,H,W,C].
            model: the model's name.
            version: a version number or an alias; empty for the one served by default.
            top_k: how many labels an image gets; 0 means 5.
            priority: 1 is served first; 0 means the model's default level.
            timeout_seconds: the server's time limit; the call's deadline is a second later. 0: the client's deadline alone.
            embeddings: return those too, of a model that was exported with `--embeddings`.

        Raises:
            UserError: a file cannot be read, an array is not uint8, or an argument has an invalid value.
            CallFailed: the server refused or failed, or cannot be reached.
        """
        fields = {"model": model, "version": version, "top_k": top_k, "priority": priority, "timeout_seconds": timeout_seconds}
        fields["embeddings"] = embeddings
        return classification(self._call(self._stubs().classify, _request(images, fields, classify_request), timeout_seconds))

    def explain(
        self, images: Images, model: str, label: str | None = None, *, version: str = "", timeout_seconds: float = 0.0
    ) -> list[Explanation]:
        """Says which pixels of each image spoke for a label.

        Args:
            images: a few: at most 4, unless the model's policy says otherwise (`max_explain_items`).
            model: the model's name.
            label: what to explain; None for the best label of each image.
            version: as for `classify`.
            timeout_seconds: as for `classify`.

        Raises:
            UserError: as `classify`.
            CallFailed: as `classify`; also for too many images, and for a model that was not exported or imported by Convoy.
        """
        fields = {"model": model, "label": "" if label is None else label, "version": version, "timeout_seconds": timeout_seconds}
        request = _request(images, fields, explain_request)
        return explanations(self._call(self._stubs().explain, request, timeout_seconds))

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
        embeddings: bool = False,
    ) -> Generator[tuple[int, Classification | CallFailed], None, None]:
        """Classifies any number of requests over one stream, and reports what became of each: the lower layer of `classify_many`.

        It does not adapt to the server. A request that is refused because the queue is full (RESOURCE_EXHAUSTED), or because the
        server is still loading (UNAVAILABLE), is not sent again, and a queue of 1,024 images is full with 16 requests of 64.

        Requests are taken from the iterable in the background, as soon as there is room for them. When the stream breaks because
        its server drains or its connection has reached its maximum age, unanswered requests are sent again on a new one, for about
        a second without an answer.

        Args:
            requests: the images of each request, as for `classify`.
            model: the model's name.
            version: as for `classify`.
            top_k: as for `classify`.
            priority: as for `classify`.
            timeout_seconds: the server's time limit for each request; 0 sets none.
            in_flight: how many requests may be unanswered.
            embeddings: as for `classify`.

        Yields:
            The number of a request, from 0, and its answer, or the CallFailed it was refused with; in the order of completion.

        Raises:
            UserError: a request cannot be built; those before it are answered first.
            CallFailed: the stream could not be opened, or broke for another reason.
        """
        fields = {"model": model, "version": version, "top_k": top_k, "priority": priority, "timeout_seconds": timeout_seconds}
        fields["embeddings"] = embeddings
        connection = next(self._turns)
        self._stubs(connection)  # raises before anything is taken from `requests`
        feed = Feed(requests, fields, in_flight)
        try:
            while feed.wait_for_unanswered():
                messages = feed.messages()
                call = self._stubs(connection).classify_stream(messages)
                try:
                    for response in call:
                        number = int(response.id)
                        if feed.answered(number):
                            yield number, outcome(response)
                    break
                except grpc.RpcError as error:
                    at_fault = self._at_fault(feed, self._settings.call_failed(error))
                    if at_fault is not None and feed.answered(at_fault[0]):
                        yield at_fault
                finally:
                    call.cancel()
            feed.check_complete()
        finally:
            feed.close()

    def _at_fault(self, feed: "Feed", failed: CallFailed) -> tuple[int, Classification | CallFailed] | None:
        """The request that broke an RPC, and its outcome; None if none did, and the time to wait before the next RPC is over.

        Raises CallFailed if another RPC would not help.
        """
        refused = feed.too_large(failed)
        if refused is not None:
            return refused, failed
        time.sleep(feed.backoff_seconds(failed))
        return None

    def classify_many(
        self,
        images: Iterable[Image],
        model: str,
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        ordered: bool = True,
        wait_seconds: float = 60.0,
        embeddings: bool = False,
    ) -> Generator[Outcome, None, None]:
        """Classifies any number of images, each of which gets exactly one outcome, as fast as the servers can.

        Images are taken as fast as they are answered, and no more of them are held than the servers have in hand. They are packed
        in requests, and sent over one stream a connection: to each server of a list; of a name (dns:///), each connection to one of
        its servers, whichever it is. What is in flight adapts to the servers, and takes half of a model's queue at most: a request
        that is refused because the queue or a quota is full is sent again, and so is what a server leaves that drains or dies. Of a
        request that fails, the images that are not at fault are sent again.

        Args:
            images: any iterable, which need not end. When the next image is asked for, the one before may be closed or overwritten,
                but a file that was given by its path has to stay until its outcome.
            model: the model's name.
            version: as for `classify`.
            top_k: as for `classify`.
            priority: as for `classify`.
            ordered: in the order of the images; otherwise as they are ready, which holds back nothing behind a slow one.
            wait_seconds: how long to wait for a server that loads, restarts or cannot be reached, while there is something to send.
                A stream that ends after answers, as by the age of its connection, is opened anew even with 0.
            embeddings: as for `classify`.

        Yields:
            The outcome of each image: an answer, or the error of this image alone.

        Raises:
            UserError: an argument has an invalid value.
            CallFailed: what concerns all images: no such model, no permission, an invalid field, no server within `wait_seconds`.
            BaseException: what `images` raised; those before it are answered first.
        """
        # Where the model has a time limit for those who wait, nobody waits here: how long an image is in the queue is our choice.
        fields = {"top_k": top_k, "priority": priority, "timeout_seconds": FOREVER_SECONDS, "embeddings": embeddings}
        request = filled(pb.ClassifyRequest(), model=model, version=version, **fields)
        many = ManyImages(
            images, request, self._to_each, ordered=ordered, wait_seconds=wait_seconds, timeout_seconds=self._timeout_seconds
        )  # fmt: skip
        try:
            many.start()
            while outcomes := many.next_outcomes():
                yield from outcomes
        finally:
            many.close()

    def model(self, model: str, version: str = "") -> ModelInfo:
        """What a served model takes and gives. Raises UserError, or CallFailed: NOT_FOUND if it is not served."""
        return model_info(self._call(self._stubs().get_model, filled(pb.GetModelRequest(), model=model, version=version)))

    def models(self) -> list[ModelStatus]:
        """Every version in the server's repository and its state. Raises CallFailed."""
        return model_statuses(self._call(self._stubs().list_models, pb.ListModelsRequest()))

    def _stubs(self, connection: Connection | None = None) -> Stubs:
        """The RPCs of a connection; without one, of that whose turn it is."""
        connection = next(self._turns) if connection is None else connection
        return connection.stubs()

    def _call(self, stub: Any, request: Any, server_seconds: float = 0.0) -> Any:
        try:
            return stub(request, timeout=deadline_seconds(self._timeout_seconds, server_seconds))
        except grpc.RpcError as error:
            raise self._settings.call_failed(error) from None


class Feed(Window):
    """A Window that is filled from the caller's iterable and emptied by gRPC at the same time."""

    def __init__(self, requests: Iterable[Images], fields: dict[str, Any], in_flight: int) -> None:
        super().__init__(in_flight)
        self._changed = threading.Condition()
        threading.Thread(target=self._take, args=(requests, fields), name="classify-stream", daemon=True).start()

    def _take(self, requests: Iterable[Images], fields: dict[str, Any]) -> None:
        try:
            for images in requests:
                request = _request(images, fields, classify_request)
                with self._changed:
                    self._changed.wait_for(self.has_room)
                    if self.closed:
                        return
                    self.add(request)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - check_complete raises it, once the requests before it are answered
            self.error = error
        finally:
            with self._changed:
                self.exhausted = True
                self._changed.notify_all()

    def wait_for_unanswered(self) -> bool:
        """Waits for something to send on a new RPC; False if there will be nothing more."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_unanswered() or self.exhausted)
            return self.has_unanswered()

    def messages(self) -> Iterator[pb.ClassifyStreamRequest]:
        """Begins an RPC; iterates over its messages."""
        with self._changed:
            rpc = self.begin()
            self._changed.notify_all()
        return self._messages(rpc)

    def _messages(self, rpc: int) -> Iterator[pb.ClassifyStreamRequest]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.can_send(rpc))
                message = self.next_message(rpc)
            if message is None:
                return
            yield message

    def answered(self, number: int) -> bool:
        """Makes room for another request; False if this one was answered before."""
        with self._changed:
            first = self.remove(number)
            self._changed.notify_all()
        return first

    def close(self) -> None:
        """Ends what runs in the background."""
        self.closed = True
        with self._changed:
            self._changed.notify_all()


def _request(images: Images, fields: dict[str, Any], build: Callable[..., _Request]) -> _Request:
    return build(images, **fields)
