"""`Local`: the interface of `Client`, answered by models in this process."""

import weakref
from collections.abc import Generator, Iterable
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NoReturn

from service.client.flow import check_arguments
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
)
from service.client.stream import IN_FLIGHT
from service.errors import QueueFull, RequestError, UserError
from service.local.engine import Engine, Reply, close_later
from service.local.many import Many
from service.local.stream import Stream
from service.model.providers import ONNX_RUNTIME_NAMES, Provider
from service.pb.convoy.v1 import classifier_pb2 as pb

_ATTEMPTS = 4
"""As a client over gRPC."""


class Local:
    """Models of this process, asked as a `Client` asks those of a server. Close it, or use it in a `with` statement.

    It may be shared between threads, not between processes: it cannot be pickled, and works only in the process that made it.
    """

    def __init__(self, path: str | PathLike[str], *, provider: Provider = "auto", cpus: int | None = None) -> None:
        """Loads the models, which takes as long as it does on a server.

        Args:
            path: a model file, the folder of a version or of a model, or a repository. `serving.toml` and the choice of versions
                count as they do on a server.
            provider: where models compute unless their policy says so: auto, cuda or cpu.
            cpus: how many threads decode, and how many a model computes with; as many as this process has CPUs if not given.

        Raises:
            UserError: there is no model, or none that can be loaded; an argument has an invalid value.
        """
        if cpus is not None and (not isinstance(cpus, int) or cpus < 1):
            raise UserError(f"invalid value for cpus: {cpus!r} (give a positive integer)")
        if provider != "auto" and provider not in ONNX_RUNTIME_NAMES:
            names = ", ".join(("auto", *ONNX_RUNTIME_NAMES))
            raise UserError(f"invalid value for provider: {provider!r} (accepted are {names})")
        self._engine = Engine(Path(path), provider, cpus)
        self._finalizer = weakref.finalize(self, close_later, self._engine)
        self._finalizer.atexit = False  # the engine sees to that

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Local cannot be pickled: its model is in the memory of this process. Make one in each worker")

    def close(self) -> None:
        """Frees the models. Calls of other threads that are not computed yet are cancelled, those that are, answered."""
        self._finalizer.detach()
        self._engine.close()

    def classify(
        self,
        images: Images,
        model: str = "",
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
        embeddings: bool = False,
    ) -> Classification:
        """Classifies images with one model, in one request. Arguments and errors are those of `Client.classify`.

        `model` may be left out where there is one. `timeout_seconds` is the only limit of time.
        """
        request = classify_request(
            images, model=self._name(model), version=version, top_k=top_k, priority=priority, timeout_seconds=timeout_seconds,
            embeddings=embeddings,
        )  # fmt: skip
        return classification(pb.ClassifyResponse.FromString(self._answer(request)))

    def explain(
        self, images: Images, model: str = "", label: str | None = None, *, version: str = "", timeout_seconds: float = 0.0
    ) -> list[Explanation]:
        """Says which pixels of each image spoke for a label. Arguments and errors are those of `Client.explain`.

        `model` may be left out where there is one: then give `label` by its name.
        """
        request = explain_request(
            images, model=self._name(model), label="" if label is None else label, version=version, timeout_seconds=timeout_seconds
        )
        return explanations(pb.ExplainResponse.FromString(self._answer(request)))

    def _answer(self, request: pb.ClassifyRequest | pb.ExplainRequest) -> bytes:
        """The serialised response. Raises CallFailed, and UserError where there is no engine."""
        outcomes: SimpleQueue[bytes | BaseException] = SimpleQueue()
        outcome: bytes | BaseException
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                reply = Reply(outcomes.put)
                self._engine.submit(request, reply)
                try:
                    outcome = outcomes.get()
                except BaseException:  # Ctrl-C
                    reply.cancel()
                    raise
            except RequestError as error:
                outcome = error
            if not isinstance(outcome, QueueFull) or attempt == _ATTEMPTS:
                break
            self._engine.wait(outcome.retry_after_seconds)
        if isinstance(outcome, BaseException):
            raise self._engine.call_failed(outcome) from None
        return outcome

    def classify_stream(
        self,
        requests: Iterable[Images],
        model: str = "",
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        timeout_seconds: float = 0.0,
        in_flight: int = IN_FLIGHT,
        embeddings: bool = False,
    ) -> Generator[tuple[int, Classification | CallFailed], None, None]:
        """Classifies any number of requests, `in_flight` at a time. Arguments and what it yields are those of `Client`.

        A request that finds the queue full waits until there is room.
        """
        fields = {"model": self._name(model), "version": version, "top_k": top_k, "priority": priority, "embeddings": embeddings}
        stream = Stream(self._engine, requests, fields | {"timeout_seconds": timeout_seconds}, in_flight)
        try:
            yield from stream.answers()
        finally:
            stream.close()

    def classify_many(
        self,
        images: Iterable[Image],
        model: str = "",
        *,
        version: str = "",
        top_k: int = 0,
        priority: int = 0,
        ordered: bool = True,
        wait_seconds: float = 60.0,
        embeddings: bool = False,
    ) -> Generator[Outcome, None, None]:
        """Classifies any number of images, each with one outcome. Arguments and what it yields are those of `Client`.

        Images are taken, files read and decoded ahead of the model, so far as memory for some hundred images allows. There is no
        server to wait for, whatever `wait_seconds`.
        """
        check_arguments(images, Iterable, wait_seconds)
        fields = {"model": self._name(model), "version": version, "top_k": top_k, "priority": priority, "embeddings": embeddings}
        many = Many(self._engine, images, fields, ordered=ordered)
        try:
            yield from many.outcomes()
        finally:
            many.close()

    def model(self, model: str = "", version: str = "") -> ModelInfo:
        """What a model takes and gives. Raises UserError, or CallFailed: NOT_FOUND if there is no such model."""
        return model_info(self._engine.get_model(filled(pb.GetModelRequest(), model=self._name(model), version=version)))

    def models(self) -> list[ModelStatus]:
        """Every version that was loaded, or could not be, and its state."""
        return model_statuses(self._engine.list_models())

    def _name(self, model: Any) -> Any:
        return self._engine.default_model() if model == "" else model
