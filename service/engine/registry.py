"""Which versions are served and by which names: acquired and released by requests, swapped by the loader.

`publish` replaces all versions and names of a model in one assignment. A request keeps the version that it acquired until it
releases it, so running requests finish on the version they started on. A version that was replaced is retired, and closed when its
last request has released it.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from service.access import audit
from service.engine.query import Query
from service.engine.routing import Routing, Split
from service.engine.served_version import ServedVersion
from service.errors import RequestError
from service.observability.metrics import Metrics

log = logging.getLogger(__name__)

STUCK_SECONDS = 30.0
"""An inline batch is expected to take a millisecond at most. One that takes so long will hardly end."""

LOST_SECONDS = 300.0
"""Nor will a batch on an instance's thread."""

_NOWHERE = Routing({})

T = TypeVar("T")


class Registry:
    """The served versions of all models. What is read without the lock is replaced, never changed.

    Attributes:
        served: the served versions by name of the model, the highest first.
        splits: of the models that share requests out among their versions. Always the same dict.
    """

    def __init__(self, metrics: Metrics, on_change: Callable[[], None], not_served: Callable[[str, str], RequestError]) -> None:
        """`on_change` is called after `served` has changed; `not_served` makes the error for a name and version not in it."""
        self._metrics = metrics
        self._on_change = on_change
        self._not_served = not_served
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._idle_waiters = 0
        self.served: dict[str, tuple[ServedVersion, ...]] = {}
        self._routing: dict[str, Routing] = {}
        self.splits: dict[str, Split] = {}
        self._routes: dict[tuple[str, str], ServedVersion] = {}  # by name, and version or alias as requests write it
        self._retiring: tuple[ServedVersion, ...] = ()  # retired, with requests still running
        self._active: tuple[ServedVersion, ...] = ()  # served or retiring
        self._unclosed: list[ServedVersion] = []  # that no thread could be started for
        self._closing: tuple[threading.Thread, ...] = ()

    def acquire(self, name: str, version: str) -> ServedVersion:
        """The version to answer a request with. Call `release` when the request is done.

        `version` is a number, an alias, `latest`, or empty for the one that answers by default. Raises what `not_served` makes.
        """
        with self._lock:
            served = self._routes.get((name, version))
            if served is not None:
                served.inflight += 1
                return served
        raise self._not_served(name, version)

    def release(self, served: ServedVersion) -> None:
        """Gives back an acquired version. Closes it if it is retired and this was its last request."""
        with self._lock:
            served.inflight -= 1
            close = served.retired and served.inflight == 0
            if close:
                self._retiring = tuple(other for other in self._retiring if other is not served)
                self._active = self._all()
            if served.inflight == 0 and self._idle_waiters:
                self._idle.notify_all()
        if close:
            self._close(served)

    def acquire_for(self, query: Query) -> ServedVersion:
        """The version to answer a query with, as `acquire`. Those that name none are shared out as the model's policy says."""
        name, version = query.model, query.version
        if not version and name in self.splits:
            with self._lock:
                split = self.splits.get(name)
                served = self._routes.get((name, str(split.version_for(query)))) if split is not None else None
                if served is not None:
                    served.inflight += 1
                    return served
        return self.acquire(name, version)

    def routing(self, name: str) -> Routing:
        """The names of a model's versions, of which some may not be served."""
        return self._routing.get(name, _NOWHERE)

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of a model whose versions are served, and these versions."""
        versions = {served.version for served in self.served.get(name, ())}
        return {alias: version for alias, version in self.routing(name).aliases.items() if version in versions}

    def publish(self, name: str, new: tuple[ServedVersion, ...], routing: Routing = _NOWHERE) -> None:
        """Serves the versions `new` of a model, highest first, under these names, and retires its other versions."""
        old = self.served.get(name, ())
        if new == old and routing == self.routing(name):
            return
        for served in new:
            self._metrics.model_serving(name, *_identity(served))
        if new:
            threads = sum(served.policy.instances * served.model.threads for served in new)
            self._metrics.watch_model(name, partial(self._inflight, name), threads)
        retired = [served for served in old if served not in new]
        with self._lock:
            self.served = _without(self.served, name) | ({name: new} if new else {})
            self._routing = _without(self._routing, name) | ({name: routing} if new else {})
            self.splits.pop(name, None)
            if new and routing.traffic:
                self.splits[name] = Split(routing.traffic, routing.key)
            self._routes = {route: served for route, served in self._routes.items() if route[0] != name} | _routes(
                name, new, routing
            )
            for served in retired:
                served.retired = True
            idle = [served for served in retired if not served.inflight]
            self._retiring = (*self._retiring, *(served for served in retired if served.inflight))
            self._active = self._all()
        self._forget_metrics(name, old, new)
        for served in idle:
            self._close(served)
        self._on_change()

    def close_unclosed(self) -> None:
        """Closes what could not be closed for lack of a thread. To be called now and then."""
        unclosed, self._unclosed = self._unclosed, []
        for served in unclosed:
            self._close(served)

    def wait_until_closed(self) -> None:
        """Waits until the versions that are retired and idle are closed. Not on one of their threads."""
        for thread in self._closing:
            thread.join()

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits up to `seconds` until no request is running; False if some still are."""
        with self._lock:
            self._idle_waiters += 1
            try:
                return self._idle.wait_for(lambda: not any(served.inflight for served in self._active), timeout=seconds)
            finally:
                self._idle_waiters -= 1

    def flush(self) -> None:
        """Lets no request wait for others to fill its batch any more, for a server that drains."""
        for served in self._active:
            served.batcher.flush()

    def pump(self) -> float:
        """For the transport's thread: `Batcher.pump` of every model with queued requests. Returns the earliest time of them."""
        wake_at = float("inf")
        for served in self._active:
            if served.batcher.queued_items:
                wake_at = min(wake_at, served.batcher.pump())
        return wake_at

    def stuck_reason(self) -> str:
        """Why some requests will never be answered, if a batch has been running for too long; else empty."""
        for served in self._active:
            if served.batcher.inline_seconds > STUCK_SECONDS:
                return f"model {served.name!r} blocks the gRPC thread: a batch has been running for over {STUCK_SECONDS:g} s"
        for served in self._active:
            if served.batcher.running_seconds > LOST_SECONDS:
                return f"model {served.name!r} does not answer: a batch has been running for over {LOST_SECONDS:g} s"
        return ""

    def _forget_metrics(self, name: str, old: tuple[ServedVersion, ...], new: tuple[ServedVersion, ...]) -> None:
        for served in old:
            if served in new:
                continue
            if _identity(served) not in map(_identity, new):
                self._metrics.model_retired(name, *_identity(served))
            if served.version not in [other.version for other in new]:
                self._metrics.model_forgotten(name, str(served.version))
                audit.record("version", "no longer served", model=name, version=served.version, digest=served.model.digest)
                log.info("model %s version %d is no longer served", name, served.version)
        if old and not new:
            self._metrics.model_unloaded(name)

    def _close(self, served: ServedVersion) -> None:
        # On another thread: the last release may come from a thread of the batcher, which `close` waits for.
        closing = threading.Thread(target=served.close, name=f"close-{served.name}")
        try:
            closing.start()
            self._closing = (*(thread for thread in self._closing if thread.is_alive()), closing)
        except (RuntimeError, MemoryError) as error:  # not the fault of whoever releases it
            log.error("model %s version %d holds its memory until a thread can be started: %s", served.name, served.version, error)
            self._unclosed.append(served)

    def _all(self) -> tuple[ServedVersion, ...]:
        return (*(served for versions in self.served.values() for served in versions), *self._retiring)

    def _inflight(self, name: str) -> int:
        return sum(served.inflight for served in self._active if served.name == name)


def _without(by_name: dict[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in by_name.items() if key != name}


def _routes(name: str, versions: tuple[ServedVersion, ...], routing: Routing) -> dict[tuple[str, str], ServedVersion]:
    """What requests may call the versions of a model."""
    numbers = {served.version: served for served in versions}
    routes = {(name, str(version)): served for version, served in numbers.items()}
    return routes | {(name, each): numbers[version] for each, version in routing.names().items() if version in numbers}


def _identity(served: ServedVersion) -> tuple[str, str, str, str, str]:
    model = served.model
    return str(served.version), model.provider, model.precision, model.digest, model.signer
