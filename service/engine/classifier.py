"""The one operation behind every API: classify images with a model of the repository."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from service.engine.answer import Answer
from service.engine.decoding import DecodingPool, decode
from service.engine.decoding_processes import DecodingProcesses
from service.engine.observer import Observation, RequestObserver
from service.engine.query import Item, Query
from service.engine.quotas import Quotas
from service.engine.repository import Repository
from service.engine.request import Request, Respond, wrong_count
from service.engine.served_version import ServedVersion
from service.errors import ModelFailed, RequestError, Unavailable
from service.model.cpus import cpu_budget
from service.observability.metrics import Metrics


class Classifier:
    """Answers queries with the models of a repository."""

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        cpus: int | None = None,
        observer: RequestObserver | None = None,
        processes: DecodingProcesses | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        """Decodes with `cpus` threads; with as many as this process has CPUs if not given. Dear pictures go to `processes`."""
        self.quotas = quotas
        self._repository = repository
        self._metrics = metrics
        self._observer = observer
        self._draining = False
        self.pool = DecodingPool(cpus or cpu_budget(), processes or DecodingProcesses())
        # `Registry.release` and `Registry.pump`: every request goes through them, without a frame of this class.
        self.acquire = repository.acquire
        self.acquire_for = repository.acquire_for
        self._splits = repository.splits
        self.release: Callable[[ServedVersion], None] = repository.release
        self.pump = repository.pump

    def max_request_items(self) -> int:
        """The most items that a request may have, of all models that are served."""
        served = self._repository.served.values()
        return max((each.policy.max_request_items for versions in served for each in versions), default=0)

    def drain(self, seconds: float) -> bool:
        """Refuses new queries and waits up to `seconds` for the running ones; whether all of them ended."""
        self._draining = True
        self._repository.flush()
        return self._repository.wait_until_idle(seconds)

    def close(self) -> None:
        """Ends the decoding threads and processes. Only after `drain`."""
        self.pool.close()

    def classify(
        self, query: Query, respond: Respond, *, on_transport: bool = True, may_decode: bool = False
    ) -> Callable[[], None]:
        """Answers a query: calls `respond` exactly once, maybe before this returns, maybe from another thread.

        `on_transport` says that this is the transport's thread, which must not block and which runs short batches itself. On any
        other thread images are decoded in the pool, because decoded images are large and such threads are many, and batches run on
        the model's threads. With `may_decode` such a thread decodes small images itself: a hand-over costs more than that.

        Returns:
            A function that cancels the request. Call it at any time, any number of times.

        Raises:
            RequestError: the query is refused; `respond` is not called.
        """
        observation = None if self._observer is None else self._observer.begin(query)
        if observation is not None:
            query, respond = query._replace(trace=observation.trace), observation.observe(respond)
        served = None
        try:
            served = self.acquire_for(query) if self._splits else self.acquire(query.model, query.version)
            if self._draining:
                raise Unavailable("the server is draining")
            if query.validate is not None:
                found = query.validate(served)
                if isinstance(found, np.ndarray):
                    query = query._replace(tensor=found)
                elif found is not None:
                    query = query._replace(tensor=None, items=found)
            if self.quotas is not None:
                self.quotas.take(query.principal, query.size_bytes)
            request = Request(self, served, query, respond)
            request.begin(on_transport=on_transport, may_decode=may_decode)
        except BaseException as error:
            if served is not None:
                if isinstance(error, RequestError):
                    self.record_failure(served, error)
                self.release(served)
            if observation is not None:
                observation.refused(error)
            raise
        return request.cancel

    def observation(self, query: Query) -> Observation | None:
        """The observation of a query that is answered elsewhere; None if it is not observed."""
        return None if self._observer is None else self._observer.begin(query)

    def check_not_draining(self) -> None:
        """Raises Unavailable once the server drains."""
        if self._draining:
            raise Unavailable("the server is draining")

    def classify_blocking(self, query: Query) -> Answer:
        """Answers a query on a thread that may block, never the transport's. Raises RequestError."""
        ended = threading.Event()
        outcomes: list[Answer | RequestError] = []

        def respond(outcome: Answer | RequestError) -> None:
            outcomes.append(outcome)
            ended.set()

        self.classify(query, respond, on_transport=False)
        ended.wait()
        outcome = outcomes.pop()
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    def decode(self, served: ServedVersion, encoded: bytes) -> NDArray[np.uint8]:
        """uint8[H,W,C] of one picture, as the version gets it. On a thread that may block. Raises RequestError."""
        items = [Item(encoded, encoded=True)]
        decoded: Future[NDArray[np.uint8]] = Future()

        def check_wanted() -> None:
            if self.pool.closed:
                raise Unavailable("the server has stopped")

        def run() -> None:
            try:
                decoded.set_result(decode(served, items, self.pool.processes, check_wanted)[0])
            except Exception as error:  # noqa: BLE001 - the thread that waits raises it
                decoded.set_exception(error)

        self.pool.submit(run, items)
        return decoded.result()

    def check_count(self, model: str, version: str, items: int) -> None:
        """For requests of more than MANY_ITEMS. Raises RequestError if there is no such model or it takes fewer in one request."""
        served = self._repository.acquire(model, version)
        try:
            if items > served.policy.max_request_items:
                error = wrong_count(items, served.policy.max_request_items)
                self.record_failure(served, error)
                raise error
        finally:
            self.release(served)

    def check(self, model: str, version: str, validate: Callable[[ServedVersion], None]) -> None:
        """Checks what a request says of its input against its model, before the input is read. Raises RequestError."""
        served = self._repository.acquire(model, version)
        try:
            validate(served)
        except RequestError as error:
            self.record_failure(served, error)
            raise
        finally:
            self.release(served)

    def record_encoding_failure(self, answer: Answer, error: Exception) -> None:
        """Counts a request that was computed and whose answer could not be encoded."""
        self.record_failure(answer.served, error if isinstance(error, RequestError) else ModelFailed(str(error)))

    def record_failure(self, served: ServedVersion, error: RequestError, seconds: float = 0.0) -> None:
        """Counts a request that failed so many seconds after it was queued."""
        served.metrics.failed(error.reason, seconds)
        self._metrics.rejected(served.name, error.reason)
