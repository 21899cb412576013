"""The engine of a server without its ports: a repository and a classifier, asked and answered with the messages of the API.

So a request means the same as over gRPC, and fails with the same errors. There is no trial of a model in another process, and no
watch on its folder: whoever calls this chose the files, and a new `Local` sees what has changed.
"""

import atexit
import contextlib
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from service.client.connection import client_closed
from service.client.messages import CallFailed
from service.engine.classifier import Classifier
from service.engine.explain import Explainer
from service.engine.reply import send_reply
from service.engine.repository import Repository
from service.errors import Cancelled, InvalidRequest, QueueFull, RequestError, Unavailable, UserError, forget_traceback
from service.local.source import source
from service.model.cpus import cpu_budget
from service.model.providers import Provider
from service.model.session import check_provider
from service.observability.metrics import Metrics
from service.observability.trace_context import TraceContext
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.requests.principal import UNKNOWN, Principal
from service.rpc.classify import query_of, write_response, write_with_embeddings
from service.rpc.explain import query_of as explain_query_of
from service.rpc.explain import send_explanations
from service.rpc.model_info import ModelInfoServicer
from service.rpc.status import Metadata, status_of

Done = Callable[[bytes | BaseException], object]
"""Takes the one outcome of a request, from any thread: a serialised response, or why there is none."""


class _Caller(NamedTuple):
    deadline: float = math.inf
    trace: TraceContext | None = None
    principal: Principal = UNKNOWN
    metadata: Metadata = ()


_CALLER = _Caller()


class Engine:
    """Loaded models. Thread-safe, for the process that made it. Close it in the end.

    Attributes:
        cpus: threads that decode, and threads that a model may compute with.
    """

    def __init__(self, path: Path, provider: Provider, cpus: int | None) -> None:
        """Loads the models of a path.

        Raises UserError if there are none, or none of them can be loaded, and for a provider that is not installed.
        """
        check_provider(provider)
        self._process = os.getpid()
        self.cpus = cpus or cpu_budget()
        self._lock = threading.Lock()
        self._running: set[Reply] = set()
        self._closed = threading.Event()
        with source(path) as models:
            metrics = Metrics(CollectorRegistry())
            self.repository = Repository(
                models.repository, provider, metrics, cpus=self.cpus, load_seconds=threading.TIMEOUT_MAX, only=models.only
            )
            self._classifier = Classifier(self.repository, metrics, self.cpus)
            self._explainer = Explainer(self._classifier)
            self._info = ModelInfoServicer(self.repository)
            _engines.add(self)
            try:
                reasons = self.repository.load_once(models.names)
                if not self.repository.served:
                    raise UserError(f"{path}: {'; '.join(reasons.values())}")
            except BaseException:
                self.close()
                raise

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed.is_set()

    def default_model(self) -> str:
        """The name of the one model. Raises UserError if there are several."""
        self._check_usable()
        names = list(self.repository.served)
        if len(names) != 1:
            raise UserError(f"which model? There are {', '.join(sorted(names))} (give model=)")
        return names[0]

    def submit(self, request: pb.ClassifyRequest | pb.ExplainRequest, reply: "Reply") -> None:
        """Has a request answered, to `reply`.

        Raises RequestError if it is refused, and CallFailed or UserError if there is no engine any more; `reply` gets nothing then.
        """
        self._check_usable()
        reply.ended = self._ended
        with self._lock:
            self._running.add(reply)
        try:
            begin: Callable[..., Callable[[], None]] = self._classify if isinstance(request, pb.ClassifyRequest) else self._explain
            reply.cancel = begin(request, reply)
            if self._closed.is_set():  # meanwhile, and `close` had nothing to cancel
                reply.cancel()
        except BaseException:
            self._ended(reply)
            if self._closed.is_set():
                raise client_closed() from None
            raise

    def _classify(self, request: pb.ClassifyRequest, reply: "Reply") -> Callable[[], None]:
        query = query_of(request, self._classifier, _CALLER)
        write = write_with_embeddings if query.hidden else write_response
        respond = partial(send_reply, self._classifier, reply, write, "")
        return self._classifier.classify(query, respond, on_transport=False, may_decode=True)

    def _explain(self, request: pb.ExplainRequest, reply: "Reply") -> Callable[[], None]:
        respond = partial(send_explanations, self._classifier, reply, "")
        return self._explainer.explain(explain_query_of(request, _CALLER), request.label, respond)

    def call_failed(self, error: BaseException) -> CallFailed:
        """The error that a client over gRPC gets in place of this one. Raises CallFailed if it is because of `close`."""
        if self.closed and isinstance(error, Cancelled | Unavailable | CallFailed):
            raise client_closed()
        return call_failed(error)

    def wait(self, seconds: float) -> None:
        """Waits, as for room in the queue, at most until `close`."""
        self._closed.wait(seconds)

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """What a served model takes and gives. Raises CallFailed."""
        self._check_usable()
        try:
            return self._info.get_model(request)
        except RequestError as error:
            raise call_failed(error) from None

    def list_models(self) -> pb.ListModelsResponse:
        """The state of every version."""
        self._check_usable()
        return self._info.list_models()

    def close(self) -> None:
        """Cancels what is not computed yet, waits for what is, and ends every thread and process. A second call does nothing."""
        if os.getpid() != self._process:
            return  # before the lock: a thread of the process that was forked may hold it for ever
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        self._classifier.drain(0)
        with self._lock:
            running = list(self._running)
        for reply in running:
            reply.cancel()
        self._classifier.close()
        self._explainer.close()
        self.repository.wait_until_idle(threading.TIMEOUT_MAX)
        self.repository.stop()
        self.repository.wait_until_closed()

    def _ended(self, reply: "Reply") -> None:
        with self._lock:
            self._running.discard(reply)

    def _check_usable(self) -> None:
        if self._closed.is_set():
            raise client_closed()
        if os.getpid() != self._process:
            raise UserError("a Local works in the process that made it: make one in each process, after the fork")


class Reply:
    """Passes on the one outcome of a request. `cancel` ends the request; to be called at any time."""

    __slots__ = ("_done", "cancel", "ended")

    def __init__(self, done: Done) -> None:
        self._done = done
        self.ended: Callable[[Reply], None] = _nothing_to_do
        self.cancel: Callable[[], None] = _nothing_to_cancel

    def reply(self, payload: bytes) -> bool:
        """See `Responder`."""
        self.ended(self)
        self._done(payload)
        return True

    def fail(self, error: BaseException) -> None:
        """See `Responder`."""
        self.ended(self)
        forget_traceback(error)
        self._done(error)


def call_failed(error: BaseException) -> CallFailed:
    """The error that a client over gRPC gets in place of this one."""
    if isinstance(error, CallFailed):
        return error
    status = status_of(error)
    at_fault = error.field if isinstance(error, InvalidRequest) else ""
    retry_after = error.retry_after_seconds if isinstance(error, QueueFull | Unavailable) else 0.0
    return CallFailed(status.name, status.message, at_fault, retry_after)


def close_later(engine: Engine) -> None:
    """Closes an engine that nobody has any more. On a thread of its own: this may be one of the engine's."""
    with contextlib.suppress(RuntimeError):  # the interpreter ends, and `_close_all` sees to it
        threading.Thread(target=engine.close, name="close-local").start()


def _nothing_to_cancel() -> None:
    pass


def _nothing_to_do(_: Reply) -> None:
    pass


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
logging.getLogger("service").addHandler(logging.NullHandler())  # as a library: what is raised is not printed, too
atexit.register(_close_all)  # a process that ends while ONNX Runtime computes may abort
